"""Results on disk: one JSON per op and device, and one table per device made from all of them.

Every device has a folder of its own, so that no run overwrites what another card gave.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tiercel_kernels.benchmark.machine import folder_name

Row = dict[str, Any]
_FACTS = ("capability", "multiprocessors", "power.limit", "clocks.max.sm", "torch", "triton")


class Results:
    """The folder of one device's results."""

    def __init__(self, root: Path, facts: dict[str, Any], peaks: dict[str, Any]) -> None:
        """`facts` as machine.describe gives them; `peaks` as Peaks.to_json does."""
        self.folder = root / folder_name(str(facts["name"]))
        self._head = {"device": facts, "peaks": peaks}

    def save(self, op: str, rows: Sequence[Row], **more: Any) -> Path:
        """Write <op>.json, replacing this device's own older one, and the device's README.md.

        `more` goes into the JSON beside the rows.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{op}.json"
        text = json.dumps(self._head | {"op": op, "rows": list(rows)} | more, indent=1)
        path.write_text(text + "\n", encoding="utf-8")
        (self.folder / "README.md").write_text(summary(self.folder), encoding="utf-8")
        return path


def summary(folder: Path) -> str:
    """Everything in a device's folder as Markdown."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found = [each for each in found if each.get("rows")]  # a sweep has none
    if not found:
        return "# Nothing measured\n"
    lines = [f"# {found[0]['device']['name']}", ""]
    lines += [
        "Fraction of the bound in the same run: bytes over the larger of copy and read bandwidth,",
        "or products over the measured GEMM peak, whichever takes longer. Inputs take turns, so",
        'that they come from memory and not from the L2. "graph": launched from a CUDA graph.',
    ]
    for each in found:
        lines += ["", f"## {each['op']}", "", _origin(each), "", *table(each["rows"])]
    return "\n".join(lines) + "\n"


def _origin(result: dict[str, Any]) -> str:
    facts, peaks = result["device"], result["peaks"]
    parts = [f"{facts.get('date', '')} UTC", f"commit {facts.get('commit', 'unknown')}"]
    parts += [f"{name} {facts[name]}" for name in _FACTS if name in facts]
    parts += [f"{name} {value}" for name, value in peaks.items()]
    return " · ".join(parts)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table, one row per case."""
    lines = [
        "| case | us | spread | bound us | limited by | fraction | of copy | how | beside |",
        "|" + "---|" * 9,
    ]
    return lines + [_line(row) for row in rows]


def _line(row: Row) -> str:
    name = row["case"] + (f" ({row['note']})" if row.get("note") else "")
    if "us" not in row:
        return f"| {name} | **{row['verdict']}** |" + " |" * 7
    cells = [
        name,
        f"{row['us']:.4g}",
        f"{row['low_us']:.4g} to {row['high_us']:.4g}",
        f"{row['bound_us']:.4g}",
        row["limited_by"],
        f"{row['fraction']:.3f}",
        f"{row['fraction_of_copy']:.3f}",
        row["how"],
        beside(row.get("rivals", {})),
    ]
    return f"| {' | '.join(cells)} |"


def beside(rivals: dict[str, Row]) -> str:
    """What others take for the same, and how many times as long that is."""
    return "; ".join(_one_rival(name, rival) for name, rival in rivals.items())


def _one_rival(name: str, rival: Row) -> str:
    if "failed" in rival:
        return f"{name}: {rival['failed']}"
    return f"{name} {rival['us']:.4g} us ({rival['how']}), {rival['ours_is_faster']:.2f}x"


def left_out(names: Iterable[str], why: str) -> list[Row]:
    """Rows for cases that were not run."""
    return [{"case": name, "verdict": f"left out: {why}", "note": ""} for name in names]
