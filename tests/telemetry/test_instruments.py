"""Our instruments count as prometheus_client's do, and write what its parsers read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram as Reference
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tiercel.telemetry.catalogue import Catalogue
from tiercel.telemetry.exposition import FamilyText, Format
from tiercel.telemetry.instruments import Histogram, Number

BOUNDS = (0.1, 0.25, 1.0, 5.0)
VALUES = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 10), st.just(0.0))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def exposed(catalogue: Catalogue, kind: Format = "text") -> str:
    return "".join(line for family in catalogue.families for line in FamilyText(family).lines(kind))


@given(st.lists(VALUES, max_size=30))
def test_a_histogram_is_the_references(values: list[float]) -> None:
    catalogue = Catalogue()
    ours = catalogue.histogram("x_seconds", "About x", BOUNDS)
    reference = Reference("x_seconds", "About x", buckets=BOUNDS, registry=None)
    for value in values:
        ours.observe(value)
        reference.observe(value)
    (family,) = text_string_to_metric_families(exposed(catalogue))
    (wanted,) = reference.collect()
    expected = {
        (each.name, tuple(each.labels.items())): each.value
        for each in wanted.samples
        if not each.name.endswith("_created")
    }
    found = {(each.name, tuple(each.labels.items())): each.value for each in family.samples}
    assert found == pytest.approx(expected)


@given(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
def test_any_label_comes_back(texts: list[str]) -> None:
    catalogue = Catalogue()
    counter = catalogue.counter("things_total", "Things", "what", "why")
    for number, text in enumerate(texts, 1):
        counter.labels(text, "because").inc(number)
    for parse, end in (
        (text_string_to_metric_families, ""),
        (openmetrics.text_string_to_metric_families, "# EOF\n"),
    ):
        text = exposed(catalogue, "openmetrics" if end else "text") + end
        (family,) = parse(text)
        values = {each.labels["what"]: each.value for each in family.samples}
        assert values == {text: float(number) for number, text in enumerate(texts, 1)}


def test_labels_are_as_many_as_names() -> None:
    number = Number(("a", "b"))
    assert number.labels("1", "2") is number.labels("1", "2")
    with pytest.raises(ValueError, match="as many values"):
        number.labels("1")


def test_what_has_changed_is_written_anew() -> None:
    catalogue = Catalogue()
    histogram = catalogue.histogram("x", "About x", BOUNDS, "kind")
    histogram.labels("a").observe(0.2)
    writer = FamilyText(catalogue.families[0])
    first = "".join(writer.lines("text"))
    assert "".join(writer.lines("text")) == first
    histogram.labels("a").observe(0.2)
    histogram.labels("b").observe(0.2)
    second = "".join(writer.lines("text"))
    assert 'x_count{kind="a"} 2\n' in second and 'x_count{kind="b"} 1\n' in second


def test_functions_are_asked_each_time() -> None:
    answers = iter((1.5, 2.0))
    number = Number()
    number.set_function(lambda: next(answers))
    assert (number.value, number.value) == (1.5, 2.0)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram(BOUNDS)
    for value in (0.1, 0.100001, 5.0, 6.0):
        histogram.observe(value)
    assert histogram.counts == [1, 1, 0, 1, 1]
