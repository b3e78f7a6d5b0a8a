"""What a scenario found: figures, verdicts against limits, the machine; as tables and as JSON."""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One number and, where there is one, the limit it is held against."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool | None:
        """None where nothing was demanded."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def limit(self) -> str:
        parts = [] if self.at_least is None else [f">= {self.at_least:g}"]
        return ", ".join(parts if self.at_most is None else [*parts, f"<= {self.at_most:g}"])


@dataclass
class Report:
    """The result of one scenario. `rounds` holds what each round measured, in order."""

    scenario: str
    model: str
    figures: list[Figure] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(figure.passed is not False for figure in self.figures)

    def to_json(self) -> str:
        verdicts = {figure.name: figure.passed for figure in self.figures}
        return json.dumps(asdict(self) | {"verdicts": verdicts, "passed": self.passed}, indent=2)

    def save(self, path: Path) -> None:
        path.write_text(self.to_json() + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Two tables: every round, then the figures with their verdicts."""
        console.print(f"[bold]{self.scenario}[/bold] · {self.model}")
        console.print(" · ".join(f"{key} {value}" for key, value in self.machine.items()))
        if self.rounds:
            names = list(dict.fromkeys(name for entry in self.rounds for name in entry))
            rounds = Table("round", *names)
            for number, entry in enumerate(self.rounds, 1):
                cells = (f"{entry[name]:.4g}" if name in entry else "" for name in names)
                rounds.add_row(str(number), *cells)
            console.print(rounds)
        table = Table("figure", "value", "unit", "limit", "verdict")
        words = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}
        for figure in self.figures:
            value = f"{figure.value:.4g}"
            table.add_row(figure.name, value, figure.unit, figure.limit, words[figure.passed])
        console.print(table)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on; the load average says whether others were at work."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "tiercel": version("tiercel"),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
