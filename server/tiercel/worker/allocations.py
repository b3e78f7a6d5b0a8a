"""What a load borrows from the allocator goes back to the system as soon as it is free."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED_BYTES = 1 << 20
# Where glibc's own moving threshold ends once a large block was freed: steps borrow the same blocks
# again and again, which is faster from the heap than from the system.
STEADY_BYTES = 32 << 20


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Blocks of a megabyte or more are mapped, not cut from the heap, which would keep them.

    150M parameters over FBGEMM took 129 MB (fp4) and 194 MB (bfloat16) beyond the weights at the
    worst moment of the load, and take 83 and 81. It costs them 0.3 s of 1.9; large models nothing,
    whose weights are mapped in any case. Nothing changes where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, STEADY_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * STEADY_BYTES)
