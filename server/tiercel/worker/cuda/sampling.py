"""DeviceSampler: draws on the device, with parameters that stay there from step to step.

Rows that want a bias per id, the watermark or top tokens are not its business: see `Sampler`. What
it draws from the same logits is what `Sampler` draws.
"""

import numpy as np
import torch

from tiercel.wire.request import SamplingParams
from tiercel.worker.cuda.rows import DeviceRows
from tiercel.worker.cuda.transfer import Uploads
from tiercel_kernels.ops import Ops
from tiercel_kernels.reference.penalties import Penalties
from tiercel_kernels.reference.sample import SampleParams

_TINY = float(torch.finfo(torch.float32).tiny)
_REALS = ("temperature", "top_p", "typical_p", "repetition", "frequency", "presence", "count")
_INTEGERS = ("top_k", "draws", "seed", "prompt_tokens")


class DeviceSampler:
    """For the rows of a DeviceRows."""

    def __init__(self, ops: Ops, rows: DeviceRows, uploads: Uploads) -> None:
        self._ops = ops
        self._rows = rows
        self._uploads = uploads
        count = rows.padding_row + 1
        # The padding row is greedy. On the host as bits, so that one upload carries all.
        self._reals = np.ones((len(_REALS), count))
        self._reals[_REALS.index("frequency") :] = 0.0
        self._integers = np.zeros((len(_INTEGERS), count), dtype=np.int64)
        device = rows.tokens.device
        self._device_reals = torch.from_numpy(self._reals).to(device)
        self._device_integers = torch.from_numpy(self._integers).to(device)
        self._special = [False] * count
        self._penalized = [False] * count
        self._dirty = False

    def start(self, row: int, params: SamplingParams, prompt_tokens: int) -> None:
        """A sequence takes the row."""
        temperature = max(params.temperature, _TINY)
        self._reals[:, row] = (
            temperature, params.top_p, params.typical_p, params.repetition_penalty,
            params.frequency_penalty, params.presence_penalty, params.count_penalty,
        )  # fmt: skip
        seed = params.seed - (1 << 64) if params.seed >= 1 << 63 else params.seed
        self._integers[:, row] = (params.top_k, params.do_sample, seed, prompt_tokens)
        self._special[row] = bool(params.logit_bias or params.watermark or params.top_n_tokens)
        self._penalized[row] = (
            params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
            or params.count_penalty != 0.0
        )
        self._dirty = True

    def special(self, row: int) -> bool:
        """Whether the row wants what only the host's sampler has."""
        return self._special[row]

    def penalized(self, row: int) -> bool:
        """Whether the row's logits depend on its tokens."""
        return self._penalized[row]

    def flush(self) -> None:
        """Send changed parameters; before a draw. Their place on the device stays the same."""
        if self._dirty:
            reals, integers = self._uploads.send(self._reals.view(np.int64), self._integers)
            self._device_reals.copy_(reals.view(torch.float64).view(self._reals.shape))
            self._device_integers.copy_(integers.view(self._integers.shape))
            self._dirty = False

    def draw(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        *,
        penalties: bool,
        words: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token per row and its logprob, int64 and float32 [n]; the rows' tokens go on by it.

        logits: [n, vocab], any float type, not changed; rows: int64 [n]; positions: int64 [n], of
        the tokens that are drawn. `penalties`: whether any row has some. `words`: the grammars'
        masks, int32 [n, words], all ones for rows without. Waits for nothing. A row whose logits
        are not finite has NaN.
        """
        reals = dict(zip(_REALS, self._device_reals[:, rows], strict=True))
        integers = dict(zip(_INTEGERS, self._device_integers[:, rows], strict=True))
        if penalties or words is not None:
            logits = logits.to(torch.float32, copy=True)
        if penalties:
            names = ("repetition", "frequency", "presence", "count")
            self._ops.penalties(
                logits,
                self._rows.tokens[rows],
                positions.int(),
                integers["prompt_tokens"].int(),
                Penalties(**{name: reals[name].float() for name in names}),
            )
        if words is not None:
            self._ops.vocab_mask(logits, words)
        params = SampleParams(
            temperature=reals["temperature"].float(),
            top_k=integers["top_k"].int(),
            top_p=reals["top_p"].contiguous(),
            typical_p=reals["typical_p"].contiguous(),
            draws=integers["draws"].int(),
            seed=integers["seed"].contiguous(),
            position=positions,
        )
        ids, logprobs = self._ops.sample(logits, params)
        # The padding row's token goes nowhere that is read.
        self._rows.tokens.index_put_((rows, positions), ids.int())
        return ids, logprobs
