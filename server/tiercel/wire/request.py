"""What the API process asks of the engine. It has been validated: the engine trusts it."""

import msgspec


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the generated text has to match as a whole. Checked and compiled once at the edge."""

    kind: str  # "json_schema" | "regex"
    text: str  # the schema as JSON text, or the regular expression


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is chosen. Values that change nothing are the defaults."""

    do_sample: bool = False  # resolved at the edge: any of the sampling fields switches it on
    temperature: float = 1.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    seed: int = 0  # unsigned 64 bits; always set, also when greedy
    top_n_tokens: int = 0
    watermark: bool = False
    presence_penalty: float = 0.0  # OpenAI's: l - p for every id in the generated text
    count_penalty: float = 0.0  # OpenAI's frequency penalty: l - f * count in the generated text
    logit_bias: list[tuple[int, float]] = []  # (id, added to its logit), ids within the logits


class GenerationRequest(msgspec.Struct, frozen=True, array_like=True):
    """One prompt to be continued by one sequence."""

    id: int  # unique within the API process
    token_ids: list[int]  # the prompt, at least one token
    max_new_tokens: int  # at least 1; prompt + max_new_tokens fits the context
    sampling: SamplingParams
    stop_token_ids: list[int]  # ends the sequence with reason "eos_token"
    prompt_logprobs: bool = False  # needs every prompt position, so the prefix cache is not read
    cache_salt: bytes = b""  # tenants with different salts never share cached blocks
    grammar: Grammar | None = None
    prompt_top_n: int = 0  # with prompt_logprobs: so many best tokens at each prompt position
    # When the edge sent it, time.monotonic(): one clock for all processes of a machine.
    arrival_s: float = 0.0
