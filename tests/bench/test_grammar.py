"""The scenario of masks: its tokenizer and grammars; the measurement itself takes minutes."""

import json

from tiercel.bench import grammar


def test_every_grammar_is_another_and_a_valid_schema() -> None:
    grammars = [grammar.record_grammar(number) for number in range(grammar.ROWS)]
    assert len({each.text for each in grammars}) == grammar.ROWS
    for each in grammars:
        schema = json.loads(each.text)
        # A record has far more than two tokens, so no row ends within a block.
        assert schema["minItems"] * 2 > grammar.BLOCK_STEPS
