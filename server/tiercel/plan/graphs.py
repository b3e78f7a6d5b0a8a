"""Which batch sizes have a CUDA graph of their own. The server and its plan share the list."""

# Between powers of two, padding costs at most 8 rows up to 128 and 16 above.
_SIZES = (1, 2, 4, *range(8, 129, 8), *range(144, 513, 16))


def graph_sizes(max_rows: int, wanted: tuple[int, ...] | None = None) -> list[int]:
    """The batch sizes that steps are padded to and captured for, ascending.

    The largest holds all rows, up to 512, unless `wanted` says otherwise.
    """
    if wanted is not None:
        return sorted({size for size in wanted if 0 < size <= max_rows})
    sizes = [size for size in _SIZES if size < max_rows]
    return [*sizes, max_rows] if max_rows <= _SIZES[-1] else sizes
