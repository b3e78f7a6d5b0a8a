"""`tiercel plan`: from the command line's words to the tables on stdout."""

from dataclasses import dataclass

from tiercel.errors import ConfigError, OutOfMemory
from tiercel.plan.cards import card
from tiercel.plan.memory import Workload, plan_memory
from tiercel.plan.report import detail, overview
from tiercel.plan.sizes import ITEM_BYTES, chosen_storage
from tiercel.plan.source import named_spec


@dataclass(frozen=True)
class PlanRequest:
    """What was asked, as the flags name it. None: not given."""

    model: str
    gpu: str | None = None
    num_shard: int = 1
    quantize: str | None = None
    double_quant: bool = False
    dtype: str | None = None
    max_batch_prefill_tokens: int = 4096
    max_batch_size: int = 128
    max_total_tokens: int | None = None
    revision: str | None = None


def run_plan(request: PlanRequest) -> int:
    """Print the plan; the exit code. Raises ConfigError for what cannot be."""
    text, code = plan_text(request)
    print(text, end="")  # noqa: T201 (the answer of the command)
    return code


def plan_text(request: PlanRequest) -> tuple[str, int]:
    """The plan and the exit code: 0, or 5 where the setting does not fit the card."""
    for flag in ("num_shard", "max_batch_prefill_tokens", "max_batch_size", "max_total_tokens"):
        value = getattr(request, flag)
        if value is not None and not 1 <= value < 1 << 31:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be at least 1")
    if request.dtype is not None and request.dtype not in ITEM_BYTES:
        raise ConfigError(f"--dtype {request.dtype} is not one of {', '.join(ITEM_BYTES)}")
    name, spec = named_spec(request.model, request.revision)
    dtype = request.dtype or spec.dtype
    storage = chosen_storage(spec, request.quantize, request.double_quant, dtype)
    load = Workload(
        request.max_batch_prefill_tokens, request.max_batch_size, request.max_total_tokens
    )
    if request.gpu is None:
        if request.quantize is not None or request.num_shard != 1:
            raise ConfigError("--quantize and --num-shard need --gpu: without it all are compared")
        return overview(name, spec, storage.dtype, load), 0
    chosen = card(request.gpu)
    fits = plan_memory(spec, storage, chosen, request.num_shard, load).fits
    text = detail(name, spec, storage, chosen, request.num_shard, load)
    return text, 0 if fits else OutOfMemory.exit_code
