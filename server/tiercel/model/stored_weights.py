"""The tensors that bitsandbytes saves for one quantized weight: which there must be, and reading.

8 bits: `weight` int8, `SCB` (row absmax) and `weight_format`. 4 bits: `weight` uint8 [n / 2, 1],
`weight.absmax`, `weight.quant_map`, with double quantization `weight.nested_absmax` and
`weight.nested_quant_map`, and a JSON text `weight.quant_state.bitsandbytes__<kind>`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tiercel.errors import WeightsError
from tiercel.foreign_files import BadFile, parse_object, shown
from tiercel.model.safetensors_file import TensorEntry, weights_error
from tiercel.model.spec import StoredQuantization
from tiercel.quantization.stored import Nested, Stored, StoredFourBit, StoredInt8
from tiercel.quantization.tables import BLOCK, NESTED_BLOCK, four_bit_table

STATE_LIMIT_BYTES = 4096
QUANTIZED_DTYPES = ("I8", "U8")
Read = Callable[[TensorEntry], torch.Tensor]


@dataclass(frozen=True)
class StoredEntries:
    """Where the parts of one quantized weight lie, by their names behind the weight's."""

    shape: tuple[int, int]  # of the weight in numbers
    quantization: StoredQuantization
    weight: TensorEntry
    parts: dict[str, TensorEntry]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + sum(entry.nbytes for entry in self.parts.values())

    def read(self, read: Read) -> Stored:
        """All of it, checked. `read` gives one tensor in the file's dtype.

        Raises WeightsError for statistics that cannot be, or another layout of 4 bits.
        """
        if self.quantization.quantize == "bitsandbytes":
            layout = self.parts.get("weight_format")
            if layout is not None and int(read(layout)) != 0:
                raise self._error("weight_format", "is not 0: the rows are in another order")
            return StoredInt8(read(self.weight), self._statistics(read, "SCB"))
        return self._four_bits(read)

    def _statistics(self, read: Read, name: str) -> torch.Tensor:
        values = read(self.parts[name]).float()
        if bool((values < 0).any()):
            raise self._error(name, "holds a negative absmax")
        return values

    def _four_bits(self, read: Read) -> StoredFourBit:
        kind = self.quantization.quantize.rpartition("-")[2]
        state = self._state(read, kind)
        if not torch.allclose(read(self.parts["quant_map"]).float(), four_bit_table(kind)):
            raise self._error("quant_map", f"is not the table of {kind}")
        codes = read(self.weight).view(-1)
        if not self.quantization.double_quant:
            return StoredFourBit(kind, self.shape, codes, self._statistics(read, "absmax"))
        offset = state.get("nested_offset")
        if not isinstance(offset, int | float) or not math.isfinite(offset):
            raise self._state_error(kind, "nested_offset", offset, "a finite number")
        table = read(self.parts["nested_quant_map"]).float()
        outer = self._statistics(read, "nested_absmax")
        nested = Nested(read(self.parts["absmax"]), outer, table, float(offset))
        return StoredFourBit(kind, self.shape, codes, nested)

    def _state(self, read: Read, kind: str) -> dict[str, object]:
        name = f"quant_state.bitsandbytes__{kind}"
        try:
            state = parse_object(bytes(read(self.parts[name]).tolist()))
        except BadFile as bad:
            raise self._error(name, bad) from bad
        wanted: dict[str, object] = {
            "quant_type": kind,
            "blocksize": BLOCK,
            "shape": list(self.shape),
        }
        if self.quantization.double_quant:
            wanted["nested_blocksize"] = NESTED_BLOCK
        for field, value in wanted.items():
            if state.get(field) != value:
                raise self._state_error(kind, field, state.get(field), shown(value))
        return state

    def _state_error(self, kind: str, field: str, value: object, must: str) -> WeightsError:
        return self._error(
            f"quant_state.bitsandbytes__{kind}", f"says {field} {shown(value)}; it must be {must}"
        )

    def _error(self, name: str, reason: object) -> WeightsError:
        return weights_error(
            self.parts[name].file,
            f"tensor {shown(self.parts[name].name)} {reason}",
            "save the quantized model again with bitsandbytes",
        )


def take_stored(
    found: dict[str, TensorEntry],
    linears: dict[str, tuple[int, ...]],
    quantization: StoredQuantization,
) -> dict[str, StoredEntries]:
    """Remove from `found` what belongs to quantized weights, and return it by the weight's name.

    `linears`: the weights that may be quantized and their shapes; those in a float dtype stay in
    `found`. Raises WeightsError for a part that is missing or misshapen, or if no weight at all is
    quantized.
    """
    taken: dict[str, StoredEntries] = {}
    for name, shape in linears.items():
        entry = found.get(name)
        if entry is None or entry.dtype not in QUANTIZED_DTYPES:
            continue
        del found[name]
        taken[name] = _stored_entries(found, name, entry, (shape[0], shape[1]), quantization)
    if not taken and found:
        raise weights_error(
            next(iter(found.values())).file,
            "holds no quantized weight, but config.json's quantization_config says so",
            "remove quantization_config from config.json if the weights are the original ones",
        )
    return taken


def _stored_entries(
    found: dict[str, TensorEntry],
    name: str,
    entry: TensorEntry,
    shape: tuple[int, int],
    quantization: StoredQuantization,
) -> StoredEntries:
    eight = quantization.quantize == "bitsandbytes"
    numbers = math.prod(shape)
    wanted = ("I8", shape) if eight else ("U8", (-(-numbers // 2), 1))
    _check(entry, *wanted, quantization)
    parts: dict[str, TensorEntry] = {}
    prefix = name.removesuffix("weight") if eight else name + "."
    for part, (dtype, part_shape) in _parts(shape, quantization).items():
        optional = part == "weight_format"
        other = found.pop(prefix + part, None)
        if other is None and not optional:
            raise weights_error(
                entry.file,
                f"tensor {shown(entry.name)} is quantized, but there is no {shown(prefix + part)}",
                "save the quantized model again with bitsandbytes",
            )
        if other is not None:
            _check(other, dtype, part_shape, quantization)
            parts[part] = other
    return StoredEntries(shape, quantization, entry, parts)


def _parts(
    shape: tuple[int, int], quantization: StoredQuantization
) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """dtype and shape of every part beside the weight. None: a text of any length."""
    if quantization.quantize == "bitsandbytes":
        return {"SCB": ("F32", shape[:1]), "weight_format": ("U8", ())}
    blocks = -(-math.prod(shape) // BLOCK)
    kind = quantization.quantize.rpartition("-")[2]
    parts: dict[str, tuple[str, tuple[int, ...] | None]] = {
        "quant_map": ("F32", (16,)),
        f"quant_state.bitsandbytes__{kind}": ("U8", None),
    }
    if not quantization.double_quant:
        return parts | {"absmax": ("F32", (blocks,))}
    return parts | {
        "absmax": ("U8", (blocks,)),
        "nested_absmax": ("F32", (-(-blocks // NESTED_BLOCK),)),
        "nested_quant_map": ("F32", (256,)),
    }


def _check(
    entry: TensorEntry,
    dtype: str,
    shape: tuple[int, ...] | None,
    quantization: StoredQuantization,
) -> None:
    good = entry.shape == shape or (
        shape is None and len(entry.shape) == 1 and entry.nbytes <= STATE_LIMIT_BYTES
    )
    if entry.dtype != dtype or not good:
        expected = f"a text of at most {STATE_LIMIT_BYTES} bytes" if shape is None else list(shape)
        raise weights_error(
            entry.file,
            f"tensor {shown(entry.name)} is {entry.dtype} {list(entry.shape)}; for "
            f"{quantization.quantize} it must be {dtype} {expected}",
            "compare quantization_config in config.json with the weights",
        )
