"""Small cases on a CPU, and rows of theirs, for tests of the command line."""

from __future__ import annotations

from typing import Any

from resa_bench.suites.core.rows import Row

ON_CPU = ["--device", "cpu"]


def row(median: float | None, **changes: Any) -> Row:
    times = {} if median is None else {"median_us": median, "ci_low_us": median * 0.999, "ci_high_us": median * 1.001}
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "torch-dense", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "cache_state": "cold", "launch": "eager",
        "status": "ok", **times,
    }  # fmt: skip
    return Row(**(defaults | changes))
