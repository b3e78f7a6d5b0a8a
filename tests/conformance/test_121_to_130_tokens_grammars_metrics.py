"""Statements 121 to 130 of the contract's section 11: tokens, grammars, metrics, traces, cache."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import Tokenizer

from support.conformance import API_KEY, FAILED, Api, Servers, at_once, buckets, invalid, until
from support.conformance_collector import Collector
from support.conformance_model import EMOJI, EOS_ID

PROMPT = "Hello there"
HELLO = [{"role": "user", "content": "Hello"}]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RUNNING, QUEUED = "tgi_batch_current_size", "tgi_queue_size"


def growth(api: Api, before: dict[str, float], name: str) -> float:
    return api.metrics().get(name, 0.0) - before.get(name, 0.0)


@pytest.mark.parametrize(
    "text", [PROMPT, f"naïve {EMOJI} façade, 鳥 птица", "a\n\tb  c<end>", "é" * 90]
)
def test_121_tokens_of_a_text(api: Api, servers: Servers, text: str) -> None:
    tokens = api.tokenize(text)
    assert all(set(token) == {"id", "text", "start", "stop"} for token in tokens)
    tokenizer = Tokenizer.from_file(str(servers.model() / "tokenizer.json"))
    assert [token["id"] for token in tokens] == tokenizer.encode(text).ids
    raw = text.encode()
    for token in tokens:
        assert raw[token["start"] : token["stop"]].decode() == token["text"]
    covered = set().union(*(range(token["start"], token["stop"]) for token in tokens))
    assert covered == set(range(len(raw)))
    assert api.tokenize("") == []
    limits = {"inputs": "word " * 100, "parameters": {"truncate": 3}}
    assert len(api.ask("/tokenize", limits)) == len(tokenizer.encode("word " * 100).ids) > 64


def test_122_tokens_of_a_chat(api: Api, long_api: Api) -> None:
    """The second server's tokenizer puts a token in front of every prompt, but not of a chat."""
    for server in (api, long_api):
        answer = server.ask("/chat_tokenize", {"messages": HELLO})
        assert set(answer) == {"tokenize_response", "templated_text"}
        assert answer["templated_text"] == "u:Hello\na:"
        plain = api.tokenize(answer["templated_text"])
        assert answer["tokenize_response"] == plain
    assert [token["id"] for token in long_api.tokenize("u:Hello\na:")] == [
        0, *(token["id"] for token in plain),
    ]  # fmt: skip


def test_123_grammars(api: Api, bare_api: Api) -> None:
    grammar: dict[str, Any] = {"type": "regex", "value": "[ab]{3}"}
    for sampling in ({}, {"do_sample": True, "seed": 5}):
        answer = api.generate(PROMPT, grammar=grammar, details=True, **sampling)
        assert re.fullmatch("[ab]{3}", answer["generated_text"])
        assert answer["details"]["finish_reason"] == "eos_token"
        assert answer["details"]["tokens"][-1]["id"] == EOS_ID
    for kind in ("json", "json_object"):
        shapeless = {"type": kind, "value": {"type": "object"}}
        invalid(api.try_generate(PROMPT, grammar=shapeless), "grammar is not valid", "properties")
    schema = {"type": "json", "value": {"properties": {"a": {"type": "boolean"}}}}
    for refused in (grammar, schema):
        invalid(bare_api.try_generate(PROMPT, grammar=refused), "grammar is not supported")


def test_124_metrics_of_a_request(api: Api) -> None:
    response = api.get("/metrics")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    for line in response.text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+|[a-z_]+({[^}]*})? \S+", line), line
    before = api.metrics()
    answer = api.try_generate(PROMPT, max_new_tokens=7)
    assert answer.status_code == 200
    assert growth(api, before, "tgi_request_count") == 1
    assert growth(api, before, "tgi_request_success") == 1
    assert growth(api, before, "tgi_request_input_length_sum") == len(api.tokenize(PROMPT))
    assert growth(api, before, "tgi_request_generated_tokens_sum") == 7
    assert growth(api, before, "tgi_request_generated_tokens_count") == 1


def test_125_bounds_of_durations(api: Api) -> None:
    assert api.generate(PROMPT, max_new_tokens=3)
    text = api.get("/metrics").text
    families = re.findall(r"^# TYPE (tgi_\w*duration) histogram$", text, re.MULTILINE)
    assert set(families) >= {
        "tgi_request_duration", "tgi_request_queue_duration", "tgi_request_inference_duration",
        "tgi_request_validation_duration", "tgi_request_mean_time_per_token_duration",
        "tgi_batch_inference_duration", "tgi_batch_forward_duration", "tgi_batch_decode_duration",
    }  # fmt: skip
    wanted = [0.00015 * 1.5**k for k in range(35)]
    for family in families:
        if f"\n{family}_bucket{{" in text:
            assert buckets(text, family) == pytest.approx(wanted, rel=1e-9), family
    for family in ("inference", "forward", "decode"):
        for method in ("prefill", "decode"):
            name = f'tgi_batch_{family}_duration_count{{method="{method}"}}'
            assert api.metrics()[name] > 0, name


def test_126_metrics_of_failures(api: Api, long_api: Api) -> None:
    before = api.failures("validation"), api.failures("template")
    invalid(api.try_generate(PROMPT, temperature=0))
    banned = {"messages": [{"role": "banned", "content": "Hello"}]}
    assert api.post("/v1/chat/completions", banned).status_code == 422
    assert api.failures("validation") == before[0] + 1
    assert api.failures("template") == before[1] + 1
    overloaded = long_api.failures("overloaded")
    with long_api.busy():
        assert long_api.try_generate(PROMPT).status_code == 429
    assert long_api.failures("overloaded") == overloaded + 1
    assert f'{FAILED}{{err="overloaded"}}' in long_api.metrics()


def test_127_gauges_return_to_zero(api: Api) -> None:
    at_once([lambda: api.generate(PROMPT, max_new_tokens=30)] * 4)
    assert api.generate(PROMPT, max_new_tokens=2)
    for name in (QUEUED, RUNNING):
        assert name in api.metrics()
        api.wait_for(name, lambda value: value == 0, timeout_s=3)
    assert api.metrics()["tgi_batch_current_max_tokens"] == 0


def test_128_equal_requests_at_once(api: Api) -> None:
    """They start together, because the engine is stopped until all eight have been sent. A machine
    with much else to do may show the gauge only before and after: so not at the first time only.
    """
    alone = api.generate(PROMPT, max_new_tokens=110)
    most = 0.0
    for _ in range(5):
        before = api.metrics()
        with ThreadPoolExecutor(8) as threads:
            with api.paused():
                eight = [threads.submit(api.generate, PROMPT, max_new_tokens=110) for _ in range(8)]
                until(lambda: growth(api, before, "tgi_request_count") == 8)  # noqa: B023
            while not all(answer.done() for answer in eight):
                most = max(most, api.metrics()[RUNNING])
            assert [answer.result() for answer in eight] == [alone] * 8
        if most > 1:
            break
    assert most > 1


def test_129_a_span_below_the_callers(api_key_api: Api, collector: Collector) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 2}}
    headers = {
        "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
        "authorization": f"Bearer {API_KEY}",
    }
    assert api_key_api.ask("/generate", body, **headers)
    until(lambda: bool(collector.of_trace(TRACE_ID)))
    spans = {span.name: span for span in collector.of_trace(TRACE_ID)}
    assert spans["generate"].parent_span_id.hex() == PARENT_ID
    attributes = {each.key for each in spans["generate"].attributes}
    assert attributes >= {
        "parameters", "total_time", "validation_time", "queue_time", "inference_time",
        "time_per_token", "seed",
    }  # fmt: skip
    assert not any(PROMPT in str(span) for span in collector.spans)


def test_130_a_repeated_prompt_answers_the_same(api: Api, prefill_api: Api) -> None:
    """Configuration A keeps prefixes in blocks of 16 tokens, the other server keeps none."""
    prompt = "".join(chr(ord("a") + place * 7 % 26) for place in range(60))
    assert len(api.tokenize(prompt)) > 32
    hits = "tiercel_prefix_cache_hit_tokens_total"
    first = api.ids(prompt, max_new_tokens=40)
    before = api.metrics()
    assert api.ids(prompt, max_new_tokens=40) == first
    assert growth(api, before, hits) >= 16
    without = [prefill_api.ids(prompt, max_new_tokens=40) for _ in range(2)]
    assert without == [first] * 2
    assert prefill_api.metrics().get(hits, 0.0) == 0
