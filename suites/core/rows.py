"""Result rows: the one format that tables, plots and comparisons read.

A row is one method's one stage in one case. Names carry their unit. A row has parts (case, setting, run, timing, work,
quality, outcome, environment), whose columns stand side by side in files: JSON Lines, and a CSV of the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from .settings import SETTINGS
from .spec import Variant

SCHEMA = 3
"""Version of the format. 1: rows without `schema`, whose columns are all still here. Before 3 `resa` was the chain of
kernels that is `resa-chain` now (`upgraded`)."""
STATUSES = ("ok", "skipped", "oom", "failed", "throttled")
TIMED = ("ok", "throttled")
FAILED = ("failed", "oom")
WHOLE_MODELS = ("decode", "lossless", "gsr")  # suites whose steps are bimodal: some rectify or verify, some do not


@dataclass(frozen=True, kw_only=True)
class CasePart:
    """What was measured, and the shape of its inputs. `None` here and below: does not apply, or not known."""

    suite: str
    model: str
    case: str
    method: str
    stage: str
    context: int  # tokens in the cache, the newest included
    batch: int
    q_heads: int
    kv_heads: int
    head_dim: int
    layers: int | None = None  # of a whole model
    model_fingerprint: str | None = None  # of a checkpoint's files: two models of one name differ in it
    seed: int | None = None


if TYPE_CHECKING:

    class SettingPart:
        """The method's settings, a column each (suites/core/settings.py declares them)."""

        def __init__(self, **columns: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    SettingPart = make_dataclass(
        "SettingPart",
        [(name, entry.kind | None, field(default=None)) for name, entry in SETTINGS.items()],
        frozen=True,
        kw_only=True,
        namespace={"__doc__": "The method's settings, a column each (suites/core/settings.py declares them)."},
    )


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """How it ran."""

    dtype: str | None = None
    kv_dtype: str | None = None  # of keys and values in the cache, where it is another than `dtype`
    weight_dtype: str | None = None
    kv_layout: str | None = None
    paged: bool | None = None
    shared_kv: bool | None = None
    ranks: int | None = None  # GPUs that share the model; heads, bytes, floors and memory are then one rank's
    simulated: bool | None = None  # one of the ranks ran alone, without the exchange
    kv_replicas: int | None = None  # ranks that hold the same KV heads
    selection_pattern: str | None = None
    chunk_kernel: str | None = None  # that attended in rectification; tells nothing apart
    way: str | None = None  # of a block-sparse step: "chain" or "fused"; "dense" below break-even; tells nothing apart
    accepted_length: float | None = None
    fixed_length: bool | None = None  # a captured step attends to the case's context, whatever the length
    cache_state: str | None = None  # "cold", "warm", or "rotation": the layers' steps back to back, a cache each
    rotation_layers: int | None = None
    launch: str | None = None
    client: str | None = None  # software that ran the steps; None: this project's engine
    products: str | None = None  # "best": 4-bit projections by the product measured best; None: this project's kernels


@dataclass(frozen=True, kw_only=True)
class TimingPart:
    """Times, in microseconds."""

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
    compile_s: float | None = None  # that a library's compiler took for its kernel before, beside other compilers


@dataclass(frozen=True, kw_only=True)
class WorkPart:
    """Work, floors, and what follows from both."""

    bytes: int | None = None
    flops: int | None = None
    floor_us: float | None = None
    floor_fraction: float | None = None
    gbps: float | None = None
    read_ceiling_gbps: float | None = None
    matrix_ceiling_tflops: float | None = None
    speedup_vs_best_dense: float | None = None
    best_dense: str | None = None
    floor_speedup: float | None = None  # what the floors allow: best dense's floor over this row's
    tokens_per_s: float | None = None
    modelled_exchange_us: float | None = None  # of a step's exchanges between ranks, amortised
    modelled_tokens_per_s: float | None = None  # of simulated ranks: with that exchange
    modelled_speedup: float | None = None  # the same, against the best dense method with its exchange
    exchange_model: str | None = None  # where its constants are from
    peak_memory_bytes: int | None = None
    largest_batch: int | None = None  # sequences of this context that the device's memory holds, by the memory model
    joules_per_token: float | None = None
    idle_watts: float | None = None
    text: str | None = None  # what was decoded after a real prompt


@dataclass(frozen=True, kw_only=True)
class QualityPart:
    """A metric's value and what it is of; the correctness check."""

    metric: str | None = None
    value: float | None = None
    value_error: float | None = None  # a standard error of the value, texts or prompts being independent
    n_texts: int | None = None  # independent texts or prompts
    text_source: str | None = None  # of the texts: package and version, or several
    stretch: int | None = None  # of one text among several
    step: int | None = None
    layer: int | None = None
    depth: float | None = None  # of a needle: share of the prompt before it
    head: int | None = None  # a query head
    max_rel_error: float | None = None  # largest ||out - ref|| / ||ref|| over heads
    error_budget_used: float | None = None  # largest |out - ref| over its elementwise fp64 budget; above 1 fails


@dataclass(frozen=True, kw_only=True)
class OutcomePart:
    """How it ended."""

    status: str
    reason: str | None = None
    final: bool | None = None  # of a skipped row: nothing that could be installed would change it
    case_rows: int | None = None  # rows that were written together


@dataclass(frozen=True, kw_only=True)
class EnvironmentPart:
    """Where, when and by which code."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None  # the most that was read around the case
    throttle_reasons: str | None = None
    contention: str | None = None  # who else used the CPUs or the GPU meanwhile; None: nothing speaks for it
    device: str | None = None
    driver: str | None = None
    torch: str | None = None
    triton: str | None = None
    python: str | None = None
    version: str | None = None  # of this package
    commit: str | None = None
    dirty: bool | None = None
    source: str | None = None  # a hash of the package's source files, and of those outside it that define the method
    library: str | None = None  # of others, that the method runs, with versions
    started_at: str | None = None
    command: str | None = None
    schema: int = SCHEMA


PARTS: dict[str, type] = {
    "case": CasePart, "setting": SettingPart, "run": RunPart, "timing": TimingPart, "work": WorkPart,
    "quality": QualityPart, "outcome": OutcomePart, "environment": EnvironmentPart,
}  # fmt: skip
"""The parts of a row by name, in the order of columns."""


@dataclass(frozen=True, kw_only=True)
class Row(
    EnvironmentPart, OutcomePart, QualityPart, WorkPart, TimingPart, RunPart, SettingPart, CasePart
):  # columns come in the order of PARTS: dataclasses take their bases from the last
    """One measured (or skipped, or failed) stage of one method."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status: got {self.status!r}, allowed are {', '.join(STATUSES)}")
        if self.status not in TIMED and self.median_us is not None:
            raise ValueError(f"a row with status {self.status!r} carries no time, got median_us={self.median_us}")
        if self.status not in TIMED and not self.reason:
            raise ValueError(f"a row with status {self.status!r} needs a reason")

    @property
    def variant(self) -> Variant:
        """The method with its settings."""
        return Variant.make(self.method, self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the settings that are not empty."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}

    def part(self, name: str) -> dict[str, Any]:
        """The columns of one of PARTS."""
        return {f.name: getattr(self, f.name) for f in fields(PARTS[name])}

    @property
    def time_us(self) -> float | None:
        """What rows are compared by: the median, or of a decode step the mean, rectification amortised in."""
        return self.mean_us if self.suite in WHOLE_MODELS else self.median_us

    @property
    def timed(self) -> bool:
        """Whether it carries a time."""
        return self.status in TIMED and self.median_us is not None

    @property
    def measured(self) -> bool:
        """Whether it carries a time or a value."""
        return self.timed or self.value is not None


COLUMNS = tuple(f.name for f in fields(Row))
REQUIRED = tuple(f.name for f in fields(Row) if f.default is MISSING)
IDENTITY = (
    "suite", "model", "case", "method", "stage", "context", "batch", *SETTINGS, "dtype", "kv_dtype", "weight_dtype",
    "kv_layout", "paged", "shared_kv", "selection_pattern", "cache_state", "launch", "client", "products", "metric",
    "step", "layer", "head", "depth", "stretch", "seed",
)  # fmt: skip
"""What tells one measurement from another within a file, and pairs them between files."""


def identity(row: Row) -> tuple[Any, ...]:
    """The values of IDENTITY."""
    return tuple(getattr(row, name) for name in IDENTITY)


def digits(value: float, count: int = 6) -> Any:
    """A number to that many significant digits; whole numbers as they are."""
    return value if isinstance(value, int) else float(f"{value:.{count}g}")


def not_finite(columns: Mapping[str, Any]) -> list[str]:
    """Names of the columns that hold a number which is not finite: JSON has none, and no reader expects one."""
    return [name for name, value in columns.items() if isinstance(value, float) and not math.isfinite(value)]


def to_record(row: Row) -> dict[str, Any]:
    """The columns that are not empty."""
    return {name: value for name, value in asdict(row).items() if value is not None}


def from_record(record: Mapping[str, Any]) -> tuple[Row, list[str]]:
    """A row of any version, and the names of columns that this version does not know.

    Raises:
        ValueError: required columns are missing, or a value is not one.
    """
    unknown = [name for name in record if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in record]
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}")
    if broken := not_finite(record):
        raise ValueError(f"not a finite number: {', '.join(broken)}")
    for name, value in record.items():
        kind = _KINDS.get(name)
        if kind is None or value is None:
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{name}: got {str(value)[:60]!r}, expected {_WORDS[kind]}")
        if isinstance(value, int | float) and abs(value) > LARGEST:
            raise ValueError(f"{name}: got a number beyond {LARGEST:g}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_least(name, value, record.get("stage"))
    known = {name: value for name, value in record.items() if name in COLUMNS}
    return Row(**upgraded({"schema": 1} | known)), unknown


WAYS = {"resa": ("resa-chain", "chain"), "resa-fused": ("resa-fused", "fused")}
"""Names of before schema 3: what the same steps are called now, and their way."""


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of an earlier version in this version's words; its `schema` stays, and so does the command it says.

    Before schema 3 the name `resa` meant the chain of kernels. Rows of quality that ran no kernel of it (launch
    `parallel`) keep the name: they are of the selection, whichever way it is computed.
    """
    method = str(record["method"])
    if record["schema"] >= 3 or record.get("launch") == "parallel" or method not in WAYS:
        return dict(record)
    name, way = WAYS[method]
    return {**record, "method": name, "way": way}


def upgraded_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a profile (facts.json) in this version's words: `method`, `label` and `columns`."""
    method, columns = str(facts.get("method", "")), facts.get("columns") or {}
    schema = columns.get("schema", 2)
    name = upgraded({"schema": schema, "method": method})["method"]
    label = str(facts.get("label", method))
    label = name + label.removeprefix(method) if method and label.startswith(method) else label
    columns = upgraded({"schema": schema} | columns) if columns else {}
    return {**facts, "method": name, "label": label, "columns": columns}


def _check_least(name: str, value: float, stage: Any) -> None:
    """Raises ValueError for a number that its column cannot have: a count below 1, a time or a size below 0."""
    least: float = 1 if name in COUNTS else (SETTINGS[name].least or 0) if name in SETTINGS else 0
    signed = name in SIGNED or (stage == "gap" and name.endswith("_us"))  # a gap is what is left of a difference
    if not signed and value < least:
        raise ValueError(f"{name}: got {value}, expected {least:g} or more")
    if stage == "total" and name in WHOLE_TIMES and value <= 0:
        raise ValueError(f"{name}: got {value}, expected a time above 0")


COUNTS = ("block_size", "batch", "q_heads", "kv_heads", "head_dim", "layers", "ranks", "kv_replicas")
SIGNED = ("value", "seed", "temperature_c", "ci_low_us")  # two unlike periods: the mean's interval reaches below 0
WHOLE_TIMES = ("median_us", "mean_us")
LARGEST = 1e100  # of a number in a row: no measurement comes near, and figures have room for it
_WORDS: dict[Any, str] = {int: "a whole number", (int, float): "a number", str: "text", bool: "true or false"}
_KINDS: dict[str, Any] = {name: (int, float) if e.kind is float else e.kind for name, e in SETTINGS.items()} | {
    f.name: next(kind for kind in _WORDS if str(f.type).startswith(getattr(kind, "__name__", "float")))
    for part in PARTS.values()
    if part is not SettingPart
    for f in fields(part)
    if str(f.type).startswith(("int", "float", "str", "bool"))
}


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A frame with every column of the format, whichever are filled."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
