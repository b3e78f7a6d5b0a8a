"""A vocabulary of Falcon's size, learned from the text of Python's own library: nothing to load."""

import sysconfig
from pathlib import Path

from tiercel.eyas.vocabulary import save_tokenizer, train_tokenizer

TEXT_CHARACTERS = 22_000_000  # 12 million hold 58,663 tokens; some 20 s of training


def make_large_tokenizer(folder: Path, tokens: int = 65_024) -> Path:
    """A byte-level BPE in Falcon's layout with up to `tokens` tokens; returns `folder`."""
    texts: list[str] = []
    length = 0
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(texts[-1])
        if length > TEXT_CHARACTERS:
            break
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer(texts, tokens), folder)
    return folder
