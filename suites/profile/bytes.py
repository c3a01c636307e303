"""The byte model on trial: what each stage moved through DRAM beside the bytes it must move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ...profiling.ncu import Counters

TOLERANCE = 0.10
TRIED = ("attend", "append+attend", "score", "append+score", "attend+merge", "score+select")
LEAST_BYTES = 2 << 20  # below, what a kernel moves beside its data (code, lists, partial sectors) weighs too much


def counter_frame(launches: Sequence[Counters]) -> pd.DataFrame:
    """A line a launch, in order."""
    lines = [
        {
            "kind": c.kind, "stage": c.stage, "kernel": c.name, "time_us": round(c.duration_ns / 1e3, 2),
            "dram_read_mb": round(c.dram_read_bytes / 1e6, 3), "dram_write_mb": round(c.dram_write_bytes / 1e6, 3),
            "gbps": round(c.gbps, 1), "dram_percent": round(c.dram_percent, 1),
            "l2_hit_percent": round(c.l2_hit_percent, 1), "occupancy_percent": round(c.occupancy_percent, 1),
            "registers": c.registers, "programs": c.programs, "threads": c.threads,
            "stalls": ", ".join(f"{name} {value:.1f}" for name, value in c.stalls if name != "selected"),
        }
        for c in launches
    ]  # fmt: skip
    return pd.DataFrame(lines)


def byte_frame(launches: Sequence[Counters], stage_bytes: Mapping[str, int]) -> pd.DataFrame:
    """A line a stage of the step whose compulsory bytes are known.

    Columns: stage, model_mb, dram_mb (read and written), ratio, verdict: `agrees` within 10 %, `disagrees`, or `small`
    where the stage moves too little to tell or is not one that streams its data.
    """
    lines = []
    for stage in dict.fromkeys(launch.stage for launch in launches if launch.kind == "step"):
        if stage not in stage_bytes:
            continue
        model = stage_bytes[stage]
        moved = sum(launch.dram_bytes for launch in launches if launch.kind == "step" and launch.stage == stage)
        ratio = moved / model if model else float("nan")
        verdict = "small" if model < LEAST_BYTES or stage not in TRIED else _verdict(ratio)
        lines.append((stage, round(model / 1e6, 3), round(moved / 1e6, 3), round(ratio, 4), verdict))
    return pd.DataFrame(lines, columns=["stage", "model_mb", "dram_mb", "ratio", "verdict"])


def _verdict(ratio: float) -> str:
    return "agrees" if abs(ratio - 1) <= TOLERANCE else "disagrees"
