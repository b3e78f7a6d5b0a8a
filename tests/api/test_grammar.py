"""Grammars at the edge: what is refused before a child sees it, and how long a verdict counts."""

import asyncio
import gc
from functools import partial

import pytest

from tiercel.api import grammar as module
from tiercel.api.grammar import MAX_REASON_CHARACTERS, MAX_VERDICTS, GrammarGate, grammar_of
from tiercel.api.schema import JsonGrammar
from tiercel.errors import GrammarRefused, Overloaded, Unhealthy, ValidationError
from tiercel.guidance import gate as grammars
from tiercel.sandbox.pool import SandboxPool
from tiercel.wire.request import Grammar

A = Grammar("regex", "a")


class Child:
    """Answers with what it is told, and counts."""

    def __init__(self, *reasons: str | Exception | None) -> None:
        self._reasons = list(reasons)
        self.asked = 0

    async def __call__(self, _: Grammar) -> str | None:
        self.asked += 1
        reason = self._reasons.pop(0) if self._reasons else None
        if isinstance(reason, Exception):
            raise reason
        return reason


def check(gate: GrammarGate, grammar: Grammar = A) -> None:
    asyncio.run(gate.check(grammar))


def test_a_good_grammar_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child()
    gate = GrammarGate(child)
    monkeypatch.setattr(module, "REFUSAL_S", 0.0)
    for _ in range(3):
        check(gate)
    assert child.asked == 1


def test_a_refusal_counts_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child may have been starved or killed: the same grammar must get another chance."""
    child = Child("it is too costly")
    gate = GrammarGate(child)
    for _ in range(2):
        with pytest.raises(ValidationError, match="grammar is not valid: it is too costly"):
            check(gate)
    assert child.asked == 1
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    check(gate)
    assert child.asked == 2


def test_a_reason_does_not_repeat_a_long_grammar() -> None:
    gate = GrammarGate(Child("wrong: " + "x" * 60_000))
    with pytest.raises(ValidationError, match="wrong: xxx") as refused:
        check(gate)
    assert len(str(refused.value)) < MAX_REASON_CHARACTERS + 100


def test_without_a_verdict_nothing_is_remembered() -> None:
    child = Child(Overloaded())
    gate = GrammarGate(child)
    with pytest.raises(Overloaded):
        check(gate)
    check(gate)
    assert child.asked == 2


class SlowChild(Child):
    """Answers when it is told to."""

    def __init__(self, *reasons: str | Exception | None) -> None:
        super().__init__(*reasons)
        self.go = asyncio.Event()

    async def __call__(self, grammar: Grammar) -> str | None:
        await self.go.wait()
        return await super().__call__(grammar)


@pytest.mark.parametrize("reason", [None, "it is wrong", Overloaded()])
def test_those_who_ask_together_share_one_check(reason: str | Exception | None) -> None:
    async def run() -> None:
        child = SlowChild(reason)
        gate = GrammarGate(child)
        asking = [asyncio.ensure_future(gate.check(A)) for _ in range(64)]
        other = asyncio.ensure_future(gate.check(Grammar("regex", "b")))
        await asyncio.sleep(0)
        asking[0].cancel()  # the client that asked first leaves
        child.go.set()
        first, *ends = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(first, asyncio.CancelledError)
        wanted = {None: type(None), "it is wrong": GrammarRefused}.get(reason, Overloaded)
        assert {type(end) for end in ends} == {wanted}
        await other
        assert child.asked == 2
        await gate.check(Grammar("regex", "b"))
        assert child.asked == 2

    asyncio.run(run())


def test_a_check_that_nobody_waits_for_ends_quietly() -> None:
    problems: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: problems.append(told))
        child = SlowChild(Overloaded(), None)
        gate = GrammarGate(child)
        asking = asyncio.ensure_future(gate.check(A))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        child.go.set()
        await asyncio.sleep(0.01)
        gc.collect()  # an error that nobody looked at is told when it is forgotten
        assert child.asked == 1
        await gate.check(A)
        assert child.asked == 2

    asyncio.run(run())
    assert problems == []


def test_the_least_recent_verdict_is_forgotten_first() -> None:
    child = Child()
    gate = GrammarGate(child)
    check(gate)
    for number in range(MAX_VERDICTS):
        check(gate, Grammar("regex", f"b{number}"))
        if number < MAX_VERDICTS - 1:
            check(gate)
    assert child.asked == MAX_VERDICTS + 1
    check(gate)
    check(gate, Grammar("regex", "b0"))
    assert child.asked == MAX_VERDICTS + 2


def test_without_a_process_it_is_not_the_grammars_fault() -> None:
    async def run() -> None:
        pool = SandboxPool()
        grammars.add_to(pool, "/no/such/model")
        try:
            await GrammarGate(partial(grammars.why_not, pool)).check(A)
        finally:
            await pool.close()

    with pytest.raises(Unhealthy, match="grammars cannot be checked"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"properties": {"a": {"const": "\\ud800"}}}', "half of a surrogate pair"),
        ("{", "not JSON"),
        ("[1]", "must be a schema as an object"),
        ("{}", "needs `properties`"),
        ('{"properties": {"a": {"minimum": ' + "9" * 5_000 + "}}}", "not JSON"),
    ],
)
def test_schemas_in_strings(value: str, said: str) -> None:
    with pytest.raises(ValidationError, match=f"grammar is not (valid|supported): .*{said}"):
        grammar_of(JsonGrammar(type="json", value=value))
