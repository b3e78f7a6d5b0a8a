"""Grammars at the edge: from the three shapes of the wire to one, refused before the queue.

Compiling is tried in a killable child, because a small grammar can take hours; what passed there
is cheap in the engine. Verdicts are remembered, good and bad ones.
"""

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tiercel.api.schema import GrammarBody, JsonGrammar, RegexGrammar
from tiercel.errors import ValidationError
from tiercel.wire.request import Grammar

MAX_VERDICTS = 128
MAX_GRAMMAR_CHARACTERS = 65_536


def grammar_of(body: GrammarBody) -> Grammar:
    """The grammar that a request asks for. Raises ValidationError (contract 3.2, 18 and 19)."""
    if isinstance(body, RegexGrammar):
        return _bounded(Grammar("regex", body.value))
    schema = body.value if isinstance(body, JsonGrammar) else body.value.schema_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ValidationError(f"`grammar` is not valid: not JSON: {error}") from None
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
    return grammar


class GrammarGate:
    """Lets a grammar pass that `compiles`, and remembers which did. Used on one event loop."""

    def __init__(self, compiles: Callable[[Grammar], Awaitable[str | None]]) -> None:
        """`compiles` answers None, or a sentence that says why not."""
        self._compiles = compiles
        self._verdicts: OrderedDict[Grammar, str | None] = OrderedDict()  # least recent first

    async def check(self, grammar: Grammar) -> None:
        """Raises ValidationError for a grammar that cannot be compiled within the limits."""
        _bounded(grammar)
        if grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            reason = self._verdicts[grammar]
        else:
            reason = await self._compiles(grammar)
            self._verdicts[grammar] = reason
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        if reason is not None:
            raise ValidationError(f"grammar is not valid: {reason}")
