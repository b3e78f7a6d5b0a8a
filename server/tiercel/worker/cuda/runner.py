"""CudaRunner: steps on the device, submitted without waiting for those before them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from tiercel.attention.paged import PagedAttention, PagedPlan, Slices
from tiercel.guidance.grammar import GrammarError
from tiercel.layers.inputs import StepInputs
from tiercel.plan.graphs import graph_sizes
from tiercel.sampling.sampler import NOT_FINITE
from tiercel.wire.step import PromptLogprobs, RowFailure, RowSlice, RowStart, SampledToken
from tiercel.worker.cuda.graphs import DecodeGraphs
from tiercel.worker.cuda.rows import DeviceRows, columns
from tiercel.worker.cuda.sampling import DeviceSampler
from tiercel.worker.cuda.transfer import Download, Downloads, Mark, Uploads
from tiercel.worker.inputs import Batch
from tiercel.worker.platform import Drawn, RunnerParts
from tiercel.worker.prompt import owed_prompts
from tiercel_kernels.ops import Ops


@dataclass(slots=True)
class CudaFlight:
    """See Flight. `drawn`: the rows of the download, in its order; -1 for one that is dropped."""

    prompts: list[PromptLogprobs]
    failures: list[RowFailure]
    drawn: list[int]
    special: list[SampledToken | RowFailure]
    download: Download

    def land(self) -> Drawn:
        """See Flight."""
        seconds = self.download.wait()
        ids, logprobs = self.download.ids.tolist(), self.download.logprobs.tolist()
        results = list(self.special)
        for row, token, logprob in zip(self.drawn, ids, logprobs, strict=True):
            if row < 0:
                continue
            if math.isfinite(logprob):
                results.append(SampledToken(row, token, logprob))
            else:
                results.append(RowFailure(row, NOT_FINITE))
        return Drawn(results, seconds, seconds)


class CudaRunner:
    """See Runner."""

    def __init__(self, parts: RunnerParts, ops: Ops, device: torch.device, depth: int) -> None:
        self.sampler = parts.sampler
        self._parts = parts
        self._model = parts.model
        self._attention: PagedAttention = parts.attention
        self._device = device
        self._uploads = Uploads(device)
        self._downloads = Downloads(device, parts.max_rows, depth)
        self._rows = DeviceRows(
            self._uploads,
            device,
            parts.max_rows,
            parts.max_total_tokens,
            parts.options.block_tokens,
        )
        self._draws = DeviceSampler(ops, self._rows, self._uploads)
        self._graphs: DecodeGraphs | None = None
        self._sizes = graph_sizes(parts.max_rows, parts.options.cuda_graph_sizes)

    def start(self, start: RowStart) -> None:
        """See Runner."""
        self._rows.start(start.row, start.token_ids)
        self._draws.start(start.row, start.sampling, start.prompt_tokens)
        if self._draws.special(start.row):
            self.sampler.start(start.row, start.sampling, start.prompt_tokens)

    def needs_tokens(self, row: int) -> bool:
        """See Runner: for a grammar's mask, and for what the host's sampler counts."""
        return self._draws.special(row) or self._parts.masks.constrains(row)

    def add_blocks(self, row: int, blocks: list[int]) -> None:
        """See Runner."""
        self._rows.add_blocks(row, blocks)

    def copy_blocks(self, copies: list[tuple[int, int, int]]) -> None:
        """See Runner. A tensor made of a list would wait for all steps that are under way."""
        sources, targets, counts = columns(copies)
        read, written = self._uploads.send(sources, targets)
        self._parts.cache.copy_at(read, written, counts.tolist())

    def warm_up(self) -> None:
        """Compile what only unusual draws launch; capture decoding steps, if they are to be."""
        options = self._parts.options
        if self._model.ranks.rank == 0:
            self._draw_unusual()
        if options.cuda_graphs and self._device.type == "cuda":
            self._graphs = DecodeGraphs(
                self._decode_logits, self._usual_draw, self._rows.padding_row, self._device
            )
            self._graphs.capture(self._sizes)

    def _draw_unusual(self) -> None:
        """A draw with penalties and a mask, of nobody: the first request with one does not compile.

        Its logits are float32, so that the sampler's kernel is another one too.
        """
        vocab = self._model.vocab_size
        row = torch.full((1,), self._rows.padding_row, device=self._device)
        words = torch.full((1, _mask_bytes(vocab) // 4), -1, dtype=torch.int32, device=self._device)
        logits = torch.zeros(1, vocab, device=self._device)
        self._draws.draw(logits, row, torch.zeros_like(row), penalties=True, words=words)

    def run(self, slices: list[RowSlice]) -> CudaFlight:
        """See Runner."""
        began = self._downloads.mark()
        self._rows.flush()
        self._draws.flush()
        ordered = [each for each in slices if each.count == 1]
        decodes = len(ordered)
        ordered += [each for each in slices if each.count > 1]
        owing = any(self._parts.rows.owed(each) for each in ordered)
        # A single token that draws nothing is the middle of a prompt: rare, and not captured.
        usual = decodes == len(ordered) and not owing and all(each.sample for each in ordered)
        size = next((each for each in self._sizes if each >= decodes), None) if usual else None
        if size is not None:
            return self._decode(ordered, size, began)
        return self._eager(ordered, decodes, owing, began)

    def _decode(self, ordered: list[RowSlice], size: int, began: Mark) -> CudaFlight:
        """A decoding step, padded to `size` rows: from its graphs, or as they were captured.

        With or without graphs the numbers are the same, since the shapes are.
        """
        rows = [each.row for each in ordered]
        padded = np.zeros((2, size), dtype=np.int64)
        padded[0] = self._rows.padding_row
        padded[:, : len(rows)] = rows, [each.start for each in ordered]
        (sent,) = self._uploads.send(padded)
        inputs = sent.view(2, size)
        captured = None if self._graphs is None else self._graphs.find(size)
        if captured is None:
            logits = self._decode_logits(inputs[0], inputs[1])
        else:
            inputs, logits = captured.inputs.copy_(inputs), captured.logits
            captured.model.replay()
        unusual = any(self.needs_tokens(row) or self._draws.penalized(row) for row in rows)
        if unusual and logits is not None:
            places = inputs[:, : len(rows)]
            logits = logits[: len(rows)]
            flight = self._draw(ordered, logits, places[0], places[1] + 1, [], [], began)
            self._share(inputs[0], inputs[1] + 1)
            return flight
        if captured is None:
            ids, logprobs = self._usual_draw(logits, inputs[0], inputs[1] + 1)
        else:
            captured.draw.replay()
            ids, logprobs = captured.ids, captured.logprobs
        download = self._downloads.fetch(ids[: len(rows)], logprobs[: len(rows)], began)
        return CudaFlight([], [], rows, [], download)

    def _eager(self, ordered: list[RowSlice], decodes: int, owing: bool, began: Mark) -> CudaFlight:
        numbers = np.array([(each.row, each.start, each.count) for each in ordered], dtype=np.int64)
        row, starts, counts = numbers.T
        firsts = np.cumsum(counts) - counts
        lasts = firsts + counts - 1
        row_of = np.repeat(row, counts)
        positions = np.arange(len(row_of)) + np.repeat(starts - firsts, counts)
        chosen = np.array([i for i, each in enumerate(ordered) if each.sample], dtype=np.int64)
        bounds = np.append(firsts[decodes:], len(row_of))
        sent = self._uploads.send(
            *(row_of, positions, row[decodes:], starts[decodes:], bounds),
            *(lasts[chosen], row[chosen], starts[chosen] + counts[chosen]),
        )
        longest = int(counts[decodes:].max(initial=0))
        inputs = self._inputs(sent[0], sent[1], decodes, sent[2:5], longest)
        if 0 < len(chosen) < len(row_of) and not owing:
            inputs = replace(inputs, wanted=sent[5])
        hidden = self._model.forward(inputs, self._parts.cache)
        prompts: list[PromptLogprobs] = []
        failures: list[RowFailure] = []
        if owing:
            batch = Batch(inputs, ordered, firsts, lasts[chosen])
            prompts, failures = owed_prompts(self._model, batch, hidden, self._parts.rows)
        sampling = [ordered[i] for i in chosen]
        if inputs.wanted is None:
            hidden = hidden.index_select(0, sent[5])
        logits = self._model.logits(hidden)
        if logits is None:
            ids, logprobs = self._follow(sent[6], sent[7])
            rows = [each.row for each in sampling]
            return CudaFlight([], [], rows, [], self._downloads.fetch(ids, logprobs, began))
        flight = self._draw(sampling, logits, sent[6], sent[7], prompts, failures, began)
        self._share(sent[6], sent[7])
        return flight

    def _inputs(
        self,
        row_of: torch.Tensor,
        positions: torch.Tensor,
        decodes: int,
        slices: list[torch.Tensor],
        longest: int,
    ) -> StepInputs:
        """Gather a step on the device. slices: rows, starts and bounds of those of many tokens."""
        one = part = None
        if decodes:
            one = self._attention.decodes(
                self._rows.blocks[row_of[:decodes]],
                self._rows.contexts(row_of[:decodes], positions[:decodes]),
            )
        if longest:
            rows, starts, bounds = slices
            part = Slices(self._rows.blocks[rows], starts.int(), bounds.int(), longest)
        gathered = self._rows.gather(row_of, positions)
        return StepInputs(gathered.tokens, gathered.slots, PagedPlan(positions, one, part))

    def _decode_logits(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """A decoding step up to its logits, which the first rank has; nothing of it waits."""
        inputs = self._inputs(rows, positions, rows.shape[0], [], 0)
        return self._model.logits(self._model.forward(inputs, self._parts.cache))

    def _usual_draw(
        self, logits: torch.Tensor | None, rows: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if logits is None:
            return self._follow(rows, positions)
        drawn = self._draws.draw(logits, rows, positions, penalties=False)
        self._share(rows, positions)
        return drawn

    def _share(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """The other ranks get the tokens that have been drawn there; nothing of it waits."""
        if self._model.ranks.size > 1:
            self._model.ranks.share(self._rows.tokens[rows, positions])

    def _follow(
        self, rows: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The other end of `_share`: ids, and zeros for logprobs that nobody asks here."""
        ids = self._model.ranks.share(self._rows.tokens[rows, positions])
        self._rows.tokens.index_put_((rows, positions), ids)
        return ids.long(), torch.zeros(len(ids), device=ids.device)

    def _draw(
        self,
        sampling: list[RowSlice],
        logits: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        prompts: list[PromptLogprobs],
        failures: list[RowFailure],
        began: Mark,
    ) -> CudaFlight:
        """Draw for slices of which some may want more than the usual.

        logits, rows, positions: of `sampling`, in its order; positions of the drawn tokens.
        """
        numbers = [each.row for each in sampling]
        special = [i for i, row in enumerate(numbers) if self._draws.special(row)]
        results = self._draw_special(sampling, logits, special) if special else []
        words, broken = self._masks(numbers)
        penalties = any(self._draws.penalized(row) for row in numbers)
        ids, logprobs = self._draws.draw(logits, rows, positions, penalties=penalties, words=words)
        # The device has drawn for the special rows too, in vain: theirs goes over it.
        good = [each for each in results if isinstance(each, SampledToken)]
        if good:
            ends = {each.row: each.start + each.count for each in sampling}
            self._rows.put([(each.row, ends[each.row], each.token_id) for each in good])
        failures = failures + broken
        failed = {failure.row for failure in failures} | {numbers[i] for i in special}
        return CudaFlight(
            prompts,
            failures,
            [-1 if row in failed else row for row in numbers],
            results,
            self._downloads.fetch(ids, logprobs, began),
        )

    def _draw_special(
        self, sampling: list[RowSlice], logits: torch.Tensor, special: list[int]
    ) -> list[SampledToken | RowFailure]:
        """By the host's sampler, which waits for the device."""
        rows = [sampling[i].row for i in special]
        tokens: list[npt.NDArray[np.integer]] = [self._parts.rows.all_tokens(row) for row in rows]
        return self.sampler.sample(logits[special], rows, tokens, [len(each) for each in tokens])

    def _masks(self, rows: list[int]) -> tuple[torch.Tensor | None, list[RowFailure]]:
        """The grammars' masks, int32 [rows, words], all ones where there is none, or none at all.

        A grammar that cannot go on fails its row.
        """
        masks = self._parts.masks
        constrained = [i for i, row in enumerate(rows) if masks.constrains(row)]
        if not constrained:
            return None, []
        size = _mask_bytes(self._model.vocab_size)
        words = np.full((len(rows), size), 0xFF, dtype=np.uint8)
        broken = []
        for i in constrained:
            try:
                allowed = masks.allowed(rows[i : i + 1])[0]
                words[i, : len(allowed)] = allowed[:size]
            except GrammarError as error:
                broken.append(RowFailure(rows[i], str(error)))
        (sent,) = self._uploads.send(words.view(np.int64))
        return sent.view(torch.int32).view(len(rows), -1), broken


def _mask_bytes(vocab: int) -> int:
    """A bit per token, and so many that they go as int64."""
    return -(-vocab // 64) * 8
