"""Cases of the lossless suite on a small model, and what their rows say."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from benches import make_bench
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.lossless import run as suite
from resa_bench.suites.lossless.cases import LosslessCase, dense_specs
from resa_bench.suites.lossless.method import NAME
from tiny_model import TINY, keep, tiny_decoder

CPU = torch.device("cpu")
BASE = SparseConfig(min_blocks=2)
CASE = LosslessCase("tiny", TINY, prompt=200, tokens=24, batch=3)
PLAN = DecodePlan(seconds=0.0, eager=False, breakdown=False)


def tiny_bench() -> Bench:
    """A model whose attention matters, kept as if it had been loaded."""
    bench = make_bench(PLAN)
    keep(bench.held(Loader), tiny_decoder())
    return bench


@cache
def tiny_rows() -> list[Row]:
    """Rows of two and of five drafts a round, beside dense decoding. Nobody changes them."""
    return measure(tiny_bench(), drafting(2, 5))


def drafting(*lengths: int, **settings: Any) -> list[MethodSpec]:
    return [make_spec(NAME, BASE, draft_length=m, **settings) for m in lengths]


def measure(bench: Bench, specs: list[MethodSpec], case: LosslessCase = CASE) -> list[Row]:
    return suite.run_case(case, [*specs, *dense_specs(CPU, text=True)], bench)


def total(rows: list[Row], method: str, drafts: int | None = None) -> Row:
    [row] = [r for r in rows if (r.stage, r.method, r.draft_length) == ("total", method, drafts)]
    return row


def shares(rows: list[Row], drafts: int, metric: str = "acceptance") -> list[float]:
    of_metric = [r for r in rows if r.metric == metric and r.draft_length == drafts]
    assert [r.step for r in of_metric] == list(range(drafts + 1))
    return [r.value or 0.0 for r in of_metric]
