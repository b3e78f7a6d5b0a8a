"""What is compiled of the linear layers of few rows.

Every launch of a published model on every card, and the other tiles that the tables list.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tiercel_kernels.benchmark.bounds import SHAPES, FalconShape
from tiercel_kernels.compile_case import ARCHITECTURES, FIRST_BFLOAT16, CompileCase
from tiercel_kernels.tuning.skinny_linear import LinearVariant

Choose = Callable[[int, int, int, int], LinearVariant]
Listed = Mapping[int, Mapping[tuple[int, int], list[LinearVariant]]]
ROWS = (16, 32)  # a tile's, by the rows of a batch
# float32 is for comparing: one shape is enough.
COMPARED = (4608, 4096)


@dataclass(frozen=True)
class Layer:
    """A linear layer of a published model."""

    out: int
    width: int
    bias: bool = False
    gelu: bool = False


@dataclass(frozen=True)
class Form:
    """A way to store a weight: what the kernel takes besides x, bias, target and sizes."""

    weight: Mapping[str, str]  # argument -> type, where "x" stands for that of x
    label: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Binary:
    """Everything that a product kernel is compiled by."""

    form: str
    dtype: str
    rows: int
    chosen: LinearVariant
    even: bool  # whether no tile is cut off at the end of a row
    bias: bool
    gelu: bool

    @property
    def name(self) -> str:
        words = [f"{self.rows} rows", self.dtype + self.form]
        words += [word for word in ("bias", "gelu") if getattr(self, word)]
        chosen = self.chosen
        words += [f"tile {chosen.block_n} x {chosen.block_k}", f"{chosen.split_k} splits"]
        return ", ".join([*words, *([] if self.even else ["the last cut off"])])


def layers_of(shape: FalconShape) -> list[Layer]:
    """QKV, attention output, MLP up, MLP down."""
    bias = not shape.parallel
    return [
        Layer(shape.qkv_size, shape.hidden, bias),
        Layer(shape.hidden, shape.heads * shape.head_dim, bias),
        Layer(shape.ffn, shape.hidden, bias, gelu=True),
        Layer(shape.hidden, shape.ffn, bias),
    ]


PUBLISHED = [layer for shape in SHAPES.values() for layer in layers_of(shape)]


def product_cases(
    kernel: Any, listed: Listed, choose: Choose, forms: list[Form], *, even_k: bool
) -> list[CompileCase]:
    """Of one product kernel. The first form is also that of float32 and of tiles not in use.

    Shapes with the same constants are one binary, and one case. even_k: whether the kernel has the
    constant EVEN_K.
    """
    by_label = {form.label: form for form in forms}
    cards: dict[Binary, set[int]] = {}
    for card, layer, dtype, chosen in _launches(listed, choose):
        in_use = dtype != "fp32" and chosen == choose(card, layer.out, layer.width, 2)
        for form in forms if in_use else forms[:1]:
            for rows in ROWS if dtype != "fp32" else ROWS[-1:]:
                found = _binary(form, dtype, rows, chosen, layer, even_k)
                cards.setdefault(found, set()).add(card)
    return [
        _case(kernel, each, by_label[each.form], tuple(sorted(where)), even_k)
        for each, where in cards.items()
    ]


def _launches(listed: Listed, choose: Choose) -> Iterator[tuple[int, Layer, str, LinearVariant]]:
    for card in ARCHITECTURES:
        for layer in PUBLISHED:
            if card >= FIRST_BFLOAT16:
                yield card, layer, "bf16", choose(card, layer.out, layer.width, 2)
            yield card, layer, "fp16", choose(card, layer.out, layer.width, 2)
        yield card, Layer(*COMPARED), "fp32", choose(card, *COMPARED, 4)
    by_size = {(layer.out, layer.width): layer for layer in PUBLISHED}
    for card, shapes in listed.items():
        for size, several in shapes.items():
            for chosen in several:
                yield card, by_size.get(size, Layer(*size)), "bf16", chosen


def _binary(
    form: Form, dtype: str, rows: int, chosen: LinearVariant, layer: Layer, even_k: bool
) -> Binary:
    whole = chosen.split_k == 1  # of several splits another kernel has the epilogue
    even = not even_k or layer.width % chosen.block_k == 0
    return Binary(form.label, dtype, rows, chosen, even, whole and layer.bias, whole and layer.gelu)


def _case(
    kernel: Any, binary: Binary, form: Form, cards: tuple[int, ...], even_k: bool
) -> CompileCase:
    chosen, dtype = binary.chosen, f"*{binary.dtype}"
    weight = {name: dtype if kind == "x" else kind for name, kind in form.weight.items()}
    return CompileCase(
        kernel,
        binary.name,
        {
            "x_ptr": dtype,
            **weight,
            "bias_ptr": dtype,
            "out_ptr": dtype if chosen.split_k == 1 else "*fp32",
            **dict.fromkeys(["rows", "out", "width", "tiles"], "i32"),
        },
        {
            "BIAS": binary.bias,
            "GELU": binary.gelu,
            "SPLIT_K": chosen.split_k,
            "BLOCK_M": binary.rows,
            "BLOCK_N": chosen.block_n,
            "BLOCK_K": chosen.block_k,
            **({"EVEN_K": binary.even} if even_k else {}),
            **form.constants,
        },
        chosen.num_warps,
        chosen.num_stages,
        aligned=("out", "width"),
        architectures=cards,
    )
