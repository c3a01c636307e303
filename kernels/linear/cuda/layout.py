"""How the product of few rows is laid out on a chip: units, warps, clusters, slots (layout.cuh says what they are)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...config import ceil_div
from ...cuda.occupancy import RESERVED_BYTES
from ..int4 import NIBBLES, count_blocks

TILE, CHUNK_WORDS = 16, 32  # weight rows; words of a row
EIGHT = 8  # rows of x: the columns of a matrix product
MIN_WARPS, MAX_CLUSTER = 4, 8
MAX_WARPS = {1: 8, 2: 7}  # by eights of rows: two take up to 255 registers a lane, and a warp besides sums
SLOTS = 2  # of a warp's ring; three and four were slower (docs/notes/linear.md)


@dataclass(frozen=True, slots=True)
class Layout:
    """A product's layout; the fields without a comment are the constants of layout.cuh."""

    eights: int
    group: int
    depth: int
    columns: int  # N
    halves: int
    chunks: int
    warps: int
    cluster: int
    clusters: int  # CTAs share the weight rows by clusters, in fours of them
    least_bytes: int = 0  # shared memory that a CTA takes although it needs less
    slots: int = SLOTS

    @property
    def units(self) -> int:
        """That share K."""
        return ceil_div(count_blocks(self.depth, self.group) * self.group // CHUNK_WORDS, self.chunks)

    @property
    def threads(self) -> int:
        """Of a CTA: a warp besides those that multiply sums what they leave."""
        return 32 * (self.warps + 1)

    @property
    def ctas(self) -> int:
        """In all."""
        return self.cluster * self.clusters

    @property
    def owned(self) -> int:
        """Tiles that a CTA of a cluster finishes at most."""
        rows = ceil_div(self.columns // 4, self.clusters) * 4
        return ceil_div(ceil_div(rows, TILE), self.cluster)

    @property
    def slot_bytes(self) -> int:
        """Of a tile's words and scales in a unit."""
        parts = self.chunks // min(self.chunks, self.group // CHUNK_WORDS)
        padding = 16 if self.chunks == 1 else 0
        return TILE * (64 * self.chunks + padding) + parts * NIBBLES * 4 * TILE

    @property
    def shared_bytes(self) -> int:
        """Of a CTA, as layout.cuh adds them up."""
        share = self.halves * TILE * EIGHT * self.eights
        own = max(8 * share, 256 * self.chunks)
        squares = 4 * EIGHT * self.eights
        sums = self.warps * (self.slots * self.slot_bytes + own + squares) + 16 + squares * self.cluster
        return sums + (4 * self.owned * self.cluster * share if self.cluster > 1 else 0)

    @property
    def launch_bytes(self) -> int:
        """Shared memory that a CTA is started with."""
        return max(self.shared_bytes, self.least_bytes)

    def constants(self, fp16: bool) -> Mapping[str, int]:
        """What the kernel is compiled with."""
        return {
            "EIGHTS": self.eights, "GROUP": self.group, "DEPTH": self.depth, "CHUNKS": self.chunks,
            "WARPS": self.warps, "CLUSTER": self.cluster, "HALVES": self.halves, "SLOTS": self.slots,
            "OWNED": self.owned if self.cluster > 1 else 1, "FP16": int(fp16), "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip


def lay_out(
    rows: int, depth: int, group: int, columns: int, swiglu: bool, at_once: Callable[[int], int], shared_bytes: int
) -> Layout | None:
    """The layout of a product of `rows` rows of x, 1 to 16; None: not served.

    Units are as large as registers allow, since what a unit does for each tile counts less then. No multiprocessor gets
    two CTAs, whatever ran before: shares are fixed, and the last CTA counts.

    Args:
        columns: results a row: half as many as weight rows with `swiglu`.
        at_once: clusters of so many CTAs that run at the same time, with a CTA a multiprocessor.
        shared_bytes: that a CTA may take.
    """
    row_chunks = count_blocks(depth, group) * group // CHUNK_WORDS
    eights = ceil_div(rows, EIGHT)
    sizes = (2, 1) if group == CHUNK_WORDS else (4, 2, 1)
    chunks = next((size for size in sizes if row_chunks > MIN_WARPS * size), 1)
    units = ceil_div(row_chunks, chunks)
    cluster = ceil_div(units, MAX_WARPS[eights])
    if columns % 4 or not columns or cluster > MAX_CLUSTER or not at_once(cluster):
        return None
    warps = ceil_div(units, cluster)
    clusters = min(at_once(cluster), columns // 4)
    if cluster == 1:  # as many as take whole tiles: more would not make the longest share shorter
        clusters = ceil_div(columns, ceil_div(columns, TILE * clusters) * TILE)
    least = (shared_bytes + RESERVED_BYTES) // 2  # and those reserved: over half of a multiprocessor's
    layout = Layout(eights, group, depth, columns, 2 if swiglu else 1, chunks, warps, cluster, clusters, least)
    return layout if layout.shared_bytes <= shared_bytes else None
