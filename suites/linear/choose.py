"""`python -m resa_bench.suites.linear.choose FILES`: the best product of each size, from measured rows.

It writes the rows' devices into kernels/linear/best.json; what the file holds of other devices stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ... import baselines  # noqa: F401  (registers the rivals)
from ...kernels.linear.best import FILE, OURS
from ...kernels.linear.product import products
from ...kernels.linear.small_linear import MAX_SMALL_ROWS
from ..core.results import read_rows
from ..core.rows import Row
from ..engine.products import KIND, shapes
from ..model.config import MODELS
from .table import projection

LAUNCH_US = 2.0  # of a small kernel in a graph, an estimate
LAUNCHES = {"qkv": 2, "o": 1, "gate_up": 2, "down": 1}
"""Of norm, bias, SwiGLU and residual: those that our kernels of few rows do not need, and others do."""


def choose(rows: Iterable[Row]) -> dict[str, Any]:
    """What best.json says of the rows' devices: of products that can hold a model's 4-bit weights.

    A product's time counts with the launches around it; ours has them, too, beyond its kernels of few rows.

    Raises:
        ValueError: no such rows, or those of a device are of several commits.
    """
    serving = {OURS, *(name for name, kind in products().items() if kind.serves_models)}
    usable = [
        row for row in rows
        if row.suite == "linear" and row.timed and row.weight_dtype == KIND and row.method in serving
    ]  # fmt: skip
    if not usable:
        raise ValueError(f"no timed rows of {KIND} weights; measure them: resa-bench linear --weights {KIND}")
    out = {}
    for device in sorted({str(row.device) for row in usable}):
        own = [row for row in usable if str(row.device) == device]
        commits = sorted({str(row.commit) for row in own})
        if len(commits) > 1:
            raise ValueError(f"{device}: rows of {', '.join(c[:10] for c in commits)}, expected rows of one commit")
        best: dict[str, dict[str, str]] = {}
        for model, name, count in sorted({(row.model, projection(row), row.batch) for row in own}):
            rivals = [row for row in own if (row.model, projection(row), row.batch) == (model, name, count)]
            if all(row.method != OURS for row in rivals):
                continue
            columns, depth = shapes(MODELS[model])[name]
            best.setdefault(f"{columns}x{depth}", {})[str(count)] = min(rivals, key=whole_us).method
        libraries = sorted({row.library for row in own if row.library})
        out[device] = {"commit": commits[0], "libraries": libraries, "best": {KIND: best}}
    return out


def whole_us(row: Row) -> float:
    """A product's time with what stands around it, as far as products differ in that."""
    fused = row.method == OURS or row.batch > MAX_SMALL_ROWS
    return (row.median_us or 0.0) + (0.0 if fused else LAUNCHES[projection(row)] * LAUNCH_US)


def write_choice(arguments: Sequence[str], file: Path = FILE) -> int:
    """Write the file; 2 for wrong arguments."""
    try:
        if not arguments:
            raise ValueError("no files of rows; give some, such as results/h200/linear.jsonl.gz")
        chosen = choose([row for name in arguments for row in read_rows(Path(name))])
    except (OSError, ValueError) as error:
        print(f"choose: {error}", file=sys.stderr)
        return 2
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(before | chosen, indent=1) + "\n", encoding="utf-8")
    print(f"{file.name}: {', '.join(chosen)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(write_choice(sys.argv[1:]))
