"""Statements 115 to 120 of the contract's section 11: completions, `/invocations`, `/vertex`."""

from collections import Counter
from typing import Any

import pytest

from support.conformance import Api, answered, near, refused_openai, used

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
PROMPT = "Hello there"
HELLO = [{"role": "user", "content": "Hello"}]


def ask(api: Api, prompt: object = PROMPT, **fields: Any) -> dict[str, Any]:
    """A completion of a few greedy tokens."""
    body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, **fields}
    return dict(api.ask(COMPLETIONS, body))


def lasting(answer: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from call to call."""
    kept = {name: value for name, value in answer.items() if name not in ("id", "created")}
    return {**kept, "usage": used(answer)}


def test_115_a_prompt_and_a_list_of_one(api: Api) -> None:
    single = ask(api)
    assert single["object"] == "text_completion"
    assert single["model"] == api.ask_get("/info")["model_id"]
    (choice,) = single["choices"]
    assert choice["text"] == api.generate(PROMPT, max_new_tokens=6)["generated_text"]
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert lasting(ask(api, [PROMPT])) == lasting(single)
    refused_openai(api.post(COMPLETIONS, {"prompt": []}), 422, "validation", "prompt")


def test_116_four_prompts(api: Api) -> None:
    """A deliberate divergence: the error is in OpenAI's shape, TGI's type beside it."""
    prompts = [PROMPT, "<bye>", "Falcon", "<end>"]
    answer = ask(api, prompts)
    texts = {choice["index"]: choice["text"] for choice in answer["choices"]}
    assert sorted(texts) == [0, 1, 2, 3]
    singles = [ask(api, prompt) for prompt in prompts]
    assert [texts[index] for index in range(4)] == [
        single["choices"][0]["text"] for single in singles
    ]
    for name, count in used(answer).items():
        assert count == sum(single["usage"][name] for single in singles)
    five = api.post(COMPLETIONS, {"prompt": [PROMPT] * 5, "max_tokens": 2})
    refused_openai(five, 422, "batch size exceeded", "4")


def test_117_a_suffix_and_fields_of_openai(api: Api) -> None:
    """A deliberate divergence: as 116, and `echo`, `n`, `logprobs` do what OpenAI documents."""
    response = api.post(COMPLETIONS, {"prompt": PROMPT, "suffix": "x"})
    refused_openai(response, 422, "suffix not supported", "suffix")
    plain = ask(api)
    assert lasting(ask(api, suffix=None)) == lasting(plain)
    text = plain["choices"][0]["text"]
    (echoed,) = ask(api, echo=True)["choices"]
    assert echoed["text"] == PROMPT + text
    several = ask(api, n=2)["choices"]
    assert [(choice["index"], choice["text"]) for choice in several] == [(0, text), (1, text)]
    (scored,) = ask(api, logprobs=2)["choices"]
    assert scored["text"] == text
    assert "".join(scored["logprobs"]["tokens"]) == text
    assert len(scored["logprobs"]["token_logprobs"]) == 6
    assert all(len(top) == 2 for top in scored["logprobs"]["top_logprobs"])


def test_118_chunks_of_completions(api: Api) -> None:
    prompts = [PROMPT, "<bye>"]
    body = {"prompt": prompts, "max_tokens": 6, "temperature": 0, "stream": True}
    events = api.stream(COMPLETIONS, body)
    assert events.done
    texts: Counter[int] = Counter()
    joined = ["", ""]
    usages: dict[int, dict[str, int]] = {}
    for event in events.data:
        (choice,) = event["choices"]
        index = choice["index"]
        assert index not in usages, "a chunk follows the last one of its prompt"
        joined[index] += choice["text"]
        texts[index] += 1
        if "usage" in event:
            assert choice["finish_reason"] == ("length", "stop")[index]
            usages[index] = used(event)
        else:
            assert choice["finish_reason"] == ""
    for index, prompt in enumerate(prompts):
        whole = ask(api, prompt)
        assert usages[index] == used(whole)
        assert joined[index] == whole["choices"][0]["text"]
        assert texts[index] == whole["usage"]["completion_tokens"]


def test_119_invocations_take_three_shapes(api: Api) -> None:
    short: dict[str, Any] = {"max_new_tokens": 4, "details": True}
    native = {"inputs": PROMPT, "parameters": short}
    assert near(api.ask("/invocations", native), api.ask("/", native))
    chat = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
    assert lasting(api.ask("/invocations", chat)) == lasting(api.ask(CHAT, chat))
    completion = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    assert lasting(api.ask("/invocations", completion)) == lasting(ask(api, max_tokens=4))

    streamed = api.stream("/invocations", {**native, "stream": True})
    assert near(streamed.data, api.stream("/", {**native, "stream": True}).data)
    assert not streamed.done
    assert api.stream("/invocations", {**chat, "stream": True}).done
    headers = api.post("/invocations", native).headers
    assert headers["x-generated-tokens"] == "4"


@pytest.mark.parametrize("count", [1, 2])
def test_120_vertex_instances(api: Api, count: int) -> None:
    instance = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4, "seed": 3}}
    predictions = api.ask("/vertex", {"instances": [instance] * count})["predictions"]
    assert len(predictions) == count
    assert len({type(text) for text in predictions} - {str}) == 0
    seeded = api.generate(PROMPT, do_sample=True, seed=3, max_new_tokens=4)["generated_text"]
    assert predictions == [seeded] * count
    chat = {"messages": HELLO, "max_tokens": 4, "temperature": 0}
    count = [{"role": "user", "content": "<count>"}]
    stopped = {"messages": count, "max_tokens": 20, "temperature": 0, "stop": ["x"]}
    for each in (chat, stopped):
        (said,) = api.ask("/vertex", {"instances": [each]})["predictions"]
        assert said == api.ask(CHAT, each)["choices"][0]["message"]["content"]
    response = api.post("/vertex", {"instances": []})
    assert response.status_code == 422
    assert response.json() == dict.fromkeys(("error", "error_type"), "Input validation error")
    assert answered(api.post("/vertex", {"instances": [instance]}))
