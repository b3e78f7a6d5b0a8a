"""CudaPlatform: what a model is built from on a GPU, and how much of its memory the cache gets."""

import logging
from collections.abc import Callable
from functools import partial

import torch

from tiercel.attention.paged import PagedAttention
from tiercel.errors import ConfigError
from tiercel.layers.alibi import slopes
from tiercel.layers.fork import Fork, SideStream, in_turn
from tiercel.layers.fused import FusedResidualNorm
from tiercel.layers.rotary import Rotary
from tiercel.model.loader import LayerStyle
from tiercel.model.spec import Position
from tiercel.parallel.shard import Shard
from tiercel.parallel.take import take
from tiercel.plan.graphs import graph_sizes
from tiercel.plan.memory import graph_bytes
from tiercel.plan.offload import offload_sentence, offloaded_layers
from tiercel.plan.sizes import Storage
from tiercel.quantization.fused import FusedUnquantized
from tiercel.quantization.method import LinearMethod
from tiercel.quantization.offloaded import Offloaded
from tiercel.quantization.on_device import OnDevice
from tiercel.quantization.staging import Staging
from tiercel.wire.options import EngineOptions
from tiercel.worker.cuda.runner import CudaRunner
from tiercel.worker.footprint import growth
from tiercel.worker.platform import ModelParts, RunnerParts
from tiercel_kernels.choose import MINIMUM_CAPABILITY, DeviceTooOld, choose_ops
from tiercel_kernels.ops import Ops

logger = logging.getLogger(__name__)

# Of the card's memory, what is left to others and to fragmentation: TGI's TGI_WIGGLE_ROOM.
WIGGLE_ROOM = 0.05
GIB = 1 << 30


class CudaPlatform:
    """See Platform. `ops` on another device are for tests: all but graphs runs there."""

    name = "cuda"
    clears_blocks = False  # the kernels never use what lies behind a row's end

    def __init__(self, device: torch.device, ops: Ops, *, overlap: bool = True) -> None:
        self.device = device
        self.depth = 2 if overlap else 1
        self._ops = ops
        self.graph_bytes = 0  # of the model that `parts` is for: an estimate, kept free for them

    @classmethod
    def open(cls, options: EngineOptions, place: int = 0) -> "CudaPlatform":
        """The visible GPU number `place`. Raises ConfigError if it cannot be used."""
        if not torch.cuda.is_available():
            built = torch.version.cuda or "no CUDA"
            raise ConfigError(
                f"--device cuda: no GPU can be used (torch {torch.__version__} is built for "
                f"{built}); install a driver and a CUDA build of torch, or use --device cpu"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
        try:
            ops = choose_ops(device)
        except DeviceTooOld as error:
            raise ConfigError(f"--device cuda: {error}; use --device cpu") from error
        torch.backends.cuda.matmul.allow_tf32 = False  # float32 is for tests, and means float32
        return cls(device, ops, overlap=options.overlap)

    def parts(
        self, shard: Shard, storage: Storage, options: EngineOptions, max_tokens: int
    ) -> ModelParts:
        """See Platform. Raises ConfigError for what this GPU or this path does not have."""
        spec = shard.spec
        dtype: torch.dtype = getattr(torch, storage.dtype)
        if dtype is torch.bfloat16 and self._capability() < (8, 0):
            raise ConfigError(
                "--dtype bfloat16 needs a GPU of compute capability 8.0; this one has "
                f"{'.'.join(map(str, self._capability()))}: use --dtype float16"
            )
        sizes = _graph_sizes(options)
        self.graph_bytes = graph_bytes(shard.whole, storage, shard.ranks, sizes, max_tokens)
        rotary = biases = None
        if spec.position is Position.ALIBI:
            biases = take(slopes(shard.whole.num_heads), 0, torch.tensor(shard.heads))
            biases = biases.to(self.device)
        else:
            rotary = Rotary(
                spec.head_dim,
                max_tokens,
                theta=spec.rope_theta,
                scaling=spec.rope_scaling,
                dtype=dtype,
                device=self.device,
            )
        attention = PagedAttention(
            self._ops,
            spec,
            block_tokens=options.block_tokens,
            max_tokens=max_tokens,
            rotary=rotary,
            slopes=biases,
        )
        plain = FusedUnquantized(self._ops, dtype, self.device)
        host_layers = offloaded_layers(shard, storage, options.cpu_offload_gb)
        joined = options.joined_output and storage.quantize is None and not host_layers
        if host_layers:
            logger.warning(offload_sentence(shard, storage, host_layers))
        staging = Staging(dtype, self.device)
        at_host = Offloaded(self._ops, dtype, self.device, staging) if host_layers else None
        style = LayerStyle(
            residual_norm=partial(FusedResidualNorm, self._ops),
            # Staged weights have one place on the device: no two branches at once.
            fork=in_turn if host_layers or storage.quantize else self._fork(options),
            joined=plain if joined else None,
            host_layers=host_layers,
            host_method=at_host,
        )
        return ModelParts(self._method(storage, plain, dtype, staging), style, attention, staging)

    def free_bytes(self) -> int:
        """See Platform."""
        if self.device.type != "cuda":
            return 1 * GIB
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)

    def cache_bytes(self, fraction: float, trial: Callable[[], None]) -> int:
        """See Platform: the largest steps run for real, and what they took at most is left free."""
        if self.device.type != "cuda":
            trial()
            return self.free_bytes()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        trial()
        torch.cuda.synchronize(self.device)
        steps = torch.cuda.max_memory_allocated(self.device) - before
        free = self.free_bytes()
        _, total = torch.cuda.mem_get_info(self.device)
        unused = free - (1 - fraction * (1 - WIGGLE_ROOM)) * total
        cache = max(0, int(unused) - steps - self.graph_bytes)
        logger.info(
            "memory on %s: %.2f GiB free beside the weights; the largest steps took %.2f, with "
            "their trial cache; %.2f GiB are kept for graphs, %.2f for others: %.2f for the cache",
            self.device, free / GIB, steps / GIB, self.graph_bytes / GIB, (free - unused) / GIB,
            cache / GIB,
        )  # fmt: skip
        return cache

    def growth(self, run: Callable[[], None]) -> int | None:
        """See Platform."""
        if self.device.type != "cuda":
            return growth(run)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def runner(self, parts: RunnerParts) -> CudaRunner:
        """See Platform."""
        return CudaRunner(parts, self._ops, self.device, self.depth)

    def _method(
        self, storage: Storage, plain: FusedUnquantized, dtype: torch.dtype, staging: Staging
    ) -> LinearMethod:
        if storage.quantize is None:
            return plain
        return OnDevice(
            storage.quantize,
            dtype,
            double_quant=storage.double_quant,
            device=self.device,
            ops=self._ops,
            plain=plain,
            staging=staging,
        )

    def _fork(self, options: EngineOptions) -> Fork:
        if options.fork_attention and self.device.type == "cuda":
            return SideStream(self.device)
        return in_turn

    def _capability(self) -> tuple[int, int]:
        if self.device.type != "cuda":
            return MINIMUM_CAPABILITY[0] + 1, 0
        return torch.cuda.get_device_capability(self.device)


def _graph_sizes(options: EngineOptions) -> list[int]:
    max_rows = options.max_batch_size or options.max_concurrent_requests
    return graph_sizes(max_rows, options.cuda_graph_sizes) if options.cuda_graphs else []
