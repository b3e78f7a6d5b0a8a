"""Grammars at the edge: from the three shapes of the wire to one, refused before the queue.

Compiling is tried in a killable child, because a small grammar can take hours; what passed there
is cheap in the engine. Verdicts are remembered, bad ones for a while.
"""

import asyncio
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from tiercel.api.schema import GrammarBody, JsonGrammar, RegexGrammar
from tiercel.errors import GrammarRefused, ValidationError
from tiercel.text.tokenizer import lone_surrogate
from tiercel.wire.request import Grammar

MAX_VERDICTS = 128
# A refusal can depend on the moment: a child that died, or a costly grammar that would have passed
# without others that waited. So it is looked at again.
REFUSAL_S = 30.0
MAX_GRAMMAR_CHARACTERS = 65_536
MAX_REASON_CHARACTERS = 500


def grammar_of(body: GrammarBody) -> Grammar:
    """The grammar that a request asks for. Raises ValidationError (contract 3.2, 18 and 19)."""
    if isinstance(body, RegexGrammar):
        return _bounded(Grammar("regex", body.value))
    schema = body.value if isinstance(body, JsonGrammar) else body.value.schema_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarRefused(f"grammar is not valid: `grammar` is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValidationError(
            "grammar is not supported: the `value` of a JSON `grammar` must be a schema as an "
            "object, or a string that holds one"
        )
    if "properties" not in schema:
        raise ValidationError("grammar is not valid: the schema of `grammar` needs `properties`")
    return _bounded(json_schema(schema))


def json_schema(schema: object) -> Grammar:
    """The grammar of JSON that fits a schema; keys come out in the schema's order."""
    return Grammar("json_schema", json.dumps(schema, separators=(",", ":"), ensure_ascii=False))


def _bounded(grammar: Grammar) -> Grammar:
    if len(grammar.text) > MAX_GRAMMAR_CHARACTERS:
        raise ValidationError(
            f"grammar is not valid: `grammar` must have at most {MAX_GRAMMAR_CHARACTERS} "
            f"characters. Given: {len(grammar.text)}"
        )
    if lone_surrogate(grammar.text) is not None:  # a schema in a string can escape one
        raise ValidationError("grammar is not valid: `grammar` has half of a surrogate pair")
    return grammar


def _clipped(reason: str | None) -> str | None:
    """It may quote the grammar, and goes to the log as well."""
    if reason is None or len(reason) <= MAX_REASON_CHARACTERS:
        return reason
    return f"{reason[:MAX_REASON_CHARACTERS]}..."


class GrammarGate:
    """Lets a grammar pass that `compiles`, and remembers which did. Used on one event loop.

    Many clients with one new schema at the same moment are the usual case of structured output:
    they wait for one check, where a check for each would fill the lane and cut the innocent short.
    """

    def __init__(self, compiles: Callable[[Grammar], Coroutine[Any, Any, str | None]]) -> None:
        """`compiles` answers None, or a sentence that says why not."""
        self._compiles = compiles
        self._running: dict[Grammar, asyncio.Task[str | None]] = {}
        # Why not, and when that is forgotten; least recent first.
        self._verdicts: OrderedDict[Grammar, tuple[str | None, float]] = OrderedDict()

    async def check(self, grammar: Grammar) -> None:
        """Raises ValidationError for a grammar that cannot be compiled within the limits."""
        _bounded(grammar)
        reason, until_s = self._verdicts.get(grammar, (None, -math.inf))
        if time.monotonic() >= until_s:
            reason = _clipped(await self._checked(grammar))
            until_s = math.inf if reason is None else time.monotonic() + REFUSAL_S
        self._verdicts[grammar] = reason, until_s
        self._verdicts.move_to_end(grammar)
        if len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        if reason is not None:
            raise GrammarRefused(f"grammar is not valid: {reason}")

    async def _checked(self, grammar: Grammar) -> str | None:
        """What `compiles` says, to all who ask while it runs. It ends though they leave."""
        task = self._running.get(grammar)
        if task is None:
            task = self._running[grammar] = asyncio.ensure_future(self._compiles(grammar))

            def ended(done: "asyncio.Task[str | None]") -> None:
                del self._running[grammar]
                if not done.cancelled():
                    done.exception()  # also where nobody waits any more

            task.add_done_callback(ended)
        return await asyncio.shield(task)
