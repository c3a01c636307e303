"""The linear suite's measuring: each product checked against fp64, then timed from a cold cache beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ...kernels import Traffic
from ...kernels.exact import UNIT_ROUNDOFF
from ...kernels.linear.fp8 import Fp8Weight, dequantise_fp8, quantise_fp8
from ...kernels.linear.int4 import Int4Weight, dequantise, quantise
from ...kernels.linear.product import AnyWeight
from ...kernels.linear.weights import DenseWeight
from ...profiling.stats import summarize
from ...profiling.timing import Op, measure
from ..core.bench import Bench, Conditions, Report, RowMaker
from ..core.failure import CheckFailed, failure, unavailable
from ..core.rows import Row, digits
from ..core.work import Work
from ..engine.gate import Check
from .ahead import Compiled
from .cases import GROUP, LinearCase, ProductSpec

ROUNDOFFS = 3.0
"""Unit roundoffs of the result's type that ||out - ref|| / ||ref|| may be: weights may be rounded to it, too."""
CHECK_COLUMNS = 4096  # of the result that are compared, spread over all: an fp64 product of all takes a minute on a CPU


def make_weight(case: LinearCase, device: torch.device) -> AnyWeight:
    """Random weights of the size that keeps the result near 1, in the case's kind."""
    shape = case.shape
    generator = torch.Generator(device).manual_seed(case.seed)
    plain = torch.randn(shape.columns, shape.depth, device=device, generator=generator) / shape.depth**0.5
    if case.kind == "int4":
        return quantise(plain, group=GROUP, dtype=case.torch_dtype)
    if case.kind == "plain":
        return DenseWeight(plain.to(case.torch_dtype))
    return quantise_fp8(plain)


def make_x(case: LinearCase, device: torch.device) -> Tensor | Fp8Weight:
    """Random rows; of `fp8-a8` quantised by rows, which a model would do beside its norm: it is not timed."""
    generator = torch.Generator(device).manual_seed(case.seed + 1)
    x = torch.randn(case.rows, case.shape.depth, device=device, generator=generator).to(case.torch_dtype)
    return quantise_fp8(x) if case.kind == "fp8-a8" else x


def traffic(case: LinearCase, x: Tensor | Fp8Weight, weight: AnyWeight) -> Traffic:
    """The weight, x and the result once; two operations a weight and row."""
    shape = case.shape
    x_bytes = x.bytes if isinstance(x, Fp8Weight) else x.nbytes
    out_bytes = shape.rows * shape.columns * case.torch_dtype.itemsize
    return Traffic(weight.bytes + x_bytes + out_bytes, 2 * shape.rows * shape.columns * shape.depth)


def exact_product(x: Tensor | Fp8Weight, weight: AnyWeight, chosen: Tensor) -> Tensor:
    """`x W^T` in fp64 of what the bits stand for, at some columns of the result."""
    if isinstance(weight, Int4Weight):
        part = Int4Weight(weight.words[chosen], weight.scales[:, chosen].contiguous(), weight.depth, weight.group)
        wide = dequantise(part, torch.float64)
    elif isinstance(weight, Fp8Weight):
        wide = dequantise_fp8(Fp8Weight(weight.values[chosen], weight.scales[chosen]), torch.float64)
    else:
        wide = weight.weight[chosen].double()
    return (dequantise_fp8(x, torch.float64) if isinstance(x, Fp8Weight) else x.double()) @ wide.T


def check(out: Tensor, exact: Tensor, chosen: Tensor, case: LinearCase) -> Check:
    """How far a result is from fp64, row by row. Raises CheckFailed for a wrong shape or type, or beyond the bound."""
    shape = (case.shape.rows, case.shape.columns)
    if tuple(out.shape) != shape or out.dtype != case.torch_dtype:
        raise CheckFailed(f"gave {tuple(out.shape)} of {out.dtype}, expected {shape} of {case.torch_dtype}")
    error = float(((out[:, chosen].double() - exact).norm(dim=1) / exact.norm(dim=1)).max())
    allowed = ROUNDOFFS * UNIT_ROUNDOFF[case.torch_dtype] + case.shape.depth**0.5 * 2.0**-23
    if not error <= allowed:
        raise CheckFailed(f"off by {error:.2g} of a row's norm, over {allowed:.2g}")
    return Check(error, error / allowed)


def run_case(
    case: LinearCase, specs: Sequence[ProductSpec], bench: Bench, on_step: Report = lambda _: None
) -> list[Row]:
    """Measure every product on one case, interleaved; one that fails costs its own row alone."""
    make_row: Any = RowMaker(case, bench)  # type: ignore[arg-type]  # a product's shape is no attention's
    rows: list[Row] = []
    device = bench.device
    able = []
    for spec, reason in unavailable(specs, case, device):  # type: ignore[arg-type]
        if reason:
            rows.append(make_row(spec, status="skipped", reason=reason))
        else:
            able.append(spec)
    compiled = bench.held(Compiled)
    compiled.all_of(bench.plan.ahead, device, on_step)
    with torch.inference_mode():
        on_step("inputs")
        try:
            weight, x = make_weight(case, device), make_x(case, device)
            step = max(1, case.shape.columns // CHECK_COLUMNS)
            chosen = torch.arange(0, case.shape.columns, step, device=device)
            exact = exact_product(x, weight, chosen)
        except Exception as error:
            return rows + [make_row(spec, **failure(error)) for spec in able]
        checks: dict[ProductSpec, Check] = {}
        ops: list[Op] = []
        for spec in able:
            on_step(f"check {spec.label}")
            try:
                run = spec.kind.bind(x, weight, case.torch_dtype)
                checks[spec] = check(run(), exact, chosen, case)
                graph = device.type == "cuda"
                ops.append(Op(spec, bench.timer.captured(run) if graph else run, cold=True, idle=not graph))
            except Exception as error:
                checks.pop(spec, None)
                rows.append(make_row(spec, **failure(error)))
        with Conditions(device) as conditions:
            samples = measure(ops, bench.timer, bench.plan.timing, on_round=lambda number: on_step(f"round {number}"))
    work, clocks = Work(traffic(case, x, weight)), conditions.columns()
    launch = "graph" if device.type == "cuda" else "eager"
    ceilings = bench.ceilings
    if case.kind == "fp8-a8":  # tensor cores multiply 8 bits twice as fast
        ceilings = replace(ceilings, matrix_tflops=2 * ceilings.matrix_tflops)
    for spec, taken in samples.items():
        summary = summarize(taken.times_us)
        taken_s = compiled.seconds(case, spec.name)
        common = {"launch": launch, "cache_state": "cold", "compile_s": taken_s and digits(taken_s, 3), **clocks}
        bound_by = ceilings.bound(work.total.bytes, work.total.flops)
        verdict = ceilings.verdict(work.floor_us(ceilings), summary.median_us, bound_by)
        if verdict.kind == "impossible" and device.type == "cuda" and bound_by == "read":
            rows.append(make_row(spec, **(common | {"status": "failed", "reason": verdict.reason})))
            continue
        common |= work.columns(summary.median_us, verdict, common["reason"])
        times = {name: digits(value) for name, value in asdict(summary).items()}
        rows.append(make_row(spec, **common, **times, stopped_by=taken.stopped_by, **checks[spec].columns()))
    return rows
