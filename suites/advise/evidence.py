"""Measured whole steps of a GPU, from committed result files: what advice is fitted to and judged by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...kernels import registered
from ...kernels.config import SETTINGS as STEP_SETTINGS
from ...kernels.selectors import selectors
from ..core.manifest import read_manifest
from ..core.results import read_rows
from ..core.rows import Row
from ..core.spec import MethodSpec, make_spec, steps_of
from ..decode.cases import DecodeCase
from ..engine.case import RAGGED
from ..model.config import MODELS, ModelConfig
from ..model.parallel.shard import Shard

RESULTS = Path(__file__).resolve().parents[2] / "results"
"""Committed results, of a checkout; a wheel has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A whole step that was measured, with its stages where the row's run broke it down.

    Attributes:
        stages_us: by stage, of the same run.
        file: the result file, for a reader to look the row up.
    """

    case: DecodeCase
    spec: MethodSpec
    row: Row
    stages_us: dict[str, float]
    file: Path

    @property
    def us(self) -> float:
        """The mean step, rectification amortised in."""
        assert self.row.mean_us is not None
        return self.row.mean_us

    @property
    def source(self) -> str:
        """Where a reader finds the row."""
        return source_of(self.row, self.file)


def source_of(row: Row, file: Path) -> str:
    """`results/h200/decode.jsonl.gz, commit 2e089cf`: where a reader finds a row."""
    inside = file.is_relative_to(RESULTS.parent)
    return f"{file.relative_to(RESULTS.parent) if inside else file}, commit {(row.commit or 'unknown')[:7]}"


def available_gpus() -> list[str]:
    """Folders of committed results that hold rows of whole models on a GPU."""
    return sorted(folder.name for folder in RESULTS.glob("*") if folder.name != "cpu" and decode_files(folder))


def decode_files(folder: Path) -> list[Path]:
    """Files of the decode suite in a folder, at any depth."""
    names = ("decode.jsonl.gz", "decode.jsonl", "energy.jsonl.gz")
    return sorted(path for name in names for path in folder.rglob(name))


def read_measured(gpu: str, files: Iterable[Path] = ()) -> list[Measured]:
    """Whole steps of presets, launched as graphs by this project's engine.

    Args:
        gpu: the name of a folder of committed results.
        files: result files that stand in place of that folder's.

    Raises:
        ValueError: no such rows, lines that are no rows, or rows of several devices: times of two say nothing of one.
    """
    given = list(files)
    paths = given or decode_files(RESULTS / gpu)
    measured = [m for path in paths for m in _of_file(path)]
    devices = sorted({m.row.device or "an unknown one" for m in measured})
    if len(devices) > 1:
        where = "--results" if given else f"--gpu {gpu}"
        raise ValueError(f"{where}: rows of {len(devices)} devices ({', '.join(devices)}); give those of one")
    if measured:
        return measured
    if given:
        where = ", ".join(map(str, given))
        raise ValueError(f"--results {where}: no whole decode steps of presets, launched as graphs")
    known = ", ".join(available_gpus()) or "none (a wheel holds no results: run from a checkout, or give --results)"
    raise ValueError(f"--gpu {gpu}: no measured decode rows in results/{gpu}; rows are there of: {known}")


def gpu_memory(measured: Sequence[Measured]) -> int | None:
    """Bytes of the GPU that the rows are of: from a manifest beside them or in the folder above, else from its name.

    None where neither says them.
    """
    device = measured[0].row.device or ""
    for folder in dict.fromkeys(folder for m in measured for folder in (m.file.parent, m.file.parent.parent)):
        for chip in _chips(folder):
            if chip.get("name") == device and "memory_bytes" in chip:
                return int(chip["memory_bytes"])
    match = re.search(r"(\d+)\s*GB", device)  # GiB are meant
    return int(match[1]) * 2**30 if match else None


def _chips(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_manifest(folder).chips
    except ValueError:  # another program's manifest.json, beside rows of the user's own
        return []


def _of_file(path: Path) -> list[Measured]:
    by_step: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    totals: list[Row] = []
    for row in read_rows(path):
        if row.suite != "decode" or not row.timed or row.client or row.products or row.launch != "graph" or row.metric:
            continue
        if row.stage == "total":
            totals.append(row)
        else:
            by_step[_step(row)][row.stage] = row.mean_us or 0.0
    measured = []
    for row in totals:
        config = config_of_row(row)
        if config is not None and is_predictable(row):
            measured.append(Measured(case_of(row, config), spec_of(row), row, by_step.get(_step(row), {}), path))
    return measured


def _step(row: Row) -> tuple[object, ...]:
    return row.case, row.variant, row.commit, row.started_at


def is_predictable(row: Row) -> bool:
    """Whether a row is a whole step, with caches of 16 bits, of a method that advice speaks of."""
    if not is_modelled(row.method) or row.mean_us is None or row.shared_kv is None:
        return False
    if row.selection_pattern == RAGGED:  # its context is the longest sequence's alone
        return False
    if row.kv_dtype is not None:  # advice is for caches of 16 bits
        return False
    selector = selectors().get(row.selector or "")
    return selector is None or len(selector.choosing) == 1  # else its layers differ


def is_modelled(method: str) -> bool:
    """Whether a method's work is a function of shapes: dense ones on a GPU, and those that rank by summaries.

    (RetroAttention runs several tokens a step, an eviction keeps what it kept, a draft is verified, and an oracle or a
    fixed window reads no summaries: advice does not speak of them.)
    """
    own, kind = registered().get(method), registered().get(steps_of(method))
    if own is None or kind is None or own.device_type == "cpu":
        return False
    return kind.is_dense or (kind.ranks_by == "summary" and "window" not in kind.uses)


def config_of_row(row: Row) -> ModelConfig | None:
    """The shape of a row's model, or of one rank's share; None for models that are no preset, and for real ranks."""
    name, _, _ = row.model.partition("-rank-of-")
    base = MODELS.get(name)
    if base is None or (row.ranks and not row.simulated):
        return None
    return Shard(0, row.ranks, True).config(base) if row.ranks else base


def case_of(row: Row, config: ModelConfig) -> DecodeCase:
    """The case that a row says."""
    weights, dtype = row.weight_dtype or "bf16", row.dtype or "bf16"
    return DecodeCase(config.name, config, row.batch, row.context, weights, dtype, bool(row.shared_kv))


def spec_of(row: Row) -> MethodSpec:
    """The method that a row says, at its settings; `resa` by the way that it took, as `resa-chain` or `resa-fused`."""
    spec = make_spec(f"resa-{row.way}" if row.method == "resa" and row.way else row.method)
    step = {name: value for name, value in row.settings.items() if name in STEP_SETTINGS}
    return replace(spec, config=replace(spec.config, **step), dense_layers=row.settings.get("dense_layers"))
