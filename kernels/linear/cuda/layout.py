"""How the product of few rows is laid out on a chip: units, warps, clusters, slots (layout.cuh says what they are)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...config import ceil_div
from ..int4 import NIBBLES, count_blocks

TILE, CHUNK_WORDS = 16, 32  # weight rows; words of a row
MIN_WARPS, MAX_WARPS, MAX_CLUSTER = 4, 8, 8
CLUSTER_WARPS = 7  # of a CTA that shares K with others, at most: three slots of eight warps would not fit
SHARED_BYTES = 228 * 1024 // 2 - 1024  # of a CTA, so that two kernels have room on a multiprocessor, and so with:
REGISTERS = 65536 // 2
ALONE_BYTES = SHARED_BYTES + 1024  # of a CTA that has no room for another one of its size beside it
MAX_REGISTERS, MAX_SLOTS = 168, 4
MAX_OWNED = 4  # tiles that a CTA of a cluster finishes


@dataclass(frozen=True, slots=True)
class Layout:
    """A product's layout; the fields without a comment are the constants of layout.cuh."""

    group: int
    depth: int
    columns: int  # N
    halves: int
    chunks: int
    warps: int
    cluster: int
    clusters: int  # CTAs share the weight rows by clusters, in fours of them
    slots: int
    release: int = 2  # lets the next kernel in: 1 once x is there, 2 when all weights are asked for, too; 0 at once,
    # which is for tuning alone: kernels rely on that what ended before the kernel before them is there (launch.py)
    ahead: int = 0  # further tiles (or halves) whose words are asked into the L2 before x is there
    bulk: int = 0
    exact: int = 0
    registers: int = 0  # 0: as many as leave room for two kernels
    alone: int = 0  # asks for more than half of a multiprocessor's shared memory: never two of its CTAs on one,
    # and in waves where clusters do not all fit so

    @property
    def units(self) -> int:
        """That share K."""
        return ceil_div(count_blocks(self.depth, self.group) * self.group // CHUNK_WORDS, self.chunks)

    @property
    def threads(self) -> int:
        """Of a CTA."""
        return 32 * self.warps

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
        padding = 16 if self.bulk or self.chunks == 1 else 0
        return TILE * (64 * self.chunks + padding) + parts * NIBBLES * 4 * TILE

    @property
    def shared_bytes(self) -> int:
        """Of a CTA, as layout.cuh adds them up."""
        share = self.halves * TILE * 8
        own = max(8 * share, 256 * self.chunks)
        exchange = self.warps * (self.slots * self.slot_bytes + own + 32) + 8 * self.warps * self.slots + 8
        sums = ceil_div(exchange, 16) * 16 + 32 * self.cluster
        return sums + (4 * self.owned * self.cluster * share if self.cluster > 1 else 0)

    @property
    def launch_bytes(self) -> int:
        """Shared memory that a CTA is started with."""
        return max(self.shared_bytes, ALONE_BYTES) if self.alone else self.shared_bytes

    def constants(self, fp16: bool) -> Mapping[str, int]:
        """What the kernel is compiled with."""
        most = min(REGISTERS // self.threads // 8 * 8, MAX_REGISTERS)
        return {
            "GROUP": self.group, "DEPTH": self.depth, "CHUNKS": self.chunks, "WARPS": self.warps,
            "CLUSTER": self.cluster, "HALVES": self.halves, "SLOTS": self.slots,
            "OWNED": self.owned if self.cluster > 1 else 1, "FP16": int(fp16), "REGISTERS": self.registers or most,
            "SHARED_BYTES": self.shared_bytes, "EXACT": self.exact, "BULK": self.bulk, "RELEASE": self.release,
            "AHEAD": self.ahead,
        }  # fmt: skip


def lay_out(
    depth: int, group: int, columns: int, swiglu: bool, multiprocessors: int, shared_bytes: int = SHARED_BYTES
) -> Layout | None:
    """The layout of a product of `columns` results a row, half as many as weight rows with `swiglu`; None: not served.

    Units are as large as registers allow, since what a unit does for each tile counts less then.

    Args:
        shared_bytes: that a CTA may take.
    """
    row_chunks = count_blocks(depth, group) * group // CHUNK_WORDS
    sizes = (2, 1) if group == CHUNK_WORDS else (4, 2, 1)
    chunks = next((size for size in sizes if row_chunks > MIN_WARPS * size), 1)
    units = ceil_div(row_chunks, chunks)
    cluster = 1 if units <= MAX_WARPS else ceil_div(units, CLUSTER_WARPS)
    quads = columns // 4
    if columns % 4 or not columns or cluster > MAX_CLUSTER:
        return None
    warps = max(MIN_WARPS, ceil_div(units, cluster))
    clusters = min(max(multiprocessors // cluster, 1), quads)
    if cluster > 1:
        clusters = max(clusters, min(ceil_div(quads, MAX_OWNED * cluster * TILE // 4), quads))
    halves = 2 if swiglu else 1
    for slots in range(MAX_SLOTS, 1, -1):
        layout = Layout(group, depth, columns, halves, chunks, warps, cluster, clusters, slots)
        if layout.shared_bytes <= min(shared_bytes, SHARED_BYTES):
            return layout
    return None
