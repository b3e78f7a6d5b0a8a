"""What a request may ask for: pure checks, in the order the contract lists them (section 3.2).

The result is a type of its own, so that nothing unchecked can reach the engine. Whether there is
room for one more request is `admission.py`.
"""

from dataclasses import dataclass

from tiercel.api.grammar import grammar_of
from tiercel.api.options import EdgeOptions
from tiercel.api.schema import GenerateParameters
from tiercel.errors import ValidationError
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.request import Grammar, SamplingParams

# TGI generated in chunks of so many tokens and judged a request by its first chunk; the same
# requests are accepted here, and get min(max_new_tokens, what is left of the context).
JUDGED_NEW_TOKENS = 1024
SMALLEST_PENALTY = 1e-30  # logits divided by it are still float32


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: a text, or ids that stand for themselves."""

    text: str  # what `return_full_text` puts in front
    token_ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Extras:
    """What only OpenAI's routes can ask for. Ranges are checked by their schema."""

    presence_penalty: float = 0.0
    count_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: bool = False  # whatever the server's flag says
    prompt_top_n: int = 0
    default_stops: tuple[str, ...] = ()  # beside those of the request, without its limit
    hide_stop: bool = False  # the answer ends before the stop string
    top_n_limit: int | None = None  # instead of the server's
    grammar: Grammar | None = None


NO_EXTRAS = Extras()


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
    prompt_top_n: int = 0
    hide_stop: bool = False
    grammar: Grammar | None = None  # its form is right; whether it compiles is not known yet


def check_shape(parameters: GenerateParameters, options: EdgeOptions, *, stream: bool) -> int:
    """The number of sequences. Refuses what is refused even when the server is full.

    Raises ValidationError.
    """
    best_of = parameters.best_of
    if best_of is not None and best_of > 1 and options.max_best_of == 1:
        raise ValidationError("`best_of` is not allowed: the server's maximum is 1")
    if best_of is not None and best_of > options.max_best_of:
        raise ValidationError(f"`best_of` must be at most {options.max_best_of}. Given: {best_of}")
    if stream and best_of not in (None, 1):
        raise ValidationError("`best_of` must be 1 when streaming tokens")
    if stream and parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` is not available when streaming tokens")
    return max(1, best_of or 1)


def validate(
    prompt: Prompt,
    parameters: GenerateParameters,
    extras: Extras,
    options: EdgeOptions,
    tokenizer: Tokenizer,
    *,
    default_seed: int,
) -> ValidatedRequest:
    """Tokenizes, so it takes milliseconds for a long prompt. Raises ValidationError."""
    sampling = _sampling(parameters, extras, options, default_seed)
    _check_inputs(prompt, parameters, options)
    token_ids = _token_ids(prompt, tokenizer, options)
    if parameters.truncate is not None:
        token_ids = token_ids[-parameters.truncate :]
    max_new_tokens, judged = _length(len(token_ids), parameters.max_new_tokens, options)
    grammar = extras.grammar
    if parameters.grammar is not None:
        grammar = grammar_of(parameters.grammar)
    if grammar is not None and not options.grammar_support:
        raise ValidationError("grammar is not supported: `grammar` is disabled on this server")
    if parameters.adapter_id is not None:
        raise ValidationError(
            f"`adapter_id` {parameters.adapter_id[:200]!r} is not loaded: this server has no "
            "adapters; leave `adapter_id` out to use the base model"
        )
    return ValidatedRequest(
        inputs=prompt.text,
        token_ids=token_ids,
        max_new_tokens=max_new_tokens,
        judged_new_tokens=judged,
        sampling=sampling,
        stop=(*parameters.stop, *extras.default_stops),
        return_full_text=parameters.return_full_text,
        details=parameters.details or parameters.decoder_input_details,
        prompt_logprobs=extras.prompt_logprobs
        or (parameters.decoder_input_details and options.enable_prefill_logprobs),
        prompt_top_n=extras.prompt_top_n,
        hide_stop=extras.hide_stop,
        grammar=grammar,
    )


def _token_ids(prompt: Prompt, tokenizer: Tokenizer, options: EdgeOptions) -> list[int]:
    if prompt.token_ids is None:
        return tokenize(prompt.text, tokenizer, add_special_tokens=prompt.add_special_tokens)
    for token_id in prompt.token_ids:
        if not 0 <= token_id < options.vocab_size:
            raise ValidationError(
                f"`prompt` token ids must be from 0 to {options.vocab_size - 1}. Given: {token_id}"
            )
    return list(prompt.token_ids)


def tokenize(inputs: str, tokenizer: Tokenizer, *, add_special_tokens: bool = True) -> list[int]:
    """Raises ValidationError if the tokenizer cannot take the text or finds nothing in it."""
    try:
        token_ids = tokenizer.encode(inputs, add_special_tokens=add_special_tokens)
    except (ValueError, OverflowError) as error:
        raise ValidationError(f"tokenizer error: {error}") from error
    if not token_ids:
        raise ValidationError("tokenizer error: `inputs` has no tokens")
    return token_ids


def _sampling(
    parameters: GenerateParameters, extras: Extras, options: EdgeOptions, default_seed: int
) -> SamplingParams:
    several = parameters.best_of is not None and parameters.best_of > 1
    if several and not _asks_to_sample(parameters):
        raise ValidationError(
            "you must use sampling when `best_of` is > 1: set `do_sample`, `temperature`, "
            "`top_k`, `top_p` or `typical_p`"
        )
    _check_ranges(parameters)
    if len(parameters.stop) > options.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {options.max_stop_sequences} stop sequences. "
            f"Given: {len(parameters.stop)}"
        )
    if several and parameters.seed is not None:
        raise ValidationError("`seed` must not be set when `best_of` is > 1")
    top_n_tokens = parameters.top_n_tokens or 0
    top_n_limit = extras.top_n_limit or options.max_top_n_tokens
    if top_n_tokens > top_n_limit:
        raise ValidationError(
            f"`top_n_tokens` must be at most {top_n_limit}. Given: {top_n_tokens}"
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
        repetition_penalty=_repetition_penalty(parameters.repetition_penalty),
        frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        seed=default_seed if parameters.seed is None else parameters.seed,
        top_n_tokens=top_n_tokens,
        watermark=parameters.watermark,
        presence_penalty=extras.presence_penalty,
        count_penalty=extras.count_penalty,
        logit_bias=list(extras.logit_bias),
    )


def _asks_to_sample(parameters: GenerateParameters) -> bool:
    """TGI's router counted any value, also a temperature of 1 that changes nothing."""
    given = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    return parameters.do_sample or any(value is not None for value in given)


def _repetition_penalty(value: float | None) -> float:
    """As given, but for values so extreme that a logit would not be finite: of the same effect."""
    return min(max(_or(value, 1.0), SMALLEST_PENALTY), 1.0 / SMALLEST_PENALTY)


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


def _check_inputs(prompt: Prompt, parameters: GenerateParameters, options: EdgeOptions) -> None:
    if not prompt.text and not prompt.token_ids:
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
