"""Result rows: the one format that tables, plots and comparisons read.

A row is one method's one stage in one case. Names carry their unit. A file is JSON Lines, a row a line, with a CSV
of the same rows beside it. A file always ends on a whole case (or group of a case's methods), however the run ended:
its rows are appended by one write, each says how many belong together (`case_rows`), and `read_rows` leaves out what is
incomplete.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

STATUSES = ("ok", "skipped", "oom", "failed", "throttled")
TIMED = ("ok", "throttled")
WHOLE_MODELS = ("decode", "lossless", "gsr")  # suites whose steps are bimodal: some rectify or verify, some do not


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured (or skipped, or failed) stage of one method. `None` means: does not apply, or not known."""

    suite: str
    model: str
    case: str
    method: str
    stage: str
    # shape of the case
    context: int  # tokens in the cache, the newest included
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int | None = None  # of a whole model
    # what varies a method further
    block_size: int | None = None
    active_ratio: float | None = None
    min_blocks: int | None = None
    budget_tokens: int | None = None
    rectify_every: int | None = None
    chunk_kernel: str | None = None  # that attended in rectification; tells nothing apart
    gqa_policy: str | None = None
    summary_kind: str | None = None
    summary_dtype: str | None = None  # none: the dtype of the cache
    pinned_blocks: int | None = None  # first blocks, always selected; none where there are none
    spread_weight: float | None = None  # c of mean/std summaries; none of others
    window: int | None = None
    draft_length: int | None = None
    accepted_length: float | None = None
    dense_layers: int | None = None
    # how it ran
    dtype: str | None = None
    weight_dtype: str | None = None
    kv_layout: str | None = None
    paged: bool | None = None
    shared_kv: bool | None = None
    selection_pattern: str | None = None
    fixed_length: bool | None = None  # a captured step attends to the case's context, whatever the length
    cache_state: str | None = None
    launch: str | None = None
    # time
    n_samples: int | None = None
    median_us: float | None = None
    ci_low_us: float | None = None  # 95 % interval: of the median by order statistics, of a decode mean over periods
    ci_high_us: float | None = None
    q20_us: float | None = None
    q80_us: float | None = None
    min_us: float | None = None
    mean_us: float | None = None  # of a decode step: rectification amortised in
    wall_mean_us: float | None = None  # the same by the wall clock
    p50_us: float | None = None
    p99_us: float | None = None
    stopped_by: str | None = None  # "precision", "time" or "samples"
    # work and floors
    bytes: int | None = None
    flops: int | None = None
    floor_us: float | None = None
    floor_fraction: float | None = None
    gbps: float | None = None
    read_ceiling_gbps: float | None = None
    speedup_vs_best_dense: float | None = None
    best_dense: str | None = None
    floor_speedup: float | None = None  # what the floors allow: best dense's floor over this row's
    tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None
    joules_per_token: float | None = None
    idle_watts: float | None = None
    text: str | None = None  # what was decoded after a real prompt
    # quality
    metric: str | None = None
    value: float | None = None
    step: int | None = None
    layer: int | None = None
    depth: float | None = None  # of a needle: share of the prompt before it
    head: int | None = None  # a query head
    max_rel_error: float | None = None  # largest ||out - ref|| / ||ref|| over heads
    error_budget_used: float | None = None  # largest |out - ref| over its elementwise fp64 budget; above 1 fails
    # outcome and circumstances
    status: str
    reason: str | None = None
    final: bool | None = None  # of a skipped row: nothing that could be installed would change it
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None  # the most that was read around the case
    throttle_reasons: str | None = None
    device: str | None = None
    driver: str | None = None
    torch: str | None = None
    triton: str | None = None
    python: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    started_at: str | None = None
    seed: int | None = None
    command: str | None = None
    case_rows: int | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: got {self.status!r}, allowed are {', '.join(STATUSES)}")
        if self.status not in TIMED and self.median_us is not None:
            raise ValueError(f"a row with status {self.status!r} carries no time, got median_us={self.median_us}")
        if self.status not in TIMED and not self.reason:
            raise ValueError(f"a row with status {self.status!r} needs a reason")

    @property
    def time_us(self) -> float | None:
        """What rows are compared by: the median, or of a decode step the mean, rectification amortised in."""
        return self.mean_us if self.suite in WHOLE_MODELS else self.median_us

    @property
    def timed(self) -> bool:
        return self.status in TIMED and self.median_us is not None


def digits(value: float, count: int = 6) -> Any:
    """A number to that many significant digits; whole numbers as they are."""
    return value if isinstance(value, int) else float(f"{value:.{count}g}")


COLUMNS = tuple(f.name for f in fields(Row))

# What tells one measurement from another within a file, and pairs them between files.
IDENTITY = (
    "suite", "model", "case", "method", "stage", "context", "batch", "block_size", "active_ratio", "min_blocks",
    "budget_tokens", "rectify_every", "gqa_policy", "summary_kind", "summary_dtype", "spread_weight", "pinned_blocks",
    "window", "draft_length", "dense_layers", "dtype", "weight_dtype", "kv_layout", "paged", "shared_kv",
    "selection_pattern", "cache_state", "launch", "metric", "step", "layer", "head", "depth", "seed",
)  # fmt: skip


def identity(row: Row) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in IDENTITY)


def append_case(path: Path, rows: list[Row]) -> None:
    """Append the rows of a case, or of a group of its methods, by a single write and flush them to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        record = {k: v for k, v in asdict(row).items() if v is not None} | {"case_rows": len(rows)}
        lines.append(json.dumps(record, allow_nan=False) + "\n")
    data = "".join(lines).encode()
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSON Lines file (gzipped if its name ends so). A torn last line and cases cut short are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a whole line that is not a result row (named with its number).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no result file at {path}")
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        try:
            rows.append(Row(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a result row ({error})") from error
    together = Counter(_write(row) for row in rows)
    seen, whole = Counter[tuple[Any, ...]](), []
    for row in rows:
        write, count = _write(row), row.case_rows
        seen[write] += 1
        if count is None or seen[write] <= together[write] // count * count:  # writes alike stand one after another
            whole.append(row)
    return whole


def _write(row: Row) -> tuple[Any, ...]:
    """What the rows of one write share; those of two groups that began in one second may, too."""
    return row.suite, row.case, row.started_at, row.case_rows


def rewrite(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file by these rows, at once or not at all."""
    lines = [json.dumps({k: v for k, v in asdict(r).items() if v is not None}, allow_nan=False) + "\n" for r in rows]
    temporary = path.with_suffix(path.suffix + ".part")
    with temporary.open("w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A frame with every column of the format, whichever are filled."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """The same rows as CSV, without the columns that are empty throughout."""
    to_frame(rows).dropna(axis="columns", how="all").to_csv(path, index=False)
