"""Statements 90 to 95 of the contract's section 11: overload and failures."""

import json
import signal
import time

from support.conformance import FAILED, JSON, Api, Servers, at_once, invalid, refused
from support.conformance_events import read_events
from support.conformance_model import BROKEN, COUNTED

PROMPT = "Hello there"
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}


def test_090_a_full_server_answers_429(long_api: Api) -> None:
    with long_api.busy():
        response = long_api.try_generate(PROMPT, max_new_tokens=2)
    assert response.status_code == 429
    assert response.json() == OVERLOADED
    assert long_api.generate(PROMPT, max_new_tokens=2)


def test_091_a_full_server_streams_its_refusal(long_api: Api) -> None:
    with long_api.busy():
        events = long_api.events(PROMPT, max_new_tokens=2)
    assert events.data == [OVERLOADED]
    assert not events.done


def test_092_the_best_of_two_needs_two_permits(long_api: Api) -> None:
    response = long_api.try_generate(PROMPT, best_of=2, do_sample=True, max_new_tokens=2)
    assert (response.status_code, response.json()) == (429, OVERLOADED)
    assert long_api.generate(PROMPT, best_of=1, do_sample=True, max_new_tokens=2)


def test_093_a_failure_in_the_model_stays_with_its_request(api: Api) -> None:
    """The embedding of one token overflows, so its row has no logits. Its neighbours have."""
    broken = f"{PROMPT} {BROKEN}"
    failed = api.failures("generation")
    sentence = refused(api.try_generate(broken, max_new_tokens=4), 424, "generation")
    assert sentence.startswith("Request failed during generation: ")
    (event,) = api.events(broken, max_new_tokens=4).data
    assert event["error_type"] == "generation"
    assert "token" not in event
    assert api.failures("generation") == failed + 2
    assert api.get("/health").status_code == 200

    alone = api.generate(PROMPT, max_new_tokens=60)

    def whole() -> bool:
        return api.generate(PROMPT, max_new_tokens=60) == alone

    def fails() -> bool:
        return api.try_generate(broken, max_new_tokens=60).status_code == 424

    assert all(at_once([whole, fails, whole, fails, whole]))


def test_094_an_invalid_grammar_is_refused_before_it_runs(api: Api) -> None:
    grammar = {"type": "regex", "value": "a(b"}
    alone = api.generate("<count>", max_new_tokens=100)

    def whole() -> bool:
        return api.generate("<count>", max_new_tokens=100) == alone

    def refuses() -> bool:
        response = api.try_generate(PROMPT, grammar=grammar)
        invalid(response, "grammar")
        return "not supported" not in response.text

    assert all(at_once([whole, refuses, whole, refuses]))
    assert f'{FAILED}{{err="generation"}}' not in _growth(api, refuses)


def _growth(api: Api, call: object) -> set[str]:
    """The samples that grow when `call` is made."""
    before = api.metrics()
    assert callable(call)
    call()
    return {name for name, value in api.metrics().items() if value > before.get(name, 0.0)}


def test_095_sigterm_lets_a_stream_finish(servers: Servers) -> None:
    """A deliberate divergence: until the last stream has ended, who comes new is answered 503
    instead of finding the port closed.
    """
    api = servers["FG"]
    body = {"inputs": "<count>", "parameters": {"max_new_tokens": 1500}}
    with api.http.stream(
        "POST", "/generate_stream", content=json.dumps(body), headers=JSON
    ) as response:
        pieces = response.iter_raw()
        content = next(pieces)
        api.base.send(signal.SIGTERM)
        began_s = time.monotonic()
        time.sleep(0.2)
        late = api.try_generate(PROMPT)
        refused(late, 503, "healthcheck", "shutting down")
        assert late.headers["connection"] == "close"
        assert int(late.headers["retry-after"]) > 0
        content += b"".join(pieces)
    events = read_events(content).data
    assert events[-1]["generated_text"] == "".join(COUNTED) * 300
    exit_code = api.base.wait(20)
    took_s = time.monotonic() - began_s
    survivors = api.base.survivors()
    servers.forget("FG")
    assert exit_code == 0
    assert took_s < 90
    assert not survivors
