"""`/generate` and POST `/`: the contract's checklist on answers in one piece."""

import pytest

from support.edge_server import EOS, STORY, TOKENIZER, EdgeServer, ids, say
from support.scripted_engine import speak


def test_without_parameters_the_request_is_sampled_with_a_drawn_seed(server: EdgeServer) -> None:
    seeds = set()
    for _ in range(3):
        assert server.post("/generate", {"inputs": "x"}).status_code == 200
        sampling = server.engine.requests[-1].sampling
        assert sampling.do_sample
        seeds.add(sampling.seed)
    assert len(seeds) == 3


def test_seed_is_null_when_greedy_and_given_when_sampled(server: EdgeServer) -> None:
    def seed(**parameters: object) -> object:
        return server.generate(details=True, max_new_tokens=1, **parameters).json()["details"][
            "seed"
        ]

    assert seed() is None
    assert seed(seed=5) is None
    assert seed(temperature=1.0) is None
    assert isinstance(seed(do_sample=True), int)
    assert seed(do_sample=True, seed=0) == 0
    assert seed(temperature=0.5, seed=2**64 - 1) == 2**64 - 1


def test_without_details_only_the_text(server: EdgeServer) -> None:
    response = server.generate(max_new_tokens=len(ids(STORY)))
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"generated_text": STORY}


def test_details(server: EdgeServer) -> None:
    details = server.generate(details=True, max_new_tokens=5).json()["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == len(details["tokens"]) == 5
    assert details["prefill"] == []
    for token in details["tokens"]:
        assert list(token) == ["id", "text", "logprob", "special"]
        assert token["logprob"] <= 0
    assert [token["id"] for token in details["tokens"]] == ids(STORY)[:5]


def test_texts_of_tokens_make_the_text(server: EdgeServer) -> None:
    body = server.generate(details=True, max_new_tokens=60).json()
    assert "".join(token["text"] for token in body["details"]["tokens"]) == body["generated_text"]


def test_eos_is_a_token_but_not_in_the_text(server: EdgeServer) -> None:
    server.engine.play = say(" the end", eos=True)
    body = server.generate(details=True).json()
    assert body["generated_text"] == " the end"
    assert body["details"]["finish_reason"] == "eos_token"
    last = body["details"]["tokens"][-1]
    assert (last["id"], last["text"], last["special"]) == (EOS, "<|endoftext|>", True)


def test_eos_as_the_last_allowed_token_reports_length(server: EdgeServer) -> None:
    said = [*ids(" the end"), EOS]
    server.engine.play = speak(said)
    body = server.generate(details=True, max_new_tokens=len(said)).json()
    assert body["details"]["finish_reason"] == "length"
    assert body["generated_text"] == " the end"


def test_return_full_text(server: EdgeServer) -> None:
    parameters = {"max_new_tokens": len(ids(STORY))}
    text = server.generate("é 😀:", return_full_text=True, **parameters).json()["generated_text"]
    assert text == "é 😀:" + STORY
    for value in (None, False):
        text = server.generate("Q:", return_full_text=value, **parameters).json()["generated_text"]
        assert text == STORY


def test_the_legacy_shape_is_an_array_with_the_prompt_in_front(server: EdgeServer) -> None:
    parameters = {"max_new_tokens": len(ids(STORY))}
    response = server.post("/", {"inputs": "Q:", "parameters": parameters})
    assert response.json() == [{"generated_text": "Q:" + STORY}]
    assert response.headers["x-generated-tokens"] == str(len(ids(STORY)))
    explicit = {"inputs": "Q:", "parameters": {**parameters, "return_full_text": False}}
    assert server.post("/", explicit).json() == [{"generated_text": STORY}]


def test_stream_is_ignored_on_generate(server: EdgeServer) -> None:
    body = {"inputs": "Q:", "stream": True, "parameters": {"max_new_tokens": 2}}
    response = server.post("/generate", body)
    assert response.headers["content-type"] == "application/json"


def test_headers(server: EdgeServer) -> None:
    headers = server.generate("é😀", details=True, max_new_tokens=7).headers
    assert headers["x-compute-type"] == "1-test"
    assert headers["x-compute-characters"] == "2"
    assert headers["x-prompt-tokens"] == str(len(ids("é😀")))
    assert headers["x-generated-tokens"] == "7"
    for name in ("total", "validation", "queue", "inference"):
        assert headers[f"x-{name}-time"].isdecimal()
    assert headers["x-time-per-token"].isdecimal()
    assert headers["x-queue-time"] == "1"
    whole, _, fraction = headers["x-compute-time"].partition(".")
    assert whole.isdecimal() and fraction.isdecimal()


def test_prompt_tokens_are_those_of_tokenize(server: EdgeServer) -> None:
    text = "The Congress of the United States"
    response = server.generate(text, max_new_tokens=1)
    tokens = server.post("/tokenize", {"inputs": text}).json()
    assert response.headers["x-prompt-tokens"] == str(len(tokens))
    assert server.engine.requests[-1].token_ids == [token["id"] for token in tokens]


def test_truncate_sends_the_last_tokens_and_returns_the_whole_prompt(server: EdgeServer) -> None:
    text = "The Congress of the United States"
    response = server.generate(text, truncate=3, max_new_tokens=1, return_full_text=True)
    assert response.headers["x-prompt-tokens"] == "3"
    assert server.engine.requests[-1].token_ids == ids(text)[-3:]
    assert response.json()["generated_text"].startswith(text)


def test_a_stop_string_stays_at_the_end_and_aborts(server: EdgeServer) -> None:
    body = server.generate(details=True, stop=["nothing", "sea"]).json()
    assert body["generated_text"] == " a story of the sea"
    assert body["details"]["finish_reason"] == "stop_sequence"
    assert server.engine.requests[-1].id in server.engine.aborted
    assert body["details"]["generated_tokens"] == len(body["details"]["tokens"])


def test_a_stop_string_over_several_tokens_and_inside_one(server: EdgeServer) -> None:
    body = server.generate(details=True, stop=["f the s"]).json()
    assert body["generated_text"] == " a story of the s"
    texts = [token["text"] for token in body["details"]["tokens"]]
    assert "".join(texts) == " a story of the s"
    assert len(texts) == len(ids(" a story of the sea"))


def test_a_stop_string_in_the_prompt_stops_nothing(server: EdgeServer) -> None:
    body = server.generate("stop", details=True, stop=["stop"], max_new_tokens=9).json()
    assert body["details"]["finish_reason"] == "length"


def test_a_stop_string_on_the_last_allowed_token_reports_length(server: EdgeServer) -> None:
    count = len(ids(" a story of the sea"))
    body = server.generate(details=True, stop=["se"], max_new_tokens=count).json()
    assert body["details"]["finish_reason"] == "length"
    assert body["generated_text"] == " a story of the se"


def test_an_empty_stop_string_stops_after_the_first_token(server: EdgeServer) -> None:
    details = server.generate(details=True, stop=[""]).json()["details"]
    assert (details["generated_tokens"], details["finish_reason"]) == (1, "stop_sequence")


def test_eos_wins_over_its_own_text_as_a_stop_string(server: EdgeServer) -> None:
    server.engine.play = say(" the end", eos=True)
    details = server.generate(details=True, stop=["<|endoftext|>"]).json()["details"]
    assert details["finish_reason"] == "eos_token"


def test_another_special_token_as_a_stop_string(server: EdgeServer) -> None:
    server.engine.play = speak([*ids(" the end"), *ids(">>TITLE<<"), *ids(" more")])
    body = server.generate(details=True, stop=["TITLE"]).json()
    assert body["generated_text"] == " the end"
    assert body["details"]["tokens"][-1]["text"] == ">>TITLE"
    assert body["details"]["finish_reason"] == "stop_sequence"


def test_stop_strings_in_a_merged_delta_drop_what_follows(server: EdgeServer) -> None:
    server.engine.play = speak(ids(STORY), per_delta=50)
    body = server.generate(details=True, stop=["sea"]).json()
    assert body["generated_text"] == " a story of the sea"
    assert body["details"]["finish_reason"] == "stop_sequence"


def test_top_tokens(server: EdgeServer) -> None:
    details = server.generate(details=True, top_n_tokens=3, max_new_tokens=4).json()["details"]
    assert len(details["top_tokens"]) == 4
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert top[0] == token
        logprobs = [entry["logprob"] for entry in top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert top[1]["text"] == TOKENIZER.token_text(top[1]["id"])
    for parameters in ({}, {"top_n_tokens": 0}, {"top_n_tokens": None}):
        details = server.generate(details=True, max_new_tokens=2, **parameters).json()["details"]
        assert "top_tokens" not in details


def test_a_character_cut_by_the_limit_does_not_empty_the_text(server: EdgeServer) -> None:
    said = ids("ok😀")
    server.engine.play = speak(said)
    body = server.generate(details=True, max_new_tokens=len(said) - 1).json()
    assert body["generated_text"] == "ok"
    assert body["details"]["generated_tokens"] == len(said) - 1


def test_line_separators_are_escaped(server: EdgeServer) -> None:
    server.engine.play = say("a\u2028b\x85c")
    response = server.generate(max_new_tokens=len(ids("a\u2028b\x85c")))
    assert response.json()["generated_text"] == "a\u2028b\x85c"
    assert "\u2028" not in response.text and "\x85" not in response.text


def test_non_finite_logprobs_are_null(server: EdgeServer) -> None:
    server.engine.play = speak(ids(STORY), logprob=float("-inf"))
    details = server.generate(details=True, max_new_tokens=1).json()["details"]
    assert details["tokens"][0]["logprob"] is None


def test_decoder_input_details_need_the_flag(server: EdgeServer) -> None:
    details = server.generate(decoder_input_details=True, max_new_tokens=1).json()["details"]
    assert details["prefill"] == []
    assert not server.engine.requests[-1].prompt_logprobs


def test_decoder_input_details_with_the_flag() -> None:
    with EdgeServer(enable_prefill_logprobs=True) as server:
        response = server.generate("Hello é", decoder_input_details=True, max_new_tokens=1)
        prefill = response.json()["details"]["prefill"]
        assert [entry["id"] for entry in prefill] == ids("Hello é")
        assert prefill[0]["logprob"] is None
        assert all(entry["logprob"] <= 0 for entry in prefill[1:])
        assert [entry["text"] for entry in prefill[:2]] == [
            TOKENIZER.token_text(entry["id"]) for entry in prefill[:2]
        ]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"stop": list("abcde")}, "stop"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "seed"),
        ({"grammar": {"type": "json", "value": {}}}, "grammar"),
        ({"adapter_id": "nope"}, "adapter_id"),
        ({"max_new_tokens": 129}, "max_new_tokens"),
    ],
)
def test_refused_values(server: EdgeServer, parameters: dict[str, object], name: str) -> None:
    before = server.value("tgi_request_failure", err="validation")
    response = server.generate(**parameters)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/json"
    error = response.json()
    assert list(error) == ["error", "error_type"]
    assert error["error_type"] == "validation"
    assert error["error"].startswith("Input validation error: ") and f"`{name}`" in error["error"]
    assert server.value("tgi_request_failure", err="validation") == before + 1


def test_metrics_of_one_request(server: EdgeServer) -> None:
    names = (
        "tgi_request_count", "tgi_request_success", "tgi_request_input_length_sum",
        "tgi_request_generated_tokens_sum", "tgi_request_max_new_tokens_sum",
        "tgi_request_duration_count", "tgi_request_queue_duration_count",
        "tiercel_time_to_first_token_seconds_count", "tiercel_inter_token_latency_seconds_count",
    )  # fmt: skip
    before = {name: server.value(name) for name in names}
    assert server.generate("Hello there", max_new_tokens=6).status_code == 200
    grown = {name: server.value(name) - before[name] for name in names}
    assert grown == dict(zip(names, (1, 1, len(ids("Hello there")), 6, 6, 1, 1, 1, 5), strict=True))
