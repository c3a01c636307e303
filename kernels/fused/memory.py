"""Device memory that the step takes for itself, for plans that are made without a device."""

from __future__ import annotations

from ..config import AttentionShape, SparseConfig
from ..cuda.occupancy import MAX_CLUSTER
from .layout import arrangement, exchanged, lay_out

EXPECTED_MULTIPROCESSORS = 132  # of an H100 or H200: what memory is planned for before the device is known


def expected_exchange_bytes(
    shape: AttentionShape, config: SparseConfig, tokens: int, element: int, read: int, searches: bool = True
) -> int:
    """Device memory through which the clusters of one layer's rows speak, as far as it is known without a device.

    Planned for a chip that has room for clusters everywhere. Where groups of multiprocessors are smaller, clusters may
    be smaller and more. The larger part, a word for each block of a row that clusters share, stays the same.

    Args:
        tokens: that the cache has room for, a sequence.
        element: bytes of an element of a summary.
        read: bytes that a step reads of a row.
        searches: not all blocks are read.
    """
    rows, blocks = shape.batch * shape.kv_heads, config.blocks(tokens) if searches else 0
    at_once = {size: EXPECTED_MULTIPROCESSORS // size for size in range(1, MAX_CLUSTER + 1)}
    size, clusters = arrangement(rows, read, blocks, at_once.__getitem__)
    layout = lay_out(
        config, shape.head_dim, shape.group, tokens, element, size or 1, clusters=clusters, searches=searches
    )
    words, members = exchanged(layout, shape.group, shape.head_dim)
    return rows * (8 * words + 4 * members)
