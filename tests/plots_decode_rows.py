"""Rows of the decode suite for tests of its figures."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from matplotlib.figure import Figure
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import FigureSet
from resa_bench.plots.decode_data import decode_sets
from resa_bench.plots.registry import figures_of
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.stages import FUSED

K = 1024
DECODE_FIGURES, FIGURES = figures_of("decode"), figures_of("micro")
LINEAR = {"project": 800.0, "ffn": 4000.0, "head": 400.0, "sample": 9.0, "other": 6.0}  # microseconds of a step
RESA = {"block_size": 16, "active_ratio": 0.1, "gqa_policy": "group-mean", "summary_kind": "minmax"}
QUEST = RESA | {"gqa_policy": "group-sum", "dense_layers": 2}


def stages_of(method: str, context: int, every: int = 32) -> dict[str, float]:
    """Microseconds by stage of a step."""
    dense_us = context / 40
    if "dense" in method or method == "sdpa-cudnn":
        return LINEAR | {"append": 60.0, "attend": dense_us * (1.1 if method == "triton-dense" else 1.0), "gap": 50.0}
    sparse = {"append": 60.0, "score": dense_us / 16, "select": 120.0, "attend": dense_us / 8, "merge": 90.0}
    if method == "resa-fused":
        sparse = {FUSED: 0.8 * sum(sparse.values())}
    if method.startswith("resa"):
        sparse |= {"rectify": 2 * dense_us / every, "rectify+project+ffn": 8000 / every}
    return LINEAR | sparse | {"gap": 50.0}


def method_rows(method: str, context: int, **columns: Any) -> list[Row]:
    """The whole step of a method and its stages."""
    batch, launch = columns.get("batch", 1), columns.get("launch", "graph")
    weights, shared = columns.get("weight_dtype", "bf16"), columns.get("shared_kv", False)
    parts = stages_of(method, context, columns.get("rectify_every") or 32)
    mean = sum(parts.values())
    common: dict[str, Any] = {
        "suite": "decode", "model": "qwen2.5-7b", "method": method, "context": context, "batch": batch, "q_heads": 28,
        "kv_heads": 4, "head_dim": 128, "layers": 28, "dtype": "bf16", "weight_dtype": weights, "shared_kv": shared,
        "selection_pattern": "synthetic", "cache_state": "cold", "launch": launch, "status": "ok",
        "case": f"decode-{weights}-b{batch}-{context}-{shared}", "device": "NVIDIA H100", "commit": "0123456789abcdef",
        "dirty": False, "started_at": "2026-11-22T02:00:00+00:00", "seed": 0,
    }  # fmt: skip
    common |= columns
    rate = batch / mean * 1e6
    total = {"median_us": mean, "mean_us": mean, "tokens_per_s": rate, "floor_us": mean / 1.5}
    total |= {"speedup_vs_best_dense": 2.0 if "block_size" in columns else 1.0, "best_dense": "sdpa-cudnn"}
    rows = [Row(**common, stage="total", floor_speedup=2.5, **total)]
    return rows + [Row(**common, stage=name, median_us=us, mean_us=us) for name, us in parts.items()]


def case(context: int, **columns: Any) -> list[Row]:
    """Two dense methods, ReSA and Quest."""
    rows = method_rows("sdpa-cudnn", context, **columns) + method_rows("triton-dense", context, **columns)
    rows += method_rows("resa", context, rectify_every=32, **RESA, **columns)
    return rows + method_rows("quest", context, **QUEST, **columns)


def fused(rows: list[Row]) -> list[Row]:
    """ReSA in one kernel, wherever rows have ReSA with the usual settings."""
    columns = ("batch", "weight_dtype", "shared_kv")
    totals = [r for r in rows if (r.method, r.stage, r.block_size, r.rectify_every) == ("resa", "total", 16, 32)]
    cases = [method_rows("resa-fused", r.context, rectify_every=32, **RESA, **{n: getattr(r, n) for n in columns})
             for r in totals]  # fmt: skip
    return [row for case in cases for row in case]


def study(context: int = 256 * K, **columns: Any) -> list[Row]:
    """Further block sizes and periods of ReSA."""
    rows = [method_rows("resa", context, rectify_every=f, **RESA, **columns) for f in (16, 64, 128)]
    rows += [method_rows("resa", context, rectify_every=32, **RESA | {"block_size": b}, **columns) for b in (32, 64)]
    return [row for group in rows for row in group]


def run_of(**columns: Any) -> list[Row]:
    """All settings: curves at batch 1, the paper's cases at batch 8, the study at int4."""
    rows = [row for c in (4, 32, 256) for row in case(c * K, **columns)]
    rows += [row for c in (4, 32, 256) for row in case(c * K, weight_dtype="int4", **columns)]
    rows += [row for c in (16, 64, 256) for row in case(c * K, batch=8, shared_kv=True, **columns)]
    return in_own_run(rows + study(weight_dtype="int4", **columns))


@cache
def whole(name: str, one_kernel: bool = False) -> Figure:
    """A figure of the whole run; nobody changes it."""
    rows = run_of(dirty=True)
    return DECODE_FIGURES[name](only_set(rows + fused(rows) if one_kernel else rows))


def only_set(rows: list[Row]) -> FigureSet:
    (figures,) = decode_sets(rows)
    return figures


def in_own_run(rows: list[Row]) -> list[Row]:
    """Speed-ups over cuDNN as the rows' times have them."""
    rival = {row.case: row.mean_us or 0.0 for row in rows if (row.method, row.stage) == ("sdpa-cudnn", "total")}
    return [
        replace(row, speedup_vs_best_dense=rival[row.case] / row.mean_us)
        if row.stage == "total" and row.mean_us
        else row
        for row in rows
    ]
