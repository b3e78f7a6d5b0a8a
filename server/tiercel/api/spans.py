"""What a request's span says, and the spans of its phases below it. Nothing a user has written.

Attributes have TGI's names and values (text) beside those of the GenAI conventions.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tiercel.telemetry import genai
from tiercel.telemetry.traces import Attribute, Span, Stopwatch
from tiercel.wire.request import SamplingParams

_CHAT_ROUTES = ("/v1/chat/completions",)


class SequenceTimes(Protocol):
    """What is known of one sequence in the end; monotonic seconds."""

    queued_s: float | None
    started_s: float | None
    first_s: float | None
    done_s: float | None
    cached_tokens: int
    generated_tokens: int
    finish_reason: str
    detokenizing: Stopwatch | None


def request_attributes(
    sampling: SamplingParams, max_new_tokens: int, model: str, route: str
) -> dict[str, Attribute]:
    """What was asked for, once it is valid."""
    parameters = {"max_new_tokens": max_new_tokens, **msgspec.structs.asdict(sampling)}
    seed = parameters.pop("seed") if sampling.do_sample else None
    parameters["logit_bias"] = len(sampling.logit_bias)
    found: dict[str, Attribute] = {
        "parameters": msgspec.json.encode(parameters).decode(),
        "seed": f"{seed}",
        genai.OPERATION: "chat" if route in _CHAT_ROUTES else "text_completion",
        genai.PROVIDER: "tiercel",
        genai.REQUEST_MODEL: model,
        genai.RESPONSE_MODEL: model,
        genai.REQUEST_MAX_TOKENS: max_new_tokens,
    }
    if sampling.do_sample:
        found[genai.REQUEST_TEMPERATURE] = sampling.temperature
        found[genai.REQUEST_TOP_P] = sampling.top_p
        if sampling.top_k:
            found[genai.REQUEST_TOP_K] = sampling.top_k
        if sampling.seed < 1 << 63:  # attributes are signed
            found[genai.REQUEST_SEED] = sampling.seed
    if sampling.presence_penalty:
        found[genai.REQUEST_PRESENCE_PENALTY] = sampling.presence_penalty
    penalty = sampling.frequency_penalty or sampling.count_penalty
    if penalty:
        found[genai.REQUEST_FREQUENCY_PENALTY] = penalty
    return found


def usage_attributes(
    sequences: Sequence[SequenceTimes], input_tokens: int, outcome: str, more: Mapping[str, str]
) -> dict[str, Attribute]:
    """What came out of it."""
    found: dict[str, Attribute] = {
        genai.INPUT_TOKENS: input_tokens,
        genai.OUTPUT_TOKENS: sum(each.generated_tokens for each in sequences),
        genai.CACHED_TOKENS: sum(each.cached_tokens for each in sequences),
    }
    reasons = [genai.FINISH_REASONS[each.finish_reason] for each in sequences if each.finish_reason]
    if reasons:
        found[genai.RESPONSE_FINISH_REASONS] = reasons
    if len(sequences) > 1:
        found[genai.REQUEST_CHOICES] = len(sequences)
    if outcome != "done":
        found[genai.ERROR_TYPE] = more.get("error_type", outcome)
    return found


def phases(span: Span, sequence: SequenceTimes, ended_s: float, failure: str = "") -> None:
    """Spans for queue, prefill, decode and detokenize of one sequence, as far as it came.

    A sequence without an end of its own ended with its request, at `ended_s`, and the phase that it
    was in has the `failure`. Detokenizing happens between the tokens: its span begins with the
    first token and lasts as long as all of it took together.
    """
    if sequence.queued_s is None:
        return
    if sequence.done_s is not None:
        ended_s, failure = sequence.done_s, ""
    first_s, started_s = sequence.first_s, sequence.started_s
    if started_s is None:
        span.child("queue", sequence.queued_s, ended_s, failure=failure)
        return
    span.child("queue", sequence.queued_s, started_s)
    cached: dict[str, Attribute] = {genai.CACHED_TOKENS: sequence.cached_tokens}
    if first_s is None:
        span.child("prefill", started_s, ended_s, cached, failure=failure)
        return
    span.child("prefill", started_s, first_s, cached)
    tokens: dict[str, Attribute] = {genai.OUTPUT_TOKENS: sequence.generated_tokens}
    span.child("decode", first_s, ended_s, tokens, failure=failure)
    if sequence.detokenizing is not None:
        span.child("detokenize", first_s, first_s + sequence.detokenizing.total_s, tokens)
