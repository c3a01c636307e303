"""Nsight Compute: the command that counts what a capture range's kernels do, and its CSV read into counters.

Metrics and columns come and go between versions and chips: a counter that is not there is nan (None for a count), and
`missing` names it. Only without any metric is there nothing to read.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .nvtx_ranges import DOMAIN
from .process import ToolFailed, ToolMissing
from .ranges import SPANS
from .timeline import UNMARKED, short_name
from .tools import NCU, counters_denied, version

STALLED = "regex:smsp__average_warps_issue_stalled_.*_per_issue_active"
STALL = r"smsp__average_warps_issue_stalled_(.+)_per_issue_active\.ratio"
METRICS = {
    "duration_ns": "gpu__time_duration.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
    "occupancy_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "programs": "launch__grid_size",
    "threads": "launch__block_size",
}
COUNTS = ("registers", "programs", "threads")
NAME = "Kernel Name"
RANGES = re.compile(r".*\bDomain:Push/Pop_Range\b.*")
UNNAMED = "unnamed"
UNITS = {
    "duration_ns": ("ns", "nsecond"),
    "dram_read_bytes": ("byte",),
    "dram_write_bytes": ("byte",),
}
"""Names that versions have for the base unit of a counter."""


@dataclass(frozen=True, slots=True)
class Counters:
    """One launch. A metric that was not counted is nan, a count None.

    Attributes:
        kind: "step" or "rectification", the span around its stage; empty outside both.
        dram_percent: of what the memory could have moved in the time.
        l2_hit_percent: of the sectors asked of the L2.
        occupancy_percent: resident warps of those that a multiprocessor can hold.
        registers: of a thread.
        programs: of the grid; `threads` of a program.
        stalls: warps that stand still for each reason, for every instruction issued; most first.
    """

    name: str
    stage: str
    kind: str
    duration_ns: float
    dram_read_bytes: float
    dram_write_bytes: float
    dram_percent: float
    l2_hit_percent: float
    occupancy_percent: float
    registers: int | None
    programs: int | None
    threads: int | None
    stalls: tuple[tuple[str, float], ...]

    @property
    def dram_bytes(self) -> float:
        """Bytes read and written."""
        return self.dram_read_bytes + self.dram_write_bytes

    @property
    def gbps(self) -> float:
        """Decimal GB a second, read and written; nan for a kernel of no duration."""
        return self.dram_bytes / self.duration_ns if self.duration_ns else math.nan


def find() -> Path:
    """An ncu that starts and may read counters. Raises ToolMissing."""
    path = NCU.find()
    if path is None:
        raise ToolMissing(f"ncu not found: {NCU.remedy}")
    try:
        version(path)
    except OSError as error:
        raise ToolMissing(f"ncu at {path} does not start: {error}") from error
    denied = counters_denied()
    if denied:
        raise ToolMissing(f"{denied}; run as root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0")
    return path


def command(ncu: Path, report: Path, program: Sequence[str]) -> list[str]:
    """The command that counts each kernel launched between cudaProfilerStart and Stop.

    Clocks are left alone; before every pass over a kernel the caches are flushed (ncu's default), so that DRAM bytes
    are those of a cold start.
    """
    metrics = ",".join([*METRICS.values(), STALLED])
    return [
        str(ncu), "--force-overwrite", f"--export={report}", "--clock-control=none", "--nvtx",
        "--profile-from-start=off", f"--metrics={metrics}", *program,
    ]  # fmt: skip


def listing(ncu: Path, report: Path) -> list[str]:
    """The command that prints a report as CSV in base units."""
    return [str(ncu), f"--import={report}", "--csv", "--page=raw", "--print-units=base"]


def parse(text: str) -> list[Counters]:
    """Counters of a raw page printed as CSV, in launch order.

    Raises:
        ToolFailed: no kernel was counted.
        ValueError: no metric is there, or the unit of one is not the base one.
    """
    rows = _rows(text)
    if len(rows) < 2:
        raise ToolFailed("ncu counted no kernel: did the program start its capture range?")
    units, launches = rows[0], rows[1:]
    if not any(metric in units for metric in METRICS.values()):
        raise ValueError(f"ncu's CSV lacks {', '.join(METRICS.values())}")
    scaled = [
        f"{name} in {units[METRICS[name]]}"
        for name, allowed in UNITS.items()
        if METRICS[name] in units and units[METRICS[name]] not in allowed
    ]
    if scaled:
        raise ValueError(f"ncu's CSV is not in base units ({', '.join(scaled)}): print it with --print-units=base")
    return [_counters(row) for row in launches]


def missing(text: str) -> tuple[str, ...]:
    """What a raw page printed as CSV lacks and what is therefore not known, a line each."""
    rows = _rows(text)
    columns = set(rows[0]) if rows else set()
    lacking = [f"{metric}: {name} is not known" for name, metric in METRICS.items() if metric not in columns]
    if NAME not in columns:
        lacking.append(f"{NAME}: kernels have no names")
    if not any(RANGES.fullmatch(column) for column in columns):
        lacking.append("NVTX push/pop ranges: kernels belong to no stage")
    return tuple(f"the report lacks {what}" for what in lacking)


def _rows(text: str) -> list[dict[str, str]]:
    """Units, then launches, by column; a torn line has the columns that it reaches."""
    start = text.find('"ID",')  # warnings may stand above
    lines = csv.DictReader(text[start:].splitlines()) if start >= 0 else ()
    return [{k: v for k, v in row.items() if isinstance(k, str) and isinstance(v, str)} for row in lines]


def _counters(row: dict[str, str]) -> Counters:
    def number(column: str) -> float:
        try:
            return float(row[column].replace(",", ""))
        except (KeyError, ValueError):
            return math.nan

    def count(name: str) -> int | None:
        value = number(METRICS[name])
        return int(value) if math.isfinite(value) else None

    opened = " ".join(text for column, text in row.items() if RANGES.fullmatch(column))
    ranges = re.findall(rf'"{DOMAIN}:([^:"]+):', opened)
    stages = [name for name in ranges if name not in SPANS]
    kinds = [name for name in ranges if name in SPANS and name != "layer"]
    stalls = {match[1]: number(column) for column in row if (match := re.fullmatch(STALL, column))}
    return Counters(
        name=short_name(row.get(NAME, UNNAMED)),
        stage=stages[-1] if stages else UNMARKED,
        kind=kinds[-1] if kinds else "",
        stalls=tuple(sorted(stalls.items(), key=lambda item: -item[1])),
        registers=count("registers"),
        programs=count("programs"),
        threads=count("threads"),
        **{name: number(metric) for name, metric in METRICS.items() if name not in COUNTS},
    )
