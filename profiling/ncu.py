"""Nsight Compute: the command that counts what a capture range's kernels do, and its CSV read into counters."""

from __future__ import annotations

import csv
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
RANGES = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"


@dataclass(frozen=True, slots=True)
class Counters:
    """One launch.

    Attributes:
        kind: "step" or "rectification", the span around its stage; empty outside both.
        dram_percent: of what the memory could have moved in the time.
        occupancy_percent: resident warps of those that a multiprocessor can hold.
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
    registers: int
    programs: int
    threads: int
    stalls: tuple[tuple[str, float], ...]

    @property
    def dram_bytes(self) -> float:
        return self.dram_read_bytes + self.dram_write_bytes

    @property
    def gbps(self) -> float:
        return self.dram_bytes / self.duration_ns


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
        ValueError: a metric is missing, or its unit is not the base one.
    """
    start = text.find('"ID",')  # warnings may stand above
    rows = list(csv.DictReader(text[start:].splitlines())) if start >= 0 else []
    if len(rows) < 2:
        raise ToolFailed("ncu counted no kernel: did the program start its capture range?")
    units, launches = rows[0], rows[1:]
    missing = [metric for metric in METRICS.values() if metric not in units]
    if missing:
        raise ValueError(f"ncu's CSV lacks {', '.join(missing)}")
    scaled = [f"{name} in {units[METRICS[name]]}" for name, unit in _BASE.items() if units[METRICS[name]] != unit]
    if scaled:
        raise ValueError(f"ncu's CSV is not in base units ({', '.join(scaled)}): print it with --print-units=base")
    return [_counters(row) for row in launches]


_BASE = {"duration_ns": "ns", "dram_read_bytes": "byte", "dram_write_bytes": "byte"}


def _counters(row: dict[str, str]) -> Counters:
    def number(column: str) -> float:
        return float(row[column].replace(",", "") or "nan")

    ranges = re.findall(rf'"{DOMAIN}:([^:"]+):', row.get(RANGES) or "")
    stages = [name for name in ranges if name not in SPANS]
    kinds = [name for name in ranges if name in SPANS and name != "layer"]
    stalls = {m[1]: number(column) for column in row if (m := re.fullmatch(STALL, column))}
    values = {name: number(metric) for name, metric in METRICS.items()}
    for name in ("registers", "programs", "threads"):
        values[name] = int(values[name])
    return Counters(
        name=short_name(row["Kernel Name"]),
        stage=stages[-1] if stages else UNMARKED,
        kind=kinds[-1] if kinds else "",
        stalls=tuple(sorted(stalls.items(), key=lambda item: -item[1])),
        **values,  # type: ignore[arg-type]
    )
