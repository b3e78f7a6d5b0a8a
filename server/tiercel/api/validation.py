"""What a request may ask for: pure checks, in the order the contract lists them (section 3.2).

The result is a type of its own, so that nothing unchecked can reach the engine. Whether there is
room for one more request is `admission.py`.
"""

from dataclasses import dataclass

from tiercel.api.options import EdgeOptions
from tiercel.api.schema import GenerateParameters, GenerateRequest
from tiercel.errors import ValidationError
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.request import SamplingParams

# TGI generated in chunks of so many tokens and judged a request by its first chunk; the same
# requests are accepted here, and get min(max_new_tokens, what is left of the context).
JUDGED_NEW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ValidatedRequest:
    """A request whose every value is within its limits."""

    inputs: str
    token_ids: list[int]  # after truncation
    max_new_tokens: int  # fits the context
    judged_new_tokens: int  # what was asked for, as the contract's metric counts it
    sampling: SamplingParams
    stop: tuple[str, ...]
    return_full_text: bool | None
    details: bool
    prompt_logprobs: bool


def check_shape(parameters: GenerateParameters, *, stream: bool) -> None:
    """What is refused even when the server is full. Raises ValidationError."""
    best_of = parameters.best_of
    if best_of is not None and best_of > 1:
        raise ValidationError(f"`best_of` > 1 is not supported by this server. Given: {best_of}")
    if stream and best_of not in (None, 1):
        raise ValidationError("`best_of` must be 1 when streaming tokens")
    if stream and parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` is not available when streaming tokens")


def validate(
    body: GenerateRequest, options: EdgeOptions, tokenizer: Tokenizer, *, default_seed: int
) -> ValidatedRequest:
    """Tokenizes, so it takes milliseconds for a long prompt. Raises ValidationError."""
    parameters = body.parameters
    sampling = _sampling(parameters, options, default_seed)
    _check_inputs(body.inputs, parameters, options)
    token_ids = tokenize(body.inputs, tokenizer)
    if parameters.truncate is not None:
        token_ids = token_ids[-parameters.truncate :]
    max_new_tokens, judged = _length(len(token_ids), parameters.max_new_tokens, options)
    if parameters.grammar is not None:
        raise ValidationError("`grammar` is given, but grammar is not supported by this server")
    if parameters.adapter_id is not None:
        raise ValidationError("`adapter_id` is given, but adapters are not supported")
    return ValidatedRequest(
        inputs=body.inputs,
        token_ids=token_ids,
        max_new_tokens=max_new_tokens,
        judged_new_tokens=judged,
        sampling=sampling,
        stop=tuple(parameters.stop),
        return_full_text=parameters.return_full_text,
        details=parameters.details or parameters.decoder_input_details,
        prompt_logprobs=parameters.decoder_input_details and options.enable_prefill_logprobs,
    )


def tokenize(inputs: str, tokenizer: Tokenizer) -> list[int]:
    """Raises ValidationError if the tokenizer cannot take the text or finds nothing in it."""
    try:
        token_ids = tokenizer.encode(inputs)
    except (ValueError, OverflowError) as error:
        raise ValidationError(f"tokenizer error: {error}") from error
    if not token_ids:
        raise ValidationError("tokenizer error: `inputs` has no tokens")
    return token_ids


def _sampling(
    parameters: GenerateParameters, options: EdgeOptions, default_seed: int
) -> SamplingParams:
    _check_ranges(parameters)
    if len(parameters.stop) > options.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {options.max_stop_sequences} stop sequences. "
            f"Given: {len(parameters.stop)}"
        )
    top_n_tokens = parameters.top_n_tokens or 0
    if top_n_tokens > options.max_top_n_tokens:
        raise ValidationError(
            f"`top_n_tokens` must be at most {options.max_top_n_tokens}. Given: {top_n_tokens}"
        )
    temperature = _or(parameters.temperature, 1.0)
    top_p = _or(parameters.top_p, 1.0)
    typical_p = _or(parameters.typical_p, 1.0)
    top_k = parameters.top_k or 0
    return SamplingParams(
        do_sample=(
            parameters.do_sample
            or temperature != 1.0
            or top_k > 0
            or top_p < 1.0
            or typical_p < 1.0
        ),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        typical_p=typical_p,
        repetition_penalty=_or(parameters.repetition_penalty, 1.0),
        frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        seed=default_seed if parameters.seed is None else parameters.seed,
        top_n_tokens=top_n_tokens,
        watermark=parameters.watermark,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_ranges(parameters: GenerateParameters) -> None:
    if parameters.temperature is not None and parameters.temperature <= 0.0:
        raise ValidationError("`temperature` must be strictly positive")
    if parameters.repetition_penalty is not None and parameters.repetition_penalty <= 0.0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if parameters.frequency_penalty is not None and abs(parameters.frequency_penalty) > 2.0:
        raise ValidationError("`frequency_penalty` must be between -2.0 and 2.0")
    for name in ("top_p", "typical_p"):
        value = getattr(parameters, name)
        if value is not None and not 0.0 < value < 1.0:
            raise ValidationError(f"`{name}` must be greater than 0.0 and less than 1.0")
    if parameters.top_k is not None and parameters.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    if parameters.max_new_tokens == 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")


def _check_inputs(inputs: str, parameters: GenerateParameters, options: EdgeOptions) -> None:
    if not inputs:
        raise ValidationError("`inputs` cannot be empty")
    truncate = parameters.truncate
    if truncate is not None and not 0 < truncate <= options.max_input_tokens:
        raise ValidationError(
            f"`truncate` must be between 1 and {options.max_input_tokens}. Given: {truncate}"
        )


def _length(
    input_tokens: int, asked_new_tokens: int | None, options: EdgeOptions
) -> tuple[int, int]:
    """(new tokens to generate, new tokens the request is judged by); contract 2.7."""
    left = max(0, options.max_total_tokens - input_tokens)
    asked = left if asked_new_tokens is None else asked_new_tokens
    judged = min(asked, JUDGED_NEW_TOKENS)
    if input_tokens + judged > options.max_total_tokens:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be at most {options.max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {judged} `max_new_tokens`"
        )
    if input_tokens > options.max_input_tokens:
        raise ValidationError(
            f"`inputs` must have at most {options.max_input_tokens} tokens. Given: {input_tokens}"
        )
    return min(asked, left), judged
