"""From OpenAI's fields to the native parameters: what each one means here, and within which limits.

What the native routes limit in the same way is judged there (`validation.py`).
"""

from tiercel.api.openai.fields import MAX_CHOICES, SamplingFields
from tiercel.api.options import EdgeOptions
from tiercel.api.schema import GenerateParameters
from tiercel.api.validation import Extras
from tiercel.errors import ValidationError

MAX_TOP_LOGPROBS = 20  # OpenAI's limit
_UINT64 = 1 << 64
_MAX_BIAS = 100
# OpenAI ends at a temperature of 2, TGI nowhere; beyond 100 all of them are a fair die.
_RANGES = {
    "temperature": (0, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n": (1, MAX_CHOICES),
}


def generate_parameters(
    fields: SamplingFields, *, max_new_tokens: int | None, top_n_tokens: int | None = None
) -> GenerateParameters:
    """The native parameters of a request. Raises ValidationError.

    A temperature of 0 is greedy, whatever else is set; without one the request is sampled at 1.
    The penalties over the generated text are not native: see `extras_of`.
    """
    check_ranges(fields)
    greedy = fields.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else fields.temperature,
        top_p=None if greedy else _share(fields, "top_p"),
        top_k=None if greedy else _top_k(fields),
        typical_p=None if greedy else _share(fields, "typical_p"),
        repetition_penalty=fields.repetition_penalty,
        max_new_tokens=max_new_tokens,
        stop=fields.stop or [],
        seed=None if fields.seed is None else fields.seed % _UINT64,
        top_n_tokens=top_n_tokens,
        details=True,
        return_full_text=False,
    )


def extras_of(fields: SamplingFields, options: EdgeOptions) -> Extras:
    """What of a request is not native. Raises ValidationError."""
    return Extras(
        presence_penalty=fields.presence_penalty or 0.0,
        count_penalty=fields.frequency_penalty or 0.0,
        logit_bias=_logit_bias(fields, options),
        hide_stop=True,
        top_n_limit=MAX_TOP_LOGPROBS,
    )


def check_ranges(fields: SamplingFields) -> None:
    """Raises ValidationError for the first value out of its limits."""
    for name, (low, high) in _RANGES.items():
        value = getattr(fields, name)
        if value is not None and not low <= value <= high:
            raise ValidationError(f"`{name}` must be between {low} and {high}. Given: {value:g}")
    for name in ("top_p", "typical_p"):
        value = getattr(fields, name)
        if value is not None and not 0 < value <= 1:
            raise ValidationError(f"`{name}` must be greater than 0 and at most 1")
    _top_k(fields)


def _logit_bias(fields: SamplingFields, options: EdgeOptions) -> tuple[tuple[int, float], ...]:
    """(token id, what is added to its logit). Raises ValidationError: no such id, or too much."""
    biases = []
    for key, bias in (fields.logit_bias or {}).items():
        token_id = int(key)
        if token_id >= options.vocab_size:
            raise ValidationError(
                f"`logit_bias` token ids must be from 0 to {options.vocab_size - 1}. "
                f"Given: {token_id}"
            )
        if abs(bias) > _MAX_BIAS:
            raise ValidationError(
                f"`logit_bias` values must be between -{_MAX_BIAS} and {_MAX_BIAS}. Given: {bias:g}"
            )
        biases.append((token_id, bias))
    return tuple(biases)


def check_choices(fields: SamplingFields, options: EdgeOptions, *, sequences: int) -> None:
    """Refuses what the server could not run even when idle. Raises ValidationError."""
    check_ranges(fields)
    if sequences > options.max_concurrent_requests:
        raise ValidationError(
            f"`n` asks for {sequences} sequences at once: this server runs at most "
            f"{options.max_concurrent_requests}"
        )


def _share(fields: SamplingFields, name: str) -> float | None:
    """A probability mass. All of it is no restriction; the native routes refuse a 1 outright."""
    value: float | None = getattr(fields, name)
    return None if value == 1 else value


def _top_k(fields: SamplingFields) -> int | None:
    """0 and -1 mean off, as in other servers."""
    if fields.top_k is None or fields.top_k in (0, -1):
        return None
    if fields.top_k < 0:
        raise ValidationError("`top_k` must be strictly positive")
    return fields.top_k
