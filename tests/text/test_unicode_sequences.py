"""R-23: streams of random tokens over a whole vocabulary, and text that is hard to cut."""

import random
import time

import pytest

from support.vocabularies import falcon_sized
from tiercel.text.detokenizer import REPLACEMENT, Detokenizer
from tiercel.text.tokenizer import Tokenizer

SEQUENCES = 10_000
TOKENS = 40
TOKEN_S = 0.001  # on average over a sequence


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(falcon_sized(tmp_path_factory.mktemp("falcon")))


def test_ten_thousand_random_sequences(falcon: Tokenizer) -> None:
    assert falcon.vocab_size == 65_024
    rng = random.Random(23)
    seen: set[int] = set()
    began = time.perf_counter()
    for _ in range(SEQUENCES):
        ids = [rng.randrange(falcon.vocab_size) for _ in range(TOKENS)]
        seen.update(ids)
        detokenizer = Detokenizer(falcon)
        stream = "".join([detokenizer.push(each) for each in ids]) + detokenizer.flush()
        whole = falcon.decode(ids, skip_special_tokens=False)
        missing = whole.removeprefix(stream)  # an incomplete last character, and nothing else
        assert whole == stream + missing
        assert missing in ("", REPLACEMENT, 2 * REPLACEMENT)
        raw = b"".join(falcon.token_bytes(each) for each in ids)
        if REPLACEMENT in stream:  # only where the bytes are truly invalid
            with pytest.raises(UnicodeDecodeError):
                raw.decode()
    assert (time.perf_counter() - began) / (SEQUENCES * TOKENS) <= TOKEN_S
    assert len(seen) > 0.99 * falcon.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301" * 400_000,  # one grapheme of 800 kB
        "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 20_000,  # families, joined
        "\u202e\u05d0\u05d1\u2067\u0627" * 20_000,  # right to left, with overrides
        "\x00\ufeff\u0085\u2028\u2029" * 20_000,
    ],
    ids=["combining", "joined", "right to left", "control"],
)
def test_floods_arrive_whole_and_in_time(falcon: Tokenizer, text: str) -> None:
    single = {falcon.token_bytes(each): each for each in range(falcon.vocab_size)}
    ids = [single[bytes([each])] for each in text.encode()]
    detokenizer = Detokenizer(falcon)
    began = time.perf_counter()
    stream = "".join([detokenizer.push(each) for each in ids]) + detokenizer.flush()
    assert (time.perf_counter() - began) / len(ids) <= TOKEN_S
    assert stream == text
    assert detokenizer.generated_text() == text
