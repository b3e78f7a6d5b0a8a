"""The table of one layer's times: every mode in every cell."""

from tiercel.bench.linear import DTYPES, MODES, ROWS, table


def test_the_table() -> None:
    lines = table(64, 1)
    assert len(lines) == 2 + len(DTYPES)
    for line in lines[2:]:
        cells = line.strip("| ").split(" | ")
        assert len(cells) == 1 + len(MODES)
        assert all(len(cell.split(" / ")) == len(ROWS) for cell in cells[1:])
