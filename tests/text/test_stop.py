"""Stop strings against a naive search, over any way to cut the text into pieces."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiercel.text.stop import StopCutter, StopMatcher


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Pieces and stop strings. Many pieces begin a stop string: there a wrong table gets lost."""
    stops = draw(st.lists(st.text("ab", min_size=1, max_size=10), min_size=1, max_size=4))
    beginnings = st.sampled_from([stop[:length] for stop in stops for length in range(len(stop))])
    return draw(st.lists(beginnings | st.text("ab", max_size=3), max_size=14)), stops


def first_end(text: str, stops: list[str]) -> int | None:
    """Where the first stop string ends, by looking everywhere."""
    ends = (i for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops))
    return next(ends, None)


def run(matcher: StopMatcher, parts: list[str]) -> int | None:
    """The end of the match, counted from the beginning of the whole text."""
    before = 0
    for part in parts:
        end = matcher.feed(part)
        if end is not None:
            return before + end
        before += len(part)
    return None


@settings(max_examples=500, deadline=None)
@given(cut_texts())
def test_finds_what_a_naive_search_finds(drawn: tuple[list[str], list[str]]) -> None:
    parts, stops = drawn
    text = "".join(parts)
    matcher = StopMatcher(stops)
    end = run(matcher, parts)
    assert end == first_end(text, stops)
    if end is None:
        assert matcher.stop is None
        assert matcher.partial == max(
            n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])
        )
    else:
        assert matcher.stop == max((s for s in stops if text[:end].endswith(s)), key=len)


@settings(max_examples=500, deadline=None)
@given(cut_texts())
def test_the_cutter_sends_all_but_the_stop_string(drawn: tuple[list[str], list[str]]) -> None:
    parts, stops = drawn
    text = "".join(parts)
    cutter, sent, seen = StopCutter(stops), "", ""
    for part in parts:
        sent += cutter.feed(part)
        seen += part
        if cutter.stopped:
            break
        # Nothing sent can turn out to be a stop string's; nothing safe is kept.
        held = max(n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n]))
        assert sent == seen[: len(seen) - held]
    sent += cutter.flush()
    end = first_end(text, stops)
    assert cutter.stopped == (end is not None)
    if end is None:
        assert sent == text
    else:
        assert sent == text[: end - max(len(s) for s in stops if text[:end].endswith(s))]
        assert cutter.flush() == ""


@settings(max_examples=500, deadline=None)
@given(cut_texts(), st.lists(st.booleans(), min_size=14))
def test_hidden_text_takes_part_but_is_not_sent(
    drawn: tuple[list[str], list[str]], flags: list[bool]
) -> None:
    stops = drawn[1]
    parts = list(zip(drawn[0], flags, strict=False))
    text = "".join(part for part, _ in parts)
    visible = [not hidden for part, hidden in parts for _ in part]
    cutter, sent = StopCutter(stops), ""
    for part, hidden in parts:
        sent += cutter.feed(part, hidden=hidden)
        if cutter.stopped:
            break
    sent += cutter.flush()
    end = first_end(text, stops)
    assert cutter.stopped == (end is not None)
    if end is not None:
        end -= max(len(s) for s in stops if text[:end].endswith(s))
    shown = zip(text[:end], visible, strict=False)
    assert sent == "".join(character for character, seen in shown if seen)


def test_across_and_inside_pieces() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert [matcher.feed(part) for part in ("Hi", "\n", "\nUs", "er: more")] == [None] * 3 + [3]
    assert StopMatcher(["x"]).feed("axb") == 2
    assert StopMatcher(["x"]).feed("ax\n") == 2


def test_the_first_to_end_counts_whatever_the_order() -> None:
    for stops in (["abcd", "bc"], ["bc", "abcd"]):
        matcher = StopMatcher(stops)
        assert matcher.feed("abcd") == 3
        assert matcher.stop == "bc"
    matcher = StopMatcher(["b", "ab"])
    assert matcher.feed("ab") == 2
    assert matcher.stop == "ab"


@pytest.mark.parametrize("text", ["", "any text"])
def test_an_empty_stop_string_stops_after_the_first_token(text: str) -> None:
    assert StopMatcher(["", "zzz"]).feed(text) == len(text)
    cutter = StopCutter([""])
    assert cutter.feed(text) == text
    assert cutter.stopped
    assert StopMatcher(["", "n"]).feed("any") == 2


def test_no_stop_strings() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("text") is None
    assert matcher.partial == 0
    assert StopCutter([]).feed("text") == "text"


def test_linear_in_the_text_however_long_the_strings() -> None:
    """Strings made to restart often; a search of a growing buffer would take minutes for these."""
    long = "a" * 400_000 + "b"
    text = "a" * 150_000
    started = time.process_time()
    matcher = StopMatcher([long] * 4)
    for at in range(0, len(text), 3):
        assert matcher.feed(text[at : at + 3]) is None
    assert matcher.partial == len(text)
    restarting = StopMatcher(["a" * 1000 + "b"])
    assert restarting.feed("a" * 150_000) is None
    assert restarting.feed("b") == 1
    assert time.process_time() - started < 20


def test_a_string_as_long_as_a_prompt_is_found() -> None:
    stop = "".join(chr(0x4E00 + i * i % 5000) for i in range(3000))
    text = stop[:1500] * 2 + stop
    matcher = StopMatcher([stop])
    assert run(matcher, [text[i : i + 7] for i in range(0, len(text), 7)]) == first_end(
        text, [stop]
    )
