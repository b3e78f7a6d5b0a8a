"""The table of conformance and its tests tell of the same 130 statements."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "server" / "CONFORMANCE.md"
NUMBERS = list(range(1, 131))


def rows() -> dict[int, str]:
    """What the table says of each statement, in its order."""
    found = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    assert len({number for number, _ in found}) == len(found)
    return {int(number): outcome for number, outcome in found}


def numbered() -> dict[int, list[ast.FunctionDef]]:
    """The test functions of each number, in the order of files."""
    found: dict[int, list[ast.FunctionDef]] = {}
    for path in sorted(HERE.glob("test_*_to_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.setdefault(int(node.name.split("_")[1]), []).append(node)
    return found


def test_every_statement_has_one_test_and_one_row() -> None:
    assert list(numbered()) == NUMBERS
    assert all(len(functions) == 1 for functions in numbered().values())
    assert list(rows()) == NUMBERS
    for number, outcome in rows().items():
        assert outcome.startswith(("holds", "**diverges**")), f"{number}: {outcome}"


def test_divergences_are_named_where_they_are_tested() -> None:
    told = {number for number, outcome in rows().items() if outcome.startswith("**")}
    tested = {
        number
        for number, (function,) in numbered().items()
        if "deliberate divergence" in (ast.get_docstring(function) or "")
    }
    assert tested == told
