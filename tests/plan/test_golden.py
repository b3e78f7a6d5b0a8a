"""The tables of the published models against all cards, as they stood when they were checked.

`UPDATE_GOLDEN=1 pytest tests/plan/test_golden.py` writes them anew; read the difference.
"""

import os
from pathlib import Path

import pytest

from tiercel.plan.cards import CARDS
from tiercel.plan.command import PlanRequest, plan_text

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("falcon-rw-1b", "falcon-7b", "falcon-11b", "falcon-40b", "falcon-180b")


def tables(model: str) -> str:
    """The overview, and the detail of 16 bits and of nf4 on every card."""
    requests = [PlanRequest(model)]
    for card in CARDS:
        requests += [PlanRequest(model, card, quantize=q) for q in (None, "bitsandbytes-nf4")]
    return "\n".join(plan_text(request)[0] for request in requests)


@pytest.mark.parametrize("model", MODELS)
def test_tables(model: str) -> None:
    path = GOLDEN / f"{model}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(tables(model), encoding="utf-8")
    assert tables(model) == path.read_text(encoding="utf-8")
