"""Micro rows as a FlashInfer Trace dataset: definitions, solutions, workloads and traces, as flashinfer-bench reads it.

What the schema cannot say is left out, and counted: stages, warm or eager steps beside a cold graph, caches in pages,
K and V with a pattern, methods whose blocks depend on more than the step's inputs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from ...kernels import AttentionShape, SparseConfig, registered
from ...kernels.config import SELECTS
from ..core.results import read_rows
from ..core.rows import FAILED, Row
from ..core.spec import is_dense, steps_of
from .definition import DTYPES, OP_TYPE, Problem

OURS, RIVALS = "resa-bench", "baseline"
"""Authors of solutions. flashinfer-bench scores authors against the one that is called "baseline"."""


@dataclass(slots=True)
class Dataset:
    """A FlashInfer Trace dataset, its objects as JSON.

    Attributes:
        definitions, solutions: by name.
        workloads, traces: by definition; traces by author, too.
        left_out: reasons, with how many rows each.
    """

    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    solutions: dict[str, dict[str, Any]] = field(default_factory=dict)
    workloads: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    traces: dict[tuple[str, str], dict[tuple[str, ...], dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    left_out: Counter[str] = field(default_factory=Counter)

    def write(self, folder: Path) -> int:
        """Write the files that `TraceSet.from_path` reads. Gives the number of traces."""
        for definition in self.definitions.values():
            _write(folder / "definitions" / OP_TYPE / f"{definition['name']}.json", [definition], indent=2)
        for solution in self.solutions.values():
            place = folder / "solutions" / solution["author"] / OP_TYPE / solution["definition"]
            _write(place / f"{solution['name']}.json", [solution], indent=2)
        for name, workloads in self.workloads.items():
            _write(folder / "workloads" / OP_TYPE / f"{name}.jsonl", list(workloads.values()))
        for (author, name), traces in self.traces.items():
            _write(folder / "traces" / author / OP_TYPE / f"{name}.jsonl", list(traces.values()))
        return sum(map(len, self.traces.values()))


def make_dataset(rows: Iterable[Row]) -> Dataset:
    """The dataset of a run's rows; of a measurement that comes twice, the later counts."""
    dataset = Dataset()
    rows = list(rows)
    graphs = {(row.device, row.case, row.variant) for row in rows if row.launch == "graph"}
    for row in rows:
        reason = _unfit(row)
        if reason is None and row.launch == "eager" and (row.device, row.case, row.variant) in graphs:
            reason = "eager steps beside a graph"
        problem = None if reason else problem_of(row)
        if problem is None:
            dataset.left_out[reason or f"{row.method}: its blocks depend on more than the step's inputs"] += 1
            continue
        _add(dataset, row, problem)
    return dataset


def export_files(paths: Sequence[Path], folder: Path) -> Dataset:
    """Read result files and write their dataset.

    Raises:
        OSError, ValueError: a file that cannot be read, rows of which nothing fits the schema, a folder with files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder, since a dataset is read as a whole")
    dataset = make_dataset(row for path in paths for row in read_rows(path))
    if not dataset.traces:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in dataset.left_out.most_common(3))
        raise ValueError(f"no row fits the schema (whole steps of `resa-bench micro`). {reasons}")
    dataset.write(folder)
    return dataset


def problem_of(row: Row) -> Problem | None:
    """What a row's method had to compute; None where its inputs and settings do not say it."""
    shape = AttentionShape(row.batch, row.q_heads, row.kv_heads, row.head_dim)
    if is_dense(row.method):
        return Problem(shape, row.dtype or "", None)
    kind = registered().get(steps_of(row.method))
    if kind is None or kind.ranks_by != "summary" or row.selector is not None:
        return None
    settings = {name: value for name, value in row.settings.items() if name in (*SELECTS, "budget_tokens")}
    return Problem(shape, row.dtype or "", replace(SparseConfig(), **settings))


def _unfit(row: Row) -> str | None:
    """Why the schema cannot say a row; None where it can."""
    if row.suite != "micro":
        return f"suite {row.suite}"
    if row.status == "skipped":
        return "skipped"
    if row.stage != "total":
        return "stages"
    if row.dtype not in DTYPES or row.kv_dtype:
        return f"dtype {row.kv_dtype or row.dtype}"
    if row.paged or row.selection_pattern not in (None, "random"):
        return "caches in pages, or K and V with a pattern"
    return f"{row.cache_state} steps" if row.cache_state not in (None, "cold") else None


def _add(dataset: Dataset, row: Row, problem: Problem) -> None:
    name = problem.name
    dataset.definitions.setdefault(name, problem.definition)
    author = OURS if not is_dense(row.method) or row.method in ("triton-dense", "torch-dense") else RIVALS
    solution = f"{row.method.replace('-', '_')}__{name}"
    dataset.solutions[solution] = {
        "name": solution,
        "definition": name,
        "author": author,
        "description": f"{row.method} as resa-bench runs it, at commit {row.commit or 'unknown'}",
        "spec": {
            "language": "python",
            "target_hardware": [_hardware(row)],
            "entry_point": "main.py::run",
            "dependencies": ["torch", "resa-bench"],
            "destination_passing_style": False,
        },
        "sources": [{"path": "main.py", "content": problem.solution_source(row.method, row.version)}],
    }
    axes = {"batch_size": row.batch, "kv_len": row.context}
    uuid = str(uuid5(NAMESPACE_URL, f"{name} {axes} seed {row.seed}"))
    inputs = {tensor: {"type": "random"} for tensor in dataset.definitions[name]["inputs"]}
    workload = {"uuid": uuid, "axes": axes, "inputs": inputs}
    bare = {"definition": name, "workload": workload, "solution": None, "evaluation": None}
    dataset.workloads[name][uuid] = bare
    trace = bare | {"solution": solution, "evaluation": evaluation(row)}
    dataset.traces[author, name][uuid, solution, _hardware(row)] = trace


def evaluation(row: Row) -> dict[str, Any]:
    """A row as an Evaluation: status, environment, times, errors.

    The error is the largest ||out - ref|| / ||ref|| over heads, against fp64; rows have no absolute error, so that it
    is NaN, which the schema writes as a string. The reference's latency is the best dense method's of the same run: the
    definition's own code is not timed. It is 0 where the run had no dense method.
    """
    versions = {"torch": row.torch, "triton": row.triton, "cuda_driver": row.driver, "python": row.python}
    result: dict[str, Any] = {
        "status": "PASSED",
        "environment": {
            "hardware": _hardware(row),
            "libs": {name: value for name, value in (versions | {"resa_bench": row.version}).items() if value},
        },
        "timestamp": row.started_at or "unknown",
        "log": _log(row),
        "correctness": None,
        "performance": None,
    }
    correctness: dict[str, Any] = {"max_relative_error": "NaN", "max_absolute_error": "NaN", "extra": None}
    if row.max_rel_error is not None:
        extra = {"error_budget_used": row.error_budget_used, "relative_error": "largest L2 norm-wise error of a head"}
        correctness |= {"max_relative_error": row.max_rel_error, "extra": extra}
    if row.status in FAILED:
        if row.status == "oom" or row.max_rel_error is None:
            return result | {"status": "RUNTIME_ERROR"}
        return result | {"status": "INCORRECT_NUMERICAL", "correctness": correctness}
    latency_ms, speedup = (row.time_us or 0.0) / 1000, row.speedup_vs_best_dense or 0.0
    performance = {
        "latency_ms": latency_ms, "reference_latency_ms": latency_ms * speedup, "speedup_factor": speedup,
    }  # fmt: skip
    return result | {"correctness": correctness, "performance": performance}


def _log(row: Row) -> str:
    """What the schema has no field for."""
    lines = [
        f"resa-bench commit {row.commit or 'unknown'}{' (changed since)' if row.dirty else ''}; {row.command or ''}",
        f"median of {row.n_samples} samples, 95 % interval {row.ci_low_us} to {row.ci_high_us} us; "
        f"{row.cache_state} L2, {row.launch}"
        if row.timed
        else None,
        f"reference latency: {row.best_dense}, the best dense method of the same run" if row.best_dense else None,
        f"{row.status}: {row.reason}" if row.reason else None,
    ]
    return "\n".join(line for line in lines if line)


def _hardware(row: Row) -> str:
    return (row.device or "unknown").replace(" ", "_")


def _write(path: Path, objects: Sequence[dict[str, Any]], indent: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(item, indent=indent, ensure_ascii=False, allow_nan=False) for item in objects]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
