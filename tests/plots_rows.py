"""Rows of the micro suite for tests of its figures."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import FigureSet, micro_sets
from resa_bench.suites.core.rows import Row

K = 1024
STAGES = {"append": 2.0, "score": 4.0, "select": 6.0, "attend": 9.0, "merge": 3.0}  # microseconds


def make(method: str, stage: str = "total", **changes: Any) -> Row:
    """A timed row at 8K, batch 1, of a 30 us step."""
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "qwen2.5-7b", "case": "qwen2.5-7b-b1-8k", "context": 8 * K, "batch": 1,
        "q_heads": 28, "kv_heads": 4, "head_dim": 128, "dtype": "bf16", "cache_state": "cold", "launch": "graph",
        "median_us": 30.0, "q20_us": 29.0, "q80_us": 32.0, "floor_us": 15.0, "floor_fraction": 0.5,
        "read_ceiling_gbps": 3068.0, "status": "ok", "bytes": 46_020_000, "flops": 92_040_000,
        "device": "NVIDIA H100", "commit": "0123456789abcdef",
        "dirty": False, "started_at": "2026-11-21T22:00:00Z",
    }  # fmt: skip
    return Row(**(defaults | {"method": method, "stage": stage} | changes))


def run_of(
    contexts: tuple[int, ...] = (8 * K, 32 * K), batches: tuple[int, ...] = (1,), resa: str = "resa", **changes: Any
) -> list[Row]:
    """A small run: two dense methods, ReSA with its stages and rectification, Quest."""
    rows = []
    for batch, context in product(batches, contexts):
        shape: dict[str, Any] = {"case": f"c-b{batch}-{context}", "context": context, "batch": batch} | changes
        dense_us = context / K
        rows += [make("sdpa-cudnn", stage, median_us=dense_us, **shape) for stage in ("attend", "total")]
        rows += [make("flash-attn-2", median_us=dense_us + 5, **shape)]
        for block in (16, 32):
            known = shape | {"block_size": block, "active_ratio": 0.1, "gqa_policy": "group-mean", "rectify_every": 32}
            rows += [make(resa, stage, median_us=us, **known) for stage, us in STAGES.items()]
            against = {"speedup_vs_best_dense": dense_us / 12, "best_dense": "sdpa-cudnn", "floor_speedup": 6.0}
            rows.append(make(resa, median_us=12.0, **known | against))
            amortised = known | against | {"speedup_vs_best_dense": dense_us / 15}
            rows.append(make(resa, "total_amortised", median_us=15.0, **amortised))
        policy = shape | {"gqa_policy": "per-head", "active_ratio": 0.1}
        rows.append(make("quest", block_size=16, median_us=20.0, speedup_vs_best_dense=dense_us / 20, **policy))
    return rows


def with_fused(rows: list[Row]) -> list[Row]:
    """ReSA in one kernel beside it: no stages of its own, a tenth faster; once with summaries in fp8, faster still."""
    extended = list(rows)
    for row in rows:
        if row.method == "resa" and row.stage not in STAGES:
            ratio = (row.speedup_vs_best_dense or 0.0) / 0.9
            faster = replace(row, median_us=0.9 * (row.median_us or 0.0), speedup_vs_best_dense=ratio)
            kinds: list[dict[str, Any]] = [{"method": "resa-fused"}]
            if row.block_size == 16:
                kinds += [{"method": name, "summary_dtype": "fp8"} for name in ("resa", "resa-fused")]
            extended += [replace(faster, **kind) for kind in kinds]
    return extended


def only_set(rows: list[Row]) -> FigureSet:
    (figures,) = micro_sets(rows)
    return figures
