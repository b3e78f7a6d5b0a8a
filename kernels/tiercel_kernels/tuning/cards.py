"""Which card of a table a device takes its launch parameters from."""

from collections.abc import Iterable

# KiB of shared memory that one block can have, by compute capability: CUDA's programming guide.
SHARED_KIB = {
    75: 64,
    80: 163,
    86: 99,
    87: 163,
    89: 99,
    90: 227,
    100: 227,
    103: 227,
    120: 99,
    121: 99,
}


def stand_in(capability: int, shared_kib: int) -> int:
    """The card itself if it is known, else one that is: see `nearest`."""
    if capability in SHARED_KIB:
        return capability
    return _most_alike(SHARED_KIB, capability, shared_kib)


def nearest(listed: Iterable[int], capability: int) -> int:
    """Of the cards that a table lists, and that are no newer than this one and have no more shared
    memory, the one with most, and of those the newest. What is made for 227 KiB cannot be launched
    where there are 99.

    Raises KeyError for a capability that is not in SHARED_KIB, ValueError for one below 75.
    """
    return _most_alike(listed, capability, SHARED_KIB[capability])


def _most_alike(listed: Iterable[int], capability: int, shared_kib: int) -> int:
    fitting = [each for each in listed if each <= capability and SHARED_KIB[each] <= shared_kib]
    return max(fitting, key=lambda each: (SHARED_KIB[each], each))
