"""What the profile commands give to the reference run: traces of whole steps, and bytes by the counters."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from ..core.reference import Part
from ..core.rows import Row, upgraded_facts

WHOLE_STEP = "decode-qwen2.5-7b-int4-b1-256k"
TRACES = {"resa": "resa", "dense": "sdpa-cudnn", "chain": "resa-chain"}
"""Methods whose steps are traced, by the part's name."""
COUNTED = ("qwen2.5-7b-b1-256k", "qwen2.5-7b-b4-128k")
"""Cases whose DRAM bytes are counted: of kernels that read one kind of data each, so of the chain."""


def profile_rows(folder: Path) -> list[Row]:
    """Rows of one profile: microseconds of a pass by stage, or a stage's DRAM bytes over the compulsory ones.

    The metric says which: `step_us` and `rectification_us` of one pass, `untraced_us` of a step that no tool watches,
    `dram_bytes_ratio`. Empty where the folder holds no profile.

    Raises:
        ValueError: facts.json of a version that does not name its columns.
    """
    facts_file, stages, counted = (folder / name for name in ("facts.json", "stages.csv", "bytes.csv"))
    if not facts_file.is_file():
        return []
    facts = upgraded_facts(json.loads(facts_file.read_text()))
    if not facts.get("columns"):
        raise ValueError(f"{facts_file}: has no `columns`; profile the case again with this version")
    common = facts["columns"] | facts["environment"]
    common |= {"suite": "profile", "status": "ok", "command": facts["command"]}

    def row(stage: str, metric: str, value: float, launch: str | None = None) -> Row:
        return Row(**(common | {"stage": stage, "metric": metric, "value": float(value), "launch": launch}))

    launch = "graph" if facts["graph"] else "eager"
    rows = [row("total", "untraced_us", facts["untraced_us"], launch)]
    if stages.is_file():
        rows += [
            row(line.stage, f"{line.kind}_us", line.time_us, line.launch)  # type: ignore[arg-type]
            for line in pd.read_csv(stages).itertuples()
        ]
    if counted.is_file():
        frame = pd.read_csv(counted).dropna(subset=["ratio"])
        rows += [row(line.stage, "dram_bytes_ratio", line.ratio) for line in frame.itertuples()]  # type: ignore[arg-type]
    return rows


def _traced(case: str, method: str | None, name: str, gpu: float | None, cpu: float | None) -> Part:
    words = f"nsys {case}" + (f" --method {method}" if method else "")
    return Part(words, f"nsys-{name}", gpu, cpu, rows=profile_rows, keeps=("facts.json", "timeline.csv", "kernels.csv"))


def _counted(case: str, method: str, name: str) -> Part:
    words, keeps = f"ncu {case} --method {method}", ("facts.json", "counters.csv")
    return Part(words, f"ncu-{name}", 0.6, None, rows=profile_rows, keeps=keeps)


PARTS = (
    *(_traced(WHOLE_STEP, method, name, 0.6, None) for name, method in TRACES.items()),
    _traced("qwen2.5-7b-b1-16k", None, "clock", None, 1.0),
    _counted(COUNTED[0], "resa-chain", "b1-256k"),
    _counted(COUNTED[0], "sdpa-cudnn", "dense"),
    _counted(COUNTED[1], "resa-chain", "b4-128k"),
)
