"""What the device gives at best, measured on the spot; and what to think of a row that is faster.

No one way of reading is the best on every chip and at every size: the read ceiling is the best of several. A kernel
that is being timed may still read a little faster than all of them. Such a row has measured the chip better than we
have, and raises the ceiling; only what no ceiling explains is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .stats import quantile
from .streaming import PATTERNS, ReadPattern, stream
from .timing import Op, Plan, Timer, measure

HEADROOM = 0.03
"""By how much a row may beat a floor and still be believed."""

GPU_BYTES = 2**33  # so long a read that its beginning and end, some microseconds, weigh a thousandth
CPU_BYTES = 2**30
LIBRARY_BYTES = 2**31  # beyond, torch splits a reduction into several kernels

Bound = Literal["read", "matrix"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a time beside its floor means.

    Attributes:
        kind: "within" (the floor holds); "raised" (faster by a little: the chip gives more than was measured);
            "impossible" (faster than any ceiling explains).
        ceilings: those that hold for this row: the measured ones, or with the raised rate.
        reason: for the row, one line; None within.
    """

    kind: Literal["within", "raised", "impossible"]
    ceilings: Ceilings
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best rates seen. GB are decimal; a copy counts bytes read and written."""

    read_gbps: float
    copy_gbps: float
    matrix_tflops: float

    def floor_us(self, bytes_: int, flops: int) -> float:
        """Shortest time for a stage's compulsory work: bytes at the read ceiling or FLOPs at the matrix rate."""
        return max(bytes_ / (self.read_gbps * 1e3), flops / (self.matrix_tflops * 1e6))

    def bound(self, bytes_: int, flops: int) -> Bound:
        """Which of the two rates sets the floor of that work."""
        return "matrix" if flops / (self.matrix_tflops * 1e6) > bytes_ / (self.read_gbps * 1e3) else "read"

    def verdict(self, floor_us: float, median_us: float, bound: Bound = "read") -> Verdict:
        """What a time means beside its floor, both in microseconds; `self` is what was *measured*.

        Ask the measured ceilings for every row, never raised ones: rows that beat each other by a little would
        otherwise raise them without end.

        Args:
            floor_us: by these ceilings.
            bound: the rate that sets the floor, which is the one raised.
        """
        if median_us >= floor_us:
            return Verdict("within", self)
        if not floor_us <= median_us * (1 + HEADROOM):  # so that NaN is not believed either
            reason = f"{median_us:.2f} us beats the floor of {floor_us:.2f} us: wrong bytes or a warm cache"
            return Verdict("impossible", self, reason)
        ratio = floor_us / median_us
        if bound == "matrix":
            raised = replace(self, matrix_tflops=self.matrix_tflops * ratio)
            change = f"matrix ceiling raised from {self.matrix_tflops:.4g} to {raised.matrix_tflops:.4g} TFLOP/s"
        else:
            raised = replace(self, read_gbps=self.read_gbps * ratio)
            change = f"read ceiling raised from {self.read_gbps:.1f} to {raised.read_gbps:.1f} GB/s"
        return Verdict("raised", raised, f"{change}: this row is faster than the floor by {ratio - 1:.1%}")


def measure_ceilings(timer: Timer, *, stream_bytes: int | None = None, matrix: int | None = None) -> Ceilings:
    """Read buffers far larger than the cache in several ways, copy one, multiply square matrices of random data.

    The rate of each way is that of the 5th percentile of its times, so that a floor computed from it is not beaten by
    luck; the read ceiling is the best of them. Some hundred milliseconds on a GPU, after compilation. What was
    allocated there is released.

    Args:
        stream_bytes: of the largest buffer, a multiple of 64; 8 GiB on a GPU, or a quarter of what is free there, and
            1 GiB on a CPU.
        matrix: rows and columns of the matrices; 8192 on a GPU, 2048 on a CPU.
    """
    n = matrix or (8192 if timer.device.type == "cuda" else 2048)
    if timer.device.type != "cuda":
        return _best_rates(timer, stream_bytes or CPU_BYTES, n)
    with torch.cuda.device(timer.device):  # where Triton launches
        free, _ = torch.cuda.mem_get_info()
        ceilings = _best_rates(timer, stream_bytes or min(GPU_BYTES, free // 4 // 2**20 * 2**20), n)
        torch.cuda.empty_cache()
    return ceilings


def _best_rates(timer: Timer, stream_bytes: int, n: int) -> Ceilings:
    cuda = timer.device.type == "cuda"
    source = torch.empty(stream_bytes // 4, dtype=torch.float32, device=timer.device).uniform_(-1, 1)
    first, second = source.chunk(2)
    square = torch.randn(n, n, device=timer.device, dtype=torch.bfloat16 if cuda else torch.float32)
    reads = list(_reads(source))
    ops = [
        *(Op(read.name, read.run) for read in reads),
        Op("copy", lambda: first.copy_(second)),
        Op("matrix", lambda: square @ square),
    ]
    plan = Plan(budget_s=2.0 if cuda else 6.0, min_samples=10 if cuda else 5, max_samples=60, warmup_s=0.02)
    best_us = {key: quantile(sorted(s.times_us), 0.05) for key, s in measure(ops, timer, plan).items()}
    return Ceilings(
        read_gbps=max(read.bytes / best_us[read.name] / 1e3 for read in reads),
        copy_gbps=2 * second.nbytes / best_us["copy"] / 1e3,
        matrix_tflops=2 * n**3 / best_us["matrix"] / 1e6,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """One way to read memory, and the bytes that it reads."""

    name: str
    bytes: int
    run: Callable[[], object]


def _reads(source: Tensor) -> Iterator[_Read]:
    """Ways to read `source`, float32, or parts of it."""
    part = source[: LIBRARY_BYTES // 4]
    quarter = part[: part.numel() // 4]
    first, second = part.chunk(2)
    yield _Read("sum", part.nbytes, part.sum)
    yield _Read("sum of a quarter", quarter.nbytes, quarter.sum)
    yield _Read("dot of halves", part.nbytes, lambda: torch.dot(first, second))
    if source.device.type == "cuda":
        wide = part.view(torch.float64)
        yield _Read("sum of 64-bit words", part.nbytes, wide.sum)
        for pattern in PATTERNS:
            yield from _stream_read(source.view(torch.int32), pattern)


def _stream_read(words: Tensor, pattern: ReadPattern) -> Iterator[_Read]:
    """The same by a kernel of ours; nothing where this Triton cannot compile it for the device."""
    programs = words.numel() // pattern.words
    part = words[: programs * pattern.words]
    sums = torch.empty(programs, dtype=torch.int32, device=words.device)
    try:
        stream(part, sums, pattern)
    except Exception:  # whatever a compiler raises; the library's reads remain
        return
    yield _Read(pattern.name, part.nbytes, lambda: stream(part, sums, pattern))
