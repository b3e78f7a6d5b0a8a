"""The plan as text: one card in detail, or all cards side by side. GB are 10^9 bytes."""

from tiercel.model.spec import FalconSpec, Position
from tiercel.plan.advice import Option, options, remedy, storages
from tiercel.plan.cards import CARDS, Card
from tiercel.plan.memory import Workload, plan_memory, plan_parts
from tiercel.plan.models import STATED_GB
from tiercel.plan.sizes import Storage, kv_bytes_per_token
from tiercel.plan.speed import decode_ms

SPEED_CONTEXT = 1024
SPEED_ROWS = 64
UNTRIED = "Several cards (--num-shard) are arithmetic: ranks have run on CPUs, on no GPU yet."


def overview(name: str, spec: FalconSpec, dtype: str, load: Workload) -> str:
    """All cards and all storages: KV tokens that fit, on as few cards as will do."""
    rows = [["", "needs GB", *CARDS]]
    for storage in storages(spec, dtype):
        anywhere = Card("any", 0)
        cells = [storage.label, _gb(plan_memory(spec, storage, anywhere, 1, load).needed)]
        for card in CARDS.values():
            fits = [o for o in options(spec, card, dtype, load) if o.storage == storage]
            cells.append(_cell(fits[0]) if fits else "no")
        rows.append(cells)
    return "\n".join(
        [
            *_title(name, spec, storages(spec, dtype)[0]),
            "",
            *_columns(rows),
            "",
            "needs: what weights, steps and one sequence of full length take on one card.",
            "Cells: tokens of KV cache, behind N x where N cards (--num-shard N) are the fewest.",
            *([UNTRIED] if any(" x " in cell for row in rows for cell in row) else []),
            *_stated(name, spec, dtype, load),
            "",
        ]
    )


def detail(
    name: str, spec: FalconSpec, storage: Storage, card: Card, num_shard: int, load: Workload
) -> str:
    """One setting on one kind of card: every part, what is left, what else would do."""
    plan = plan_memory(spec, storage, card, num_shard, load)
    cards = card.name if num_shard == 1 else f"{num_shard} x {card.name}, figures for each"
    lines = [*_title(name, spec, storage), "", f"{storage.label} on {cards}", ""]
    lines += _columns([[part.label, _gb(part.size)] for part in plan_parts(plan, load)])
    lines += ["", *_result(spec, storage, card, num_shard, load), "", "Settings that fit:"]
    found = list(options(spec, card, storage.dtype, load))
    best: dict[Storage, Option] = {}
    for option in found:
        best.setdefault(option.storage, option)
    lines += [
        f"  {option.label}: {option.plan.cache_tokens:,} tokens of KV cache"
        for option in best.values()
    ] or ["  none, on up to eight of these cards"]
    if num_shard > 1 or any(option.num_shard > 1 for option in best.values()):
        lines.append(UNTRIED)
    return "\n".join([*lines, *_stated(name, spec, storage.dtype, load), ""])


def _title(name: str, spec: FalconSpec, storage: Storage) -> list[str]:
    position = "ALiBi" if spec.position is Position.ALIBI else "rotary"
    per_token = kv_bytes_per_token(spec, storage)
    sequence = per_token * spec.max_positions
    return [
        f"{name}: {spec.num_layers} layers, hidden size {spec.hidden_size:,}, {spec.num_heads} "
        f"query and {spec.num_kv_heads} KV heads of {spec.head_dim}, {position}, "
        f"{spec.vocab_size:,} tokens",
        f"KV cache in {storage.dtype}: {per_token:,} bytes per token, {_gb(sequence)} GB per "
        f"sequence of {spec.max_positions:,} tokens",
    ]


def _result(
    spec: FalconSpec, storage: Storage, card: Card, num_shard: int, load: Workload
) -> list[str]:
    plan = plan_memory(spec, storage, card, num_shard, load)
    if not plan.fits:
        lacking = plan.sequence_tokens * plan.kv_per_token - plan.cache
        flag = remedy(spec, storage, card, num_shard, load)
        advice = f"change one flag: {flag}" if flag else "no single flag makes it fit"
        return [
            f"DOES NOT FIT: {_gb(lacking)} GB short of one sequence of {plan.sequence_tokens:,} "
            f"tokens; {advice}"
        ]
    lines = [
        f"fits: --max-batch-total-tokens {plan.cache_tokens} "
        f"({plan.full_sequences:,} sequences of {plan.sequence_tokens:,} tokens)"
    ]
    context = min(SPEED_CONTEXT, plan.sequence_tokens)
    one = decode_ms(spec, storage, card, 1, context, num_shard)
    many = decode_ms(spec, storage, card, SPEED_ROWS, context, num_shard)
    if one is None or many is None:
        return [*lines, "no bound of the speed: the card's is not known"]
    speed = f"bound of decoding at {context:,} tokens of context: {one:.2f} ms a step, "
    speed += f"{1e3 / one:,.0f} tokens/s for one sequence"
    if SPEED_ROWS * context <= plan.cache_tokens:
        rate = SPEED_ROWS * 1e3 / many
        speed += f"; {many:.2f} ms, {rate:,.0f} tokens/s for {SPEED_ROWS}"
    if num_shard > 1:
        speed += " (without the ranks' exchange)"
    return [*lines, speed]


def _cell(option: Option) -> str:
    shards = f"{option.num_shard} x " if option.num_shard > 1 else ""
    return f"{shards}{option.plan.cache_tokens:,}"


def _stated(name: str, spec: FalconSpec, dtype: str, load: Workload) -> list[str]:
    """The figures users know, beside ours; with the reason where they differ by more than 10%."""
    lines = []
    for (model, quantize), stated in STATED_GB.items():
        if name != model or dtype not in ("bfloat16", "float16"):
            continue
        needed = plan_memory(spec, Storage(quantize, False, dtype), Card("any", 0), 1, load).needed
        why = ""
        if abs(needed / (stated * 1e9) - 1) > 0.1:
            why = (
                f"; ours counts {load.prefill_tokens:,} prompt tokens a step, {load.max_rows} rows "
                "and CUDA graphs, theirs the weights and a short generation"
            )
        label = quantize or dtype
        lines.append(f"Published for {label}: about {stated} GB; planned {_gb(needed)} GB{why}")
    return ["", *lines] if lines else []


def _columns(rows: list[list[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
        ).rstrip()
        for row in rows
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
