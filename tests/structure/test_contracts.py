"""The import contracts of pyproject.toml speak of every module: a new one cannot be forgotten."""

import tomllib
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "tiercel"
CONTRACTS: dict[str, dict[str, Any]] = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}
# What a contract says nothing of. Of our own modules: those that its sources may import. Of other
# packages: our modules that may import those.
ALLOWED: dict[str, set[str]] = {
    "the edge and the bookkeeping never import torch": {
        *("attention", "layers", "model", "parallel", "quantization", "sampling", "worker"),
        *("engine.assemble", "engine.core", "engine.inline", "engine.process", "engine.ranked"),
        *("bench", "eyas"),
        *("__main__", "cli", "launcher"),  # import what a command needs when it runs
    },
    "the API sees the engine's client only": {
        *("engine.client", "errors", "guidance", "telemetry", "text", "wire"),
        "foreign_files",  # text's
        *("sandbox", "child_process"),
    },
    "text and telemetry know neither the engine nor HTTP": {
        *("errors", "foreign_files", "wire"),
        *("sandbox", "child_process"),  # where templates are rendered
    },
    "the sandbox knows no job's meaning": {"errors"},
    "scheduler and cache see the wire only": {"wire"},
    "the wire sees nothing": set(),
    "model and layers know no engine and no scheduler": {
        *("errors", "foreign_files", "wire"),
        "plan",  # how many heads and columns a rank has
    },
    "the engine runs without the web packages": {
        *("api", "server", "settings", "telemetry", "text"),
        *("metrics_port", "observed", "listen", "platform_variables", "settings_text"),
        *("rank_settings", "tgi_flags", "secret_flags", "settings_sources"),
        *("__main__", "cli", "launcher", "bench", "eyas"),
    },
    "the kernels know no server": {""},  # all of it is forbidden
}


def _children(folder: Path) -> set[str]:
    """Modules and packages in it."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


MODULES = {*_children(PACKAGE), *(f"engine.{name}" for name in _children(PACKAGE / "engine"))}


def _named(names: list[str]) -> set[str]:
    """Our own, without the package's name."""
    return {
        name.removeprefix("tiercel").lstrip(".") for name in names if name.startswith("tiercel")
    }


def _unsaid(said: Set[str]) -> set[str]:
    """Modules that are not covered; a package is, by itself or by all that is in it."""
    if "" in said:
        return set()
    missing = {name for name in MODULES if not {name, name.partition(".")[0]} & said}
    if not {name for name in missing if name.startswith("engine.")}:
        missing.discard("engine")
    return missing


def test_the_table_has_every_contract() -> None:
    assert ALLOWED.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_module_is_listed_or_allowed(name: str) -> None:
    contract = CONTRACTS[name]
    sources, forbidden = _named(contract["source_modules"]), _named(contract["forbidden_modules"])
    assert not _unsaid(sources | forbidden | ALLOWED[name])
    assert not ALLOWED[name] - {""} & (sources | forbidden)


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_name_is_a_module(name: str) -> None:
    contract = CONTRACTS[name]
    for listed in (*contract["source_modules"], *contract["forbidden_modules"]):
        if listed.startswith("tiercel."):
            path = PACKAGE.joinpath(*listed.split(".")[1:])
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), listed
    assert ALLOWED[name] - {""} <= MODULES


def test_a_module_that_nobody_thought_of_is_found() -> None:
    names = {name for name in MODULES if "." not in name}
    assert not _unsaid(names)
    assert _unsaid(names - {"guidance"}) == {"guidance"}
    some = names - {"engine"} | {"engine.client"}
    assert {"engine", "engine.core"} <= _unsaid(some) and "engine.client" not in _unsaid(some)
