"""The micro suite under pytest-benchmark: the same ops, flush, clock and graphs as `resa-bench micro`.

`pytest --benchmark-only` times the quick list; `RESA_BENCH_CASES=default` (or `full`) another one. Rounds are
pytest-benchmark's (pedantic, one iteration a round); settling the cache and the stamps are profiling.timing's.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.kernels.launch import INTERPRET
from resa_bench.profiling.ceilings import Ceilings, measure_ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import EventStamp, Plan, Timer, make_timer, warm_up
from resa_bench.suites.core.bench import Bench as MicroBench
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.micro.cases import Case, default_cases, default_methods
from resa_bench.suites.micro.checks import dense_exact
from resa_bench.suites.micro.inputs import Inputs, make_inputs
from resa_bench.suites.micro.run import make_ops, prepare
from resa_bench.suites.micro.suite import Measure

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"
CASES = default_cases(DEVICE, os.environ.get("RESA_BENCH_CASES", "quick"))
SPECS = default_methods(DEVICE, SparseConfig(), [16, 32, 64])
ROUNDS = 50 if CUDA else 7
TORCH_ONLY = ("torch-dense", "resa-torch")


def stamp() -> Any:
    """The clock that pytest-benchmark reads: an event on a GPU, wall seconds on a CPU."""
    return EventStamp() if CUDA else time.perf_counter()


@cache
def timer() -> Timer:
    return make_timer(DEVICE)


@cache
def ceilings() -> Ceilings:
    return measure_ceilings(timer())


class _Latest:
    """Inputs of the case in hand; the one before is let go."""

    def __init__(self) -> None:
        self.case: Case | None = None

    def of(self, case: Case) -> tuple[Inputs, list[Any]]:
        if case != self.case:
            self.__dict__.pop("inputs", None)  # one case's memory at a time
            inputs = make_inputs(case, DEVICE, SparseConfig().rectify_every)
            self.case, self.inputs, self.exact = case, inputs, dense_exact(inputs)
        return self.inputs, self.exact


LATEST = _Latest()


@pytest.mark.benchmark(timer=stamp, warmup=False)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label.replace(" ", "-"))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.slug)
@pytest.mark.slow
@pytest.mark.thinned(2)
def test_decode_step(benchmark: Any, case: Case, spec: MethodSpec) -> None:
    """One whole decode step of attention, cold; checked against fp64 before it is timed."""
    reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, DEVICE)
    if INTERPRET and not CUDA and spec.name not in TORCH_ONLY:
        reason = reason or "interpreted kernels are tested, not timed"
    if reason:
        pytest.skip(reason)
    inputs, exact = LATEST.of(case)
    prepared = prepare(spec, case, inputs, exact, DEVICE)
    plan = Measure(Plan(), warm=False, eager=False)
    bench = MicroBench(DEVICE, describe(DEVICE), "pytest", plan, timer(), ceilings())
    ops = [op for op in make_ops(prepared, bench) if op.key.stage == "total"]
    op = ops[0]
    work = prepared.traffic["total"]
    benchmark.group = f"total {case.slug}"
    benchmark.extra_info.update(
        bytes=work.bytes,
        flops=work.flops,
        floor_us=ceilings().floor_us(work.bytes, work.flops),
        launch=op.key.launch,
        cache_state=op.key.cache_state,
        max_rel_error=prepared.check.max_rel_error,
        **spec.columns(),
    )
    warm_up([op], timer(), 0.02)
    benchmark.pedantic(op.run, setup=lambda: timer().settle(op), rounds=ROUNDS, iterations=1)
    if benchmark.stats is not None:
        assert benchmark.stats.stats.rounds == ROUNDS
