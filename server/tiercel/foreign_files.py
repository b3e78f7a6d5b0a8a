"""Opens files that others wrote: regular ones, inside their folder, with bounded plain JSON.

Knows nothing of models. `BadFile` carries the reason; callers add the file's name and what to do.
Torch-free.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

SHOWN_CHARACTERS = 80


class BadFile(Exception):
    """Why a file cannot be used, as the end of a sentence that starts with the file's name."""


class MissingFile(BadFile):
    """There is none."""


def shown(value: object) -> str:
    """Return `value` from an untrusted file as one short printable line."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered. A FIFO or a device is refused without blocking.

    Raises BadFile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFile("does not exist") from error
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise BadFile("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def check_inside(folder: Path, path: Path) -> None:
    """Refuse a symbolic link that leads out of `folder`. Raises BadFile.

    A snapshot of the Hugging Face cache, `<repository>/snapshots/<revision>`, may link to
    `<repository>/blobs`: that is how the cache stores it.
    """
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(place) for place in allowed):
        raise BadFile(f"is a symbolic link that leads out of the folder, to {shown(str(target))}")


def read_exactly(file: BinaryIO, buffer: memoryview) -> int:
    """Fill `buffer` from the file's position on; return the bytes read, fewer only at its end."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


def read_object(path: Path, limit_bytes: int) -> dict[str, Any]:
    """Read a JSON object of at most `limit_bytes` from a regular file. Raises BadFile."""
    return parse_object(read_bytes(path, limit_bytes))


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Read a regular file of at most `limit_bytes`. Raises BadFile."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise BadFile(f"has {size} bytes; at most {limit_bytes} are read")
        data = bytearray(size)
        count = read_exactly(file, memoryview(data))
    return bytes(data[:count])


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; NaN, Infinity and a name that comes twice are errors. Raises BadFile."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise BadFile(f"is not JSON: invalid UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadFile(f"is not JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise BadFile(f"is not JSON that can be read: {shown(str(error))}") from error
    if not isinstance(value, dict):
        raise BadFile("is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadFile(f"holds the name {shown(name)} twice")
            seen.add(name)
    return value


def _no_constant(text: str) -> NoReturn:
    raise BadFile(f"holds the number {text}, which is not JSON")
