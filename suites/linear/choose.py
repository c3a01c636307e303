"""`resa-bench linear --choose FILES`: the best product of each size, from measured rows.

It writes the rows' devices and kinds of weights into kernels/linear/best.json; what the file holds of others stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...kernels.linear.best import FILE, OURS
from ...kernels.linear.fp8_small import one_launch
from ...kernels.linear.product import products
from ...kernels.linear.small_linear import MAX_SMALL_ROWS
from ..core.results import read_rows
from ..core.rows import Row
from ..engine.products import KINDS, shapes
from ..model.config import MODELS
from .table import projection

LAUNCH_US = 2.0  # of a small kernel in a graph, an estimate
LAUNCHES = {"qkv": 2, "o": 1, "gate_up": 2, "down": 1}
"""Of norm, bias, SwiGLU and residual: those that our kernels of few rows do not need, and others do."""


def choose(rows: Iterable[Row]) -> dict[str, Any]:
    """What best.json says of the rows' devices: of products that can hold a model's 4-bit or 8-bit weights.

    A product's time counts with the launches around it; ours has them, too, beyond its kernels of few rows.

    Raises:
        ValueError: no such rows, or those of a device are of several commits.
    """
    serving = {OURS, *(name for name, kind in products().items() if kind.serves_models)}
    usable = [
        row for row in rows
        if row.suite == "linear" and row.timed and row.weight_dtype in KINDS and row.method in serving
    ]  # fmt: skip
    if not usable:
        kinds = " ".join(KINDS)
        raise ValueError(f"no timed rows of {' or '.join(KINDS)} weights; measure: resa-bench linear --weights {kinds}")
    out = {}
    for device in sorted({str(row.device) for row in usable}):
        own = [row for row in usable if str(row.device) == device]
        commits = sorted({str(row.commit) for row in own})
        if len(commits) > 1:
            raise ValueError(f"{device}: rows of {', '.join(c[:10] for c in commits)}, expected rows of one commit")
        best: dict[str, dict[str, dict[str, str]]] = {}
        for model, kind, name, count in sorted({_size(row) for row in own}):
            rivals = [row for row in own if _size(row) == (model, kind, name, count)]
            if all(row.method != OURS for row in rivals):
                continue
            columns, depth = shapes(MODELS[model])[name]
            sizes = best.setdefault(kind, {}).setdefault(f"{columns}x{depth}", {})
            sizes[str(count)] = min(rivals, key=whole_us).method
        libraries = sorted({row.library for row in own if row.library})
        out[device] = {"commit": commits[0], "libraries": libraries, "best": best}
    return out


def _size(row: Row) -> tuple[str, str, str, int]:
    """Model, kind of weights, projection, rows of x."""
    return row.model, str(row.weight_dtype), projection(row), row.batch


def whole_us(row: Row) -> float:
    """A product's time with what stands around it, as far as products differ in that."""
    name = projection(row)
    columns, _ = shapes(MODELS[row.model])[name]
    ours_fuses = one_launch(row.batch, columns) if row.weight_dtype == "fp8" else row.batch <= MAX_SMALL_ROWS
    apart = ours_fuses and row.method != OURS
    return (row.median_us or 0.0) + (LAUNCHES[name] * LAUNCH_US if apart else 0.0)


def write_choice(files: Sequence[Path], target: Path = FILE) -> list[str]:
    """Write what the rows of result files say; the devices.

    Raises:
        ValueError: as `choose`; OSError: a file cannot be read or written.
    """
    chosen = choose([row for file in files for row in read_rows(file)])
    before = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    target.write_text(json.dumps(before | chosen, indent=1) + "\n", encoding="utf-8")
    return list(chosen)
