"""Rules about the source itself: sizes, and names that may not appear."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for top in ("server", "kernels") for p in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# Loading code or objects from a model is how servers are taken over; see the security notes.
FORBIDDEN = ["pickle.load", "dill", "eval(", "exec(", "yaml.load", "trust_remote_code=True"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=_name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    reason = "lines because" in (ast.get_docstring(tree) or "")
    assert reason or text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert reason or lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_every_module_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_a_model_brings_is_executed(path: Path) -> None:
    lines = path.read_text().splitlines()
    for word in FORBIDDEN:
        hits = [line for line in lines if word in line and "model.eval(" not in line]
        assert not hits, hits
    if any("torch.load" in line for line in lines):
        assert path.name in ("pickled.py", "train.py")
        assert "weights_only=True" in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_only_settings_read_the_environment(path: Path) -> None:
    if path.name == "settings.py":
        return
    text = path.read_text()
    assert "os.environ" not in text
    assert "getenv" not in text
