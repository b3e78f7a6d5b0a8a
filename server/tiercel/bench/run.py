"""The scenarios by name, and `run_bench`, which starts a server for one and reports."""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from rich.console import Console

from tiercel.bench.checkpoint import RandomModel, make_random_checkpoint
from tiercel.bench.client import Client
from tiercel.bench.disconnect import Crowd, measure_disconnect
from tiercel.bench.grammar import measure_grammar
from tiercel.bench.interference import Limits, measure_interference
from tiercel.bench.prefix import measure_prefix
from tiercel.bench.report import Report, describe_machine
from tiercel.bench.server import ServerProcess
from tiercel.bench.throughput import measure_throughput
from tiercel.errors import ConfigError

RANDOM_MODEL = "random-150m"  # a name for `model`: made anew, measured, thrown away
EMBEDDED_MODEL = "eyas"
GRAMMAR = "grammar"  # measures a worker, not a server; has a model of its own


@dataclass(frozen=True)
class Target:
    """The server to measure. There is no `log` when it is not ours."""

    client: Client
    model: str
    rounds: int | None
    log: Callable[[], str] | None

    @property
    def rounds_argument(self) -> dict[str, int]:
        return {} if self.rounds is None else {"rounds": self.rounds}


@dataclass(frozen=True)
class Scenario:
    """A measurement, the flags its server needs and the model it is meant for."""

    measure: Callable[[Target], Coroutine[Any, Any, Report]]
    flags: tuple[str, ...] = ()
    model: str = EMBEDDED_MODEL


def _throughput(target: Target) -> Coroutine[Any, Any, Report]:
    least = {EMBEDDED_MODEL: 5.0, RANDOM_MODEL: 6.0}.get(target.model)
    rounds = target.rounds_argument
    return measure_throughput(target.client, target.model, at_least=least, **rounds)


def _prefix(target: Target) -> Coroutine[Any, Any, Report]:
    return measure_prefix(target.client, target.model, at_most=0.3, **target.rounds_argument)


def _interference(target: Target) -> Coroutine[Any, Any, Report]:
    limits = Limits(gap=6.0, first_token=1.5)
    rounds = target.rounds_argument
    return measure_interference(target.client, target.model, limits=limits, **rounds)


def _disconnect(target: Target) -> Coroutine[Any, Any, Report]:
    return measure_disconnect(target.client, target.model, target.log)


SCENARIOS = {
    "throughput": Scenario(_throughput),
    "prefix": Scenario(_prefix),
    "interference": Scenario(_interference, ("--max-batch-prefill-tokens", "4096"), RANDOM_MODEL),
    "disconnect": Scenario(
        _disconnect,
        ("--max-batch-size", str(Crowd().rows), "--max-concurrent-requests", "256"),
        RANDOM_MODEL,
    ),
}


def run_bench(
    scenario: str,
    *,
    url: str | None = None,
    model: str | None = None,
    rounds: int | None = None,
    json_path: Path | None = None,
    flags: tuple[str, ...] = (),
    console: Console | None = None,
) -> Report:
    """Measure `scenario`, print the report, write it to `json_path` where given.

    With a `url` that server is measured and `model` is only its name in the report. Without one a
    server is started for it, with the scenario's flags and then `flags`; `model` is a folder, a hub
    name, `eyas`, or `random-150m` for a random checkpoint of that size in bfloat16.
    `grammar` takes `rounds` only.
    Raises ConfigError for an unknown scenario, ServerExited when the server does not start.
    """
    if scenario == GRAMMAR:
        report = measure_grammar(**({} if rounds is None else {"rounds": rounds}))
        return _finish(report, describe_machine(), json_path, console)
    chosen = SCENARIOS.get(scenario)
    if chosen is None:
        names = ", ".join([*SCENARIOS, GRAMMAR])
        raise ConfigError(f"there is no benchmark called {scenario!r}; there are: {names}")
    name = model or chosen.model
    with ExitStack() as stack:
        if url is None:
            target = _own_server(stack, name, (*chosen.flags, *flags), rounds)
        else:
            parts = urlsplit(url)
            client = Client(parts.hostname or "127.0.0.1", parts.port or 80)
            target = Target(client, name, rounds, None)
        machine = describe_machine()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(chosen.measure(target))
    return _finish(report, machine, json_path, console)


def _finish(
    report: Report, machine: dict[str, Any], json_path: Path | None, console: Console | None
) -> Report:
    report.machine = machine
    report.show(Console() if console is None else console)
    if json_path is not None:
        report.save(json_path)
    return report


def _own_server(stack: ExitStack, model: str, flags: tuple[str, ...], rounds: int | None) -> Target:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiercel-bench-")))
    path: str | Path | None = model
    if model == EMBEDDED_MODEL:
        path = None
    elif model == RANDOM_MODEL:
        path = make_random_checkpoint(folder / model, RandomModel())
    server = stack.enter_context(ServerProcess(folder / "server.log", path, flags))
    return Target(Client(server.host, server.port), model, rounds, server.log)
