"""A plugin (RESA_BENCH_PLUGINS) for runs whose times nobody reads: a device's ceilings are not measured, but known."""

from __future__ import annotations

from typing import Any

from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.core import worker
from resa_bench.suites.decode import suite as decode


def known(*_: Any, **__: Any) -> Ceilings:
    """Beyond any device, so that no row beats its floor."""
    return Ceilings(1e5, 1e5, 1e5)


for module in (worker, decode):
    module.measure_ceilings = known  # type: ignore[attr-defined]
