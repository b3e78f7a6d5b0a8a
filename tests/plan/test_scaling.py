"""The arithmetic of more cards, and its table in the docs."""

from pathlib import Path

from tiercel.plan.cards import CARDS
from tiercel.plan.models import PUBLISHED
from tiercel.plan.scaling import LINKS, exchange_ms, step_ms, table
from tiercel.plan.sizes import Storage
from tiercel.plan.speed import decode_ms

DOCS = Path(__file__).parents[2] / "docs" / "parallel.md"
BF16 = Storage(None, False, "bfloat16")


def test_the_docs_have_this_table() -> None:
    assert table() in DOCS.read_text()


def test_one_card_exchanges_nothing() -> None:
    spec, card = PUBLISHED["falcon-7b"], CARDS["h100"]
    assert step_ms(spec, BF16, card, 1, 1) == decode_ms(spec, BF16, card, 1, 1024, 1)


def test_a_small_step_pays_for_its_all_reduces() -> None:
    """33 of them and two more words: at batch 1 their bytes hardly count."""
    link = LINKS["a100-80"]
    seven = exchange_ms(PUBLISHED["falcon-7b"], link, 1, 2)
    assert 35 * link.latency_s * 1e3 < seven < 36 * link.latency_s * 1e3
    rw = PUBLISHED["falcon-rw-1b"]
    assert exchange_ms(rw, link, 1, 2) > 2 * rw.num_layers * link.latency_s * 1e3


def test_what_does_not_fit_has_no_figure() -> None:
    assert step_ms(PUBLISHED["falcon-180b"], BF16, CARDS["a100-80"], 1, 4) is None
