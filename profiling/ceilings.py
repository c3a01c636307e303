"""What the device gives at best, measured on the spot: reads, copies, matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .stats import quantile
from .timing import Op, Plan, Timer, measure


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best rates seen. GB are decimal; a copy counts bytes read and written."""

    read_gbps: float
    copy_gbps: float
    matrix_tflops: float

    def floor_us(self, bytes_: int, flops: int) -> float:
        """Shortest time for a stage's compulsory work: bytes at the read ceiling or FLOPs at the matrix rate."""
        return max(bytes_ / (self.read_gbps * 1e3), flops / (self.matrix_tflops * 1e6))


def measure_ceilings(timer: Timer, *, stream_bytes: int | None = None, matrix: int | None = None) -> Ceilings:
    """Stream a buffer far larger than the cache (2 GiB on a GPU) and multiply square matrices of random data.

    The ceiling is the 5th percentile of the times, so that a floor computed from it is not beaten by luck.
    """
    cuda = timer.device.type == "cuda"
    size = stream_bytes or (2**31 if cuda else 2**30)
    n = matrix or (8192 if cuda else 2048)
    source = torch.empty(size // 4, dtype=torch.float32, device=timer.device).uniform_(-1, 1)
    target = torch.empty_like(source)
    a = torch.randn(n, n, device=timer.device, dtype=torch.bfloat16 if cuda else torch.float32)
    ops = [
        Op("read", source.sum),
        Op("copy", lambda: target.copy_(source)),
        Op("matrix", lambda: a @ a),
    ]
    plan = Plan(budget_s=2.0 if cuda else 6.0, min_samples=10 if cuda else 5, max_samples=60, warmup_s=0.02)
    best = {key: quantile(sorted(s.times_us), 0.05) for key, s in measure(ops, timer, plan).items()}
    return Ceilings(
        read_gbps=size / best["read"] / 1e3,
        copy_gbps=2 * size / best["copy"] / 1e3,
        matrix_tflops=2 * n**3 / best["matrix"] / 1e6,
    )
