"""Rows for the report's tests: two runs of kernels and of a model, a study of quality, and text that means harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row

HARM = "</script><img src=x onerror='window.harmed=1'>"
CONTEXTS = (4096, 32768, 262144)
SPARSE: dict[str, dict[str, Any]] = {
    "resa": {
        "block_size": 16, "active_ratio": 0.1, "min_blocks": 16, "gqa_policy": "group-mean", "summary_kind": "minmax",
        "rectify_every": 32,
    },
    "quest": {
        "block_size": 16, "active_ratio": 0.1, "min_blocks": 16, "gqa_policy": "group-sum", "summary_kind": "minmax",
        "dense_layers": 2,
    },
}  # fmt: skip


def timed(suite: str, method: str, stage: str, context: int, time_us: float, **more: Any) -> Row:
    """A timed row with an interval of +- 0.5 %."""
    name = f"{suite}-m-b1-{context // 1024}k"
    columns: dict[str, Any] = {
        "suite": suite, "model": "m-7b", "case": name, "method": method, "stage": stage, "context": context,
        "batch": 1, "q_heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "bf16", "kv_layout": "head-major",
        "paged": False, "selection_pattern": "random" if suite == "micro" else "synthetic", "cache_state": "cold",
        "launch": "graph", "n_samples": 30, "median_us": time_us, "mean_us": time_us, "ci_low_us": 0.995 * time_us,
        "ci_high_us": 1.005 * time_us, "floor_us": 0.5 * time_us, "floor_fraction": 0.5, "status": "ok",
        "device": "NVIDIA H100", "torch": "2.11.0", "commit": "0123456789abcdef", "dirty": False,
        "started_at": "2026-11-22T12:00:00+00:00", "command": "resa-bench bench",
    }  # fmt: skip
    return Row(**(columns | SPARSE.get(method, {}) | more))


def value(method: str, metric: str, step: int | None, number: float, **more: Any) -> Row:
    """A row of the quality suite."""
    columns: dict[str, Any] = {
        "suite": "quality", "model": "small", "case": "quality-small-text", "method": method, "stage": "forced",
        "context": 4608, "batch": 2, "q_heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "bf16", "launch": "parallel",
        "selection_pattern": "text", "n_samples": 64, "metric": metric, "value": number, "step": step, "status": "ok",
        "device": "NVIDIA H100", "commit": "0123456789abcdef", "started_at": "2026-11-22T12:00:00+00:00",
    }  # fmt: skip
    return Row(**(columns | SPARSE.get(method, {}) | more))


def kernels(resa_us: float = 20.0) -> list[Row]:
    """A layer's attention over contexts: dense, ReSA with its stages and rectification, Quest; one more that failed."""
    rows = []
    for times, context in enumerate(CONTEXTS, start=1):
        best = 25.0 * times
        ratio = {"speedup_vs_best_dense": best / resa_us, "best_dense": "sdpa-cudnn", "floor_speedup": 6.0}
        rows += [
            timed("micro", "sdpa-cudnn", "total", context, best, speedup_vs_best_dense=1.0, best_dense="sdpa-cudnn"),
            timed("micro", "triton-dense", "total", context, best + 1, speedup_vs_best_dense=best / (best + 1)),
            timed("micro", "resa", "total", context, resa_us, **ratio),
            timed("micro", "resa", "append+score", context, 0.4 * resa_us),
            timed("micro", "resa", "score", context, 0.3 * resa_us),
            timed("micro", "resa", "select", context, 0.2 * resa_us),
            timed("micro", "resa", "attend", context, 0.5 * resa_us),
            timed("micro", "resa", "total_amortised", context, 1.25 * resa_us,
                  **ratio | {"speedup_vs_best_dense": best / (1.25 * resa_us)}),
            timed("micro", "quest", "total", context, 22.0, **ratio | {"speedup_vs_best_dense": best / 22.0},
                  status="throttled"),
            timed("micro", "resa", "total", context, 3 * resa_us, launch="eager"),
        ]  # fmt: skip
    failed = {"median_us": None, "mean_us": None, "ci_low_us": None, "ci_high_us": None, "n_samples": None}
    rows.append(timed("micro", "flashinfer", "total", 4096, 1.0, status="skipped", reason=HARM, **failed))
    return rows


def model() -> list[Row]:
    """Whole steps with their stages."""
    rows = []
    for times, context in enumerate(CONTEXTS, start=1):
        for method, step in (("sdpa-cudnn", 4000.0 * times), ("resa", 3000.0), ("quest", 2900.0)):
            ratio = {"speedup_vs_best_dense": 4000.0 * times / step, "best_dense": "sdpa-cudnn", "floor_speedup": 5.0}
            shared = {"weight_dtype": "int4", "layers": 4}
            speed = {"tokens_per_s": 1e6 / step, "joules_per_token": 2.0}
            rows.append(timed("decode", method, "total", context, step, **ratio, **speed, **shared))
            rows += [
                timed("decode", method, stage, context, share * step, **shared, ci_low_us=None, ci_high_us=None)
                for stage, share in (("project", 0.3), ("attend", 0.4), ("ffn", 0.2), ("gap", 0.1))
            ]
    return rows


def study() -> list[Row]:
    """KL over steps of two methods, their recall by layer and head, and a metric of whole texts."""
    rows = [value("triton-dense", "loss", step, 2.0) for step in (32, 64)]
    for method, level in (("resa", 0.1), ("quest", 0.2)):
        rows += [value(method, "kl", step, level * step / 32) for step in (32, 64, 96)]
        places = [(layer, head) for layer in (0, 1) for head in (0, 1)]
        rows += [value(method, "recall", None, 0.8 + 0.1 * head, layer=layer, head=head) for layer, head in places]
    return rows


def harmful() -> list[Row]:
    """Rows whose every word would run a script, were it markup."""
    words = {"device": HARM, "commit": HARM, "command": HARM, "contention": HARM, "torch": HARM}
    return [
        timed("micro", "sdpa-cudnn", "total", 4096, 25.0, model=HARM, case=HARM, **words),
        timed("micro", HARM, "total", 4096, 20.0, model=HARM, case=HARM, speedup_vs_best_dense=1.25, **words),
        timed("micro", HARM, HARM, 4096, 20.0, model=HARM, case=HARM, **words),
        timed(HARM, HARM, "total", 4096, 20.0, model=HARM, case=HARM, **words),
        value(HARM, HARM, 1, 1.0, case=HARM, model=HARM),
    ]


def trace(folder: Path) -> None:
    """A traced step as `profile nsys` leaves it."""
    folder.mkdir(parents=True)
    lines = ["kind,launch,stage,kernel,start_us,end_us"]
    lines += [f"step,graph,{'attend' if i % 2 else 'score'},kernel_{i},{4 * i},{4 * i + 3}" for i in range(12)]
    (folder / "timeline.csv").write_text("\n".join(lines) + "\n")
    facts = {"case": "decode-m", "label": "resa b16", "source": "nsys", "untraced_us": 47.5}
    (folder / "facts.json").write_text(json.dumps(facts | {"environment": {"device": "NVIDIA H100", "commit": "abc"}}))


def write(folder: Path) -> list[Path]:
    """Two runs of all that is above, the second with ReSA's kernels slower; the paths that a report takes."""
    first, second = folder / "first", folder / "second"
    append(first / "micro.jsonl", kernels())
    append(first / "decode.jsonl", model())
    append(first / "quality.jsonl", study())
    append(second / "micro.jsonl", [*kernels(24.0), *harmful()])
    trace(first / "profile" / "nsys-resa")
    return [first, second]
