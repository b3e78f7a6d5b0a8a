"""R-25: parameter bombs. Numbers and lists that would cost memory or time are refused at once."""

import json
from typing import Any

import pytest

from support.process_memory import forget_peak, peak_bytes, resident_bytes
from support.raw_http import ask, post
from tiercel.bench.server import ServerProcess

ANSWER_S = 0.05
MORE_RSS = 16 * 1024 * 1024
ROUNDS = 5  # the fastest counts: the machine is shared
VOCABULARY = 4_096  # of the model behind the server

NATIVE: dict[str, dict[str, Any]] = {
    "best_of": {"best_of": 2**31, "do_sample": True},
    "best_of of 64 bits": {"best_of": 2**64 - 1, "do_sample": True},
    "max_new_tokens": {"max_new_tokens": 2**63},
    "top_n_tokens": {"top_n_tokens": 65_000},
    "10k stops": {"stop": ["a"] * 10_000},
    "2k stops": {"stop": ["a"] * 2_000},
    "stops of 64 KB": {"stop": ["a" * 65_536] * 4},
    "negative truncate": {"truncate": -1},
    "huge truncate": {"truncate": 2**64 - 1},
    "seed": {"seed": 2**64},
    "top_k": {"top_k": 2**31},
    "temperature": {"temperature": 1e308},
    "long adapter": {"adapter_id": "a" * 100_000},
    "longest adapter": {"adapter_id": "a" * 1_024},
    "long kind of grammar": {"grammar": {"type": "a" * 90_000}},
}
OPENAI: dict[str, dict[str, Any]] = {
    "n": {"n": 2**31},
    "max_tokens": {"max_tokens": 2**63},
    "10k stops": {"stop": ["a"] * 10_000},
    "stops of 64 KB": {"stop": ["a" * 65_536] * 4},
    "100k biases": {"logit_bias": {str(token): 1 for token in range(100_000)}},
    "10k biases": {"logit_bias": {str(token): 1 for token in range(10_000)}},
    "id outside of the logits": {"logit_bias": {str(VOCABULARY): 1}},
    "id of 32 bits": {"logit_bias": {str(2**32 - 1): 1}},
    "negative id": {"logit_bias": {"-1": 1}},
    "infinite bias": {"logit_bias": {"1": 1e308}},
    "top_logprobs": {"logprobs": True, "top_logprobs": 65_000},
    "presence_penalty": {"presence_penalty": 1e30},
    "seed": {"seed": 2**64},
    "long tool": {"tool_choice": "a" * 4_096},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "best_of": {"best_of": 2**31},
    "10k prompts": {"prompt": ["a"] * 10_000},
    "logprobs": {"logprobs": 2**31},
    "token id outside of the logits": {"prompt": [VOCABULARY]},
    "negative token id": {"prompt": [-1]},
    "50k token ids": {"prompt": [1] * 50_000},
}
CASES = {
    **{
        f"/generate {name}": ("/generate", {"inputs": "x", "parameters": parameters})
        for name, parameters in NATIVE.items()
    },
    **{
        f"/v1/chat/completions {name}": (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], **fields},
        )
        for name, fields in OPENAI.items()
    },
    **{
        f"/v1/completions {name}": ("/v1/completions", {"prompt": "x", **fields})
        for name, fields in COMPLETIONS.items()
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_bomb(attacked: ServerProcess, name: str) -> None:
    path, body = CASES[name]
    request = post(path, json.dumps(body).encode())
    forget_peak(attacked.pid)
    before_rss = resident_bytes(attacked.pid)
    answers = [ask(attacked.port, request) for _ in range(ROUNDS)]
    assert {answer.status for answer in answers} == {422}, answers[0].body[:300]
    fastest_s = min(answer.elapsed_s for answer in answers)
    print(f"\n{name}: {fastest_s * 1000:.1f} ms")
    assert fastest_s <= ANSWER_S
    assert peak_bytes(attacked.pid) - before_rss <= MORE_RSS
    assert len(answers[0].body) < 1_000  # nothing of the bomb comes back
