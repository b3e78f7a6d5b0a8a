"""The CPU as a platform: steps run at once, in the calling thread, with torch's own operators."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from tiercel.attention.cpu import Arithmetic, CpuAttention
from tiercel.errors import ConfigError
from tiercel.layers.alibi import bias_table
from tiercel.layers.rotary import Rotary
from tiercel.layers.widened import decoding_dtype, fast_dtype, onednn_has
from tiercel.model.loader import LayerStyle
from tiercel.model.spec import Position
from tiercel.parallel.shard import Shard
from tiercel.parallel.take import take
from tiercel.plan.sizes import Storage
from tiercel.quantization.method import linear_method
from tiercel.wire.options import EngineOptions
from tiercel.wire.step import PromptLogprobs, RowFailure, RowSlice, RowStart, SampledToken
from tiercel.worker.agreement import agree
from tiercel.worker.footprint import growth
from tiercel.worker.inputs import Batch, gather, padded, padding_only
from tiercel.worker.machine import cores, free_bytes
from tiercel.worker.memory import HEADROOM
from tiercel.worker.platform import Drawn, ModelParts, RunnerParts
from tiercel.worker.prompt import owed_prompts
from tiercel.worker.threads import StepThreads
from tiercel.worker.warmup import DECODE_ROWS

# Longer chunks are rarer and, beside what they compute, what oneDNN needs to begin is little. So it
# is with slow models, which the time does not suffice for.
WARM_TOKENS = 512
WARM_UP_S = 1.0  # a model of 146M takes about as long


class CpuPlatform:
    """See Platform."""

    name = "cpu"
    device = torch.device("cpu")
    depth = 1
    clears_blocks = True

    def __init__(self, threads: int | None = None, *, neighbours: int = 1) -> None:
        """`threads`: of torch's operators; None: all cores this process may use.

        `neighbours`: ranks on this machine, this one included, that share its cores and memory.
        """
        self._threads = threads or max(1, cores() // neighbours)
        self._neighbours = neighbours
        torch.set_num_threads(self._threads)

    def parts(
        self, shard: Shard, storage: Storage, options: EngineOptions, max_tokens: int
    ) -> ModelParts:
        """See Platform."""
        if options.cpu_offload_gb:
            raise ConfigError(
                "--cpu-offload-gb on a CPU: all weights are in the host's memory; leave it out"
            )
        spec = shard.spec
        dtype: torch.dtype = getattr(torch, storage.dtype)
        rotary = bias = None
        if spec.position is Position.ALIBI:
            whole = bias_table(shard.whole.num_heads, spec.head_dim, max_tokens)
            bias = take(whole, 0, torch.tensor(shard.heads))
        else:
            rotary = Rotary(
                spec.head_dim,
                max_tokens,
                theta=spec.rope_theta,
                scaling=spec.rope_scaling,
                dtype=dtype,
            )
        attention = CpuAttention(
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            block_tokens=options.block_tokens,
            rotary=rotary,
            bias=bias,
            arithmetic=Arithmetic(fast_dtype(dtype), decoding_dtype(dtype)),
        )
        method = linear_method(storage.quantize, dtype, double_quant=storage.double_quant)
        return ModelParts(method, LayerStyle(), attention)

    def free_bytes(self) -> int:
        """See Platform."""
        return free_bytes() // self._neighbours

    def cache_bytes(self, fraction: float, trial: Callable[[], None]) -> int:
        """See Platform. Activations take what HEADROOM leaves; they are small here."""
        return int(self.free_bytes() * fraction * (1 - HEADROOM))

    def growth(self, run: Callable[[], None]) -> int | None:
        """See Platform."""
        return growth(run)

    def runner(self, parts: RunnerParts) -> "CpuRunner":
        """See Platform."""
        return CpuRunner(parts, self._threads)


class CpuFlight:
    """A step that is done already."""

    def __init__(
        self, prompts: list[PromptLogprobs], failures: list[RowFailure], drawn: Drawn
    ) -> None:
        self.prompts = prompts
        self.failures = failures
        self._drawn = drawn

    def land(self) -> Drawn:
        """See Flight."""
        return self._drawn


class CpuRunner:
    """See Runner. `sampler` may be replaced by one that watches."""

    def __init__(self, parts: RunnerParts, threads: int) -> None:
        self.sampler = parts.sampler
        self._model = parts.model
        self._attention: CpuAttention = parts.attention
        self._cache = parts.cache
        self._rows = parts.rows
        self._masks = parts.masks
        self._block_tokens = parts.options.block_tokens
        item_bytes = parts.cache.layers[0].slots.dtype.itemsize
        self._threads = StepThreads(threads, parts.weight_bytes, item_bytes)

    def start(self, start: RowStart) -> None:
        """See Runner."""
        self.sampler.start(start.row, start.sampling, start.prompt_tokens)

    def needs_tokens(self, row: int) -> bool:
        """See Runner. They always are there: one step is out at a time."""
        return False

    def add_blocks(self, row: int, blocks: list[int]) -> None:
        """See Runner. The worker's own table is the one in use."""

    def copy_blocks(self, copies: list[tuple[int, int, int]]) -> None:
        """See Runner."""
        self._cache.copy(copies)

    def warm_up(self) -> None:
        """See Runner: one layer for each number of tokens that steps are padded to.

        Decoding steps have run; they are not padded. On a CPU with AMX a first chunk took 25 ms
        more than the next one of its size, a quarter of a step among eight streams (146M). In
        float32 it is 3 ms beside 20; elsewhere no kernels of linear layers are made by size.
        """
        dtype = self._cache.layers[0].slots.dtype
        wanted = dtype is not torch.float32 and onednn_has(dtype)
        # Of all ranks, whose layers add up what they give: on unlike machines some might want it.
        if not self._model.ranks.smallest(int(wanted)):
            return
        ends = time.monotonic() + WARM_UP_S
        sizes = {padded(count) for count in range(DECODE_ROWS + 1, WARM_TOKENS + 1)}
        for tokens in sorted(sizes, reverse=True):
            if not self._model.ranks.smallest(int(time.monotonic() < ends)):
                break
            self._threads.use(tokens)  # oneDNN's kernels are for a number of threads, too
            inputs = padding_only(tokens, self._attention)
            x = self._model.embedding(inputs.tokens)
            self._model.layers[0](x, (), inputs, self._cache.layers[0])

    def run(self, slices: list[RowSlice]) -> CpuFlight:
        """See Runner."""
        self._threads.use(sum(each.count for each in slices))
        batch = gather(slices, self._rows, self._block_tokens, self._attention)
        # Here the forward has all cores, and a mask thread beside it delays every parallel region:
        # 16 grammars over 65,024 tokens added 23% to a greedy step of 146M, this way 15%.
        self._masks.settle([each.row for each in slices if each.sample])
        began = time.perf_counter()
        hidden = self._model.forward(batch.inputs, self._cache)
        prompts, failures = owed_prompts(self._model, batch, hidden, self._rows)
        results = self._sample(batch, hidden, {failure.row: failure for failure in failures})
        return CpuFlight(prompts, failures, Drawn(results, time.perf_counter() - began))

    def _sample(
        self, batch: Batch, hidden: torch.Tensor, failed: dict[int, RowFailure]
    ) -> list[SampledToken | RowFailure]:
        """Draw a token for every slice that asks for one and whose row has not failed."""
        chosen = [i for i, each in enumerate(batch.slices) if each.sample]
        if not chosen:
            return []
        index = torch.from_numpy(batch.drawn)
        # Of failed rows, too: other ranks do not know that they are, and add up the same numbers.
        logits = self._model.logits(hidden.index_select(0, index))
        rows = [batch.slices[i].row for i in chosen]
        drawn = None if logits is None else self._draw(logits, rows, failed)
        results = agree(self._model.ranks, rows, drawn)
        return [each for each in results if each.row not in failed]

    def _draw(
        self, logits: torch.Tensor, rows: list[int], failed: dict[int, RowFailure]
    ) -> list[SampledToken | RowFailure]:
        tokens: list[npt.NDArray[np.integer]] = [self._rows.all_tokens(row) for row in rows]
        drawn = self.sampler.sample(logits, rows, tokens, [len(each) for each in tokens])
        return [failed.get(each.row, each) for each in drawn]
