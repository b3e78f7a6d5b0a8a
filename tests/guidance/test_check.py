"""check_grammar in a child process: what it lets through, what it refuses, and the bombs."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from support.sandbox import processes
from tiercel.errors import Overloaded
from tiercel.eyas import __file__ as eyas_file
from tiercel.guidance.gate import add_to, why_not
from tiercel.sandbox.pool import SandboxPool
from tiercel.wire.request import Grammar

EYAS = str(Path(eyas_file).parent)
ANSWER_S = 3.0
RSS_BYTES = 512 << 20
TEXT = {"type": "string"}
DEEP = '{"properties":{"a":' * 10_000 + "{}" + "}}" * 10_000


def json_schema(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


GOOD = [
    Grammar("regex", "[ab]{3}"),
    Grammar("regex", "^[A-Z][a-z]{1,20} [0-9]{3}-[0-9]{4}$"),
    Grammar("regex", r"((25[0-5]|2[0-4]\d|[01]?\d\d?)\.){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)"),
    Grammar("regex", "(a+)+$"),  # a bomb elsewhere; here it is a+
    json_schema({"type": "object"}),
    json_schema({"properties": {"a": TEXT, "b": {"items": TEXT}}, "required": ["a"]}),
    json_schema({"properties": {"a": {"$ref": "#"}}}),  # a bomb elsewhere; here it is recursion
    json_schema({"title": "T", "properties": {f"p{i}": TEXT for i in range(100)}}),
]
BAD = [
    (Grammar("regex", "("), "unclosed group"),
    (Grammar("regex", "a^b"), "leave ^, $"),
    (json_schema({"type": "banana"}), "wrong at $.type"),
    (json_schema({"properties": {"a": {"minimum": "x"}}}), "wrong at $.properties.a.minimum"),
    (json_schema({"properties": {"a": {"not": TEXT}}}), "not"),
    (json_schema({"properties": {"a": {"enum": []}}, "required": ["a"]}), "nsatisfiable"),
    (json_schema({"anyOf": [{"$ref": "#"}]}), "no text can match"),
]
BOMBS = [
    Grammar("regex", "(x{1,1000}){1,1000}"),
    Grammar("regex", "x" * 1_000_000),
    Grammar("regex", "x" * 32_000),
    Grammar("regex", "x{1000000}"),
    Grammar("regex", "(a?){1000}a{1000}"),
    Grammar("json_schema", DEEP),
    Grammar("json_schema", "[" * 100_000),
    json_schema({"properties": {f"p{i}": TEXT for i in range(3_000)}}),
]


class Checker:
    """A pool with one lane, in a loop of its own."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.pool = SandboxPool()
        add_to(self.pool, EYAS)

    def __call__(self, grammar: Grammar) -> str | None:
        return self.runner.run(self._check(grammar))

    async def _check(self, grammar: Grammar) -> str | None:
        for _ in range(20):
            try:
                return await why_not(self.pool, grammar)
            except Overloaded:  # the first child is still starting
                continue
        raise AssertionError("no child in time")


@pytest.fixture(scope="module")
def check() -> Iterator[Checker]:
    checker = Checker()
    assert checker(GOOD[0]) is None
    yield checker
    checker.runner.run(checker.pool.close())
    checker.runner.close()


@pytest.mark.parametrize("grammar", GOOD, ids=lambda each: each.text[:30])
def test_good_grammars_pass(check: Checker, grammar: Grammar) -> None:
    assert check(grammar) is None


@pytest.mark.parametrize(("grammar", "message"), BAD)
def test_bad_grammars_are_refused_with_the_reason(
    check: Checker, grammar: Grammar, message: str
) -> None:
    reason = check(grammar)
    assert reason is not None
    assert message in reason


@pytest.mark.parametrize("grammar", BOMBS, ids=lambda each: each.text[:30])
def test_bombs_are_refused_in_time_and_memory(check: Checker, grammar: Grammar) -> None:
    began = time.monotonic()
    assert check(grammar) is not None
    assert time.monotonic() - began < ANSWER_S
    for process in processes():
        with suppress(psutil.NoSuchProcess):  # a child that took a bomb is about to end
            assert process.memory_info().rss < RSS_BYTES
