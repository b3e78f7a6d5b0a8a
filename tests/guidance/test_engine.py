"""Grammars through the real engine on eyas: batches, preemption, chunks, errors, random schemas.

`make test-all` tries 200 random schemas, `make fuzz` a thousand (SCHEMA_CASES).
"""

import asyncio
import json
import os
import random
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest

from support.random_schemas import random_schema
from tiercel.api.grammar import grammar_of
from tiercel.api.schema import JsonGrammar
from tiercel.engine.inline import InlineEngine
from tiercel.eyas import __file__ as eyas_file
from tiercel.guidance.check import check_grammar
from tiercel.text.tokenizer import Tokenizer
from tiercel.wire.messages import TokenDelta
from tiercel.wire.options import EngineOptions
from tiercel.wire.request import GenerationRequest, Grammar, SamplingParams

EYAS = Path(eyas_file).parent
SCHEMA_CASES = int(os.environ.get("SCHEMA_CASES", "200"))
PERSON = {
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
}
Result = TypeVar("Result")


class Asker:
    """An engine and what it says to whole requests."""

    def __init__(self, engine: InlineEngine, tokenizer: Tokenizer) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.asked = 0

    async def ask(
        self,
        grammar: Grammar | None,
        prompt: str = "The answer is",
        new_tokens: int = 300,
        **sampling: Any,
    ) -> tuple[str, TokenDelta]:
        """The text, and the last delta."""
        self.asked += 1
        request = GenerationRequest(
            id=self.asked,
            token_ids=self.tokenizer.encode(prompt),
            max_new_tokens=new_tokens,
            sampling=SamplingParams(**sampling),
            stop_token_ids=list(self.tokenizer.eos_token_ids),
            grammar=grammar,
        )
        ids: list[int] = []
        last: TokenDelta | None = None
        async for delta in self.engine.generate(request):
            ids += [token.id for token in delta.tokens]
            last = delta
        assert last is not None
        return self.tokenizer.decode(ids), last


def with_engine(use: Callable[[Asker], Awaitable[Result]], **options: Any) -> Result:
    async def run() -> Result:
        given = {"max_batch_total_tokens": 16_384, "max_batch_size": 16} | options
        engine = InlineEngine(EngineOptions(model_path=str(EYAS), **given))
        try:
            return await use(Asker(engine, Tokenizer.load(EYAS)))
        finally:
            engine.close()

    return asyncio.run(run())


def schema_grammar(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def test_each_of_a_batch_gets_what_it_asked_for() -> None:
    async def use(asker: Asker) -> list[tuple[str, TokenDelta]]:
        free = await asker.ask(None, new_tokens=20)
        return [
            free,
            *await asyncio.gather(
                asker.ask(Grammar("regex", "[ab]{3}")),
                asker.ask(None, new_tokens=20),
                asker.ask(schema_grammar(PERSON)),
                asker.ask(schema_grammar(PERSON), do_sample=True, seed=7, temperature=1.5),
                asker.ask(Grammar("regex", "(")),
                asker.ask(Grammar("regex", "a{5}"), new_tokens=2),
                asker.ask(Grammar("regex", "[0-9]+ apples"), top_n_tokens=3),
            ),
        ]

    alone, letters, free, greedy, drawn, broken, cut, apples = with_engine(use)
    assert re.fullmatch("[ab]{3}", letters[0])
    assert letters[1].finish_reason == "eos_token"
    assert free == (alone[0], free[1])  # its neighbours changed nothing
    for text, last in (greedy, drawn):
        jsonschema.validate(json.loads(text), PERSON)
        assert list(json.loads(text)) == ["name", "age", "tags"]
        assert last.finish_reason == "eos_token"
    assert greedy[0] != drawn[0]
    assert broken[1].error_type == "validation"
    assert broken[1].error is not None
    assert "unclosed group" in broken[1].error
    assert cut[1].finish_reason == "length"
    assert re.fullmatch("a{1,4}", cut[0])
    assert re.fullmatch("[0-9]+ apples", apples[0])


def test_preemption_and_chunks_change_nothing() -> None:
    async def use(asker: Asker) -> list[str]:
        asks = [
            asker.ask(schema_grammar(PERSON), f"Story {i}", 150, do_sample=True, seed=i)
            for i in range(6)
        ]
        texts = [text for text, _ in await asyncio.gather(*asks)]
        stats = asker.engine.stats
        assert stats is not None
        preempted.append(stats.preemptions)
        return texts

    preempted: list[int] = []
    roomy = with_engine(use, dtype="float32")
    tight = with_engine(
        use,
        max_batch_total_tokens=256,
        max_batch_prefill_tokens=32,
        max_total_tokens=256,
        dtype="float32",  # chunks of other sizes round otherwise in bfloat16
        prefix_caching=False,
    )
    assert tight == roomy
    assert preempted[0] == 0
    assert preempted[1] > 0
    for text in tight:
        jsonschema.validate(json.loads(text), PERSON)


def test_a_grammar_that_fails_midway_ends_its_request_only() -> None:
    bomb = Grammar("regex", "(x{1,1000}){1,1000}")  # the edge refuses it; the engine survives it

    async def use(asker: Asker) -> list[tuple[str, TokenDelta]]:
        return await asyncio.gather(
            asker.ask(bomb, new_tokens=400), asker.ask(schema_grammar(PERSON))
        )

    bombed, person = with_engine(use)
    assert bombed[1].error_type == "generation"
    assert "grammar" in str(bombed[1].error)
    jsonschema.validate(json.loads(person[0]), PERSON)


def test_an_engine_without_grammars_refuses_them() -> None:
    async def use(asker: Asker) -> tuple[TokenDelta, str]:
        _, last = await asker.ask(schema_grammar(PERSON))
        return last, (await asker.ask(None, new_tokens=5))[0]

    last, text = with_engine(use, grammar_support=False)
    assert last.error_type == "validation"
    assert "not supported" in str(last.error)
    assert text


def test_an_abort_while_the_grammar_compiles_is_counted() -> None:
    slow = schema_grammar({"properties": {f"p{i}": {"type": "string"} for i in range(1_500)}})

    async def use(asker: Asker) -> int:
        task = asyncio.ensure_future(asker.ask(slow))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asker.ask(Grammar("regex", "a"))  # waits until the compiler is free again
        stats = asker.engine.stats
        assert stats is not None
        assert (stats.running, stats.waiting) == (0, 0)
        return stats.aborted

    assert with_engine(use) == 1


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_random_schemas_give_valid_json() -> None:
    """On the way that a request takes: the edge's form, the sandbox's check, the engine."""
    draw = random.Random(2)
    schemas = [random_schema(draw) for _ in range(SCHEMA_CASES)]
    grammars = [grammar_of(JsonGrammar(type="json", value=schema)) for schema in schemas]
    check = check_grammar(str(EYAS))
    for grammar in grammars:
        check([grammar.kind, grammar.text])  # JobRefused would be a 422

    async def use(asker: Asker) -> list[tuple[str, TokenDelta]]:
        return await asyncio.gather(
            *(
                asker.ask(grammar, new_tokens=900, do_sample=True, seed=number)
                for number, grammar in enumerate(grammars)
            )
        )

    for schema, (text, last) in zip(schemas, with_engine(use), strict=True):
        assert last.finish_reason == "eos_token", (schema, text, last)
        jsonschema.validate(json.loads(text), schema)
