"""What exchanges between ranks take: a model of NCCL's ring over NVLink, or latency and bandwidth as measured.

An all-reduce of n bytes over N ranks is 2 (N - 1) steps round a ring and moves 2 (N - 1) / N n bytes over each link:

    time = base + steps * step + 2 (N - 1) / N * n / bandwidth

NCCL has three protocols with constants of their own and takes the fastest; an all-gather has half of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..core.ranks import Ranks
from ..core.rows import digits
from ..core.spec import MethodSpec
from ..model.config import ModelConfig
from .case import ModelCase
from .costs import element_bytes


@dataclass(frozen=True, slots=True)
class Protocol:
    """How ranks talk: `base_us` once, `step_us` for each step round the ring, `gbps` over each link."""

    base_us: float
    step_us: float
    gbps: float

    def time_us(self, steps: int, link_bytes: float) -> float:
        """Of so many steps, and bytes over each link."""
        return self.base_us + steps * self.step_us + link_bytes / self.gbps / 1e3


NVLINK4_GBPS = 370.0
"""What NCCL reaches of an H100's 450 GB/s, as its maintainers say (github.com/NVIDIA/nccl-tests/issues/212)."""
NCCL_H100 = (
    Protocol(6.6, 0.6, 141.0),  # LL
    Protocol(14.0, 1.9, 0.92 * NVLINK4_GBPS),  # LL128
    Protocol(8.4, 3.4, NVLINK4_GBPS),  # Simple
)
"""Ring over NVLink on Hopper, from NCCL's own cost model (its baseLatencies, hwLatencies and llMaxBws)."""


@dataclass(frozen=True, slots=True)
class ExchangeTime:
    """Times of exchanges over `ranks` ranks; `source` says where the constants are from, for rows and tables."""

    ranks: int
    protocols: Sequence[Protocol] = NCCL_H100
    source: str = "NCCL's cost model of a ring over an H100's NVLink"

    @classmethod
    def measured(cls, ranks: int, latency_us: float, gbps: float) -> ExchangeTime:
        """Of an all-reduce that takes `latency_us` for few bytes, and moves `gbps` over each link for many."""
        steps = 2 * (ranks - 1)
        source = f"measured: {latency_us:g} us an all-reduce, {gbps:g} GB/s a link"
        return cls(ranks, (Protocol(latency_us / 2, latency_us / 2 / steps, gbps),), source)

    def all_reduce_us(self, count: int) -> float:
        """Of `count` bytes on every rank."""
        return self._time_us(2 * (self.ranks - 1), count)

    def all_gather_us(self, count: int) -> float:
        """Of `count` bytes, those of all ranks together."""
        return self._time_us(self.ranks - 1, count)

    def _time_us(self, steps: int, count: int) -> float:
        return min(protocol.time_us(steps, steps / self.ranks * count) for protocol in self.protocols)

    def step_us(self, case: ModelCase, spec: MethodSpec) -> float:
        """Of one decode step: two all-reduces a layer and the logits, a rectification's share amortised in."""
        config, size = case.config, element_bytes(case)
        row = config.hidden * size
        step = 2 * config.layers * self.all_reduce_us(case.batch * spec.window * row)
        step += self.all_gather_us(case.batch * config.vocab * size)
        if not spec.rectifies:
            return step
        every = spec.config.rectify_every
        return step + 2 * (config.layers - 1) * self.all_reduce_us(case.batch * every * row) / every


def exchange_time(config: ModelConfig, given: tuple[float, float] | None) -> ExchangeTime | None:
    """Of a model's ranks, at the latency (us) and bandwidth (GB/s a link) given; None for a model of one rank."""
    if config.ranks == 1:
        return None
    return ExchangeTime.measured(config.ranks, *given) if given else ExchangeTime(config.ranks)


SMALL, LARGE = 16 * 1024, 64 * 1024 * 1024  # bytes of the two all-reduces that are measured
REPEATS, IN_A_ROW = 5, 50


def measured_exchange(ranks: Ranks, device: torch.device) -> tuple[float, float] | None:
    """Latency (us) and bandwidth (GB/s over each link) of an all-reduce among ranks that have met; None for one.

    A line through the medians of two sizes. On GPUs all-reduces in a row are one captured graph, as a step's are.
    """
    if ranks.world == 1:
        return None
    measure = _captured_us if device.type == "cuda" else _called_us
    small, large = (median(measure(count, device)) for count in (SMALL, LARGE))
    moved = 2 * (ranks.world - 1) / ranks.world
    gbps = moved * (LARGE - SMALL) / max(large - small, 1e-3) / 1e3
    return ranks.same((digits(max(small - moved * SMALL / gbps / 1e3, 1e-3), 4), digits(gbps, 4)))


def _captured_us(count: int, device: torch.device) -> list[float]:
    """Microseconds of all-reduces of `count` bytes of bf16 within a replayed graph."""
    data = torch.zeros(count // 2, dtype=torch.bfloat16, device=device)
    torch.distributed.all_reduce(data)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(IN_A_ROW):
            torch.distributed.all_reduce(data)
    times = []
    for _ in range(REPEATS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end) * 1e3 / IN_A_ROW)
    return times[1:]


def _called_us(count: int, device: torch.device) -> list[float]:
    """Microseconds of all-reduces of `count` bytes of fp32, called one by one."""
    data = torch.zeros(count // 4, device=device)
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        torch.distributed.all_reduce(data)
        times.append((time.perf_counter() - start) * 1e6)
    return times[1:]
