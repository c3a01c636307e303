"""Running a list of cases: progress, results written as they come, resume, failures that do not stop the run."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...profiling.device import device_name, source_state, source_tag
from .bench import Case, Report
from .exits import DONE, INTERRUPTED
from .exits import FAILED as SOMETHING_FAILED
from .failure import unavailable
from .origin import same_origin
from .results import Contents, append, locked, read_file, rewrite, write_csv
from .rows import FAILED, Row, from_record, identity, not_finite, to_record
from .spec import MethodSpec
from .worker import Worker, WorkerDied


@dataclass(slots=True)
class Outcome:
    """What a run left behind."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    cases: int = 0  # asked for
    resumed: int = 0  # of these, found done
    lost: list[Row] = field(default_factory=list)  # failures that did not take the place of good rows
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def failures(self) -> list[Row]:
        """Rows that failed."""
        return [*(row for row in self.rows if row.status in FAILED), *self.lost]

    @property
    def exit_status(self) -> int:
        """Done, something failed, or interrupted (`exits.MEANINGS`)."""
        return INTERRUPTED if self.interrupted else SOMETHING_FAILED if self.failures else DONE


def default_folder(device: torch.device) -> Path:
    """`runs/<device>/<sources>`: other sources or another device start a file of their own, so no run mixes trees."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return Path("runs") / slug / source_tag()


def belongs(row: Row, case: Case) -> bool:
    """Whether a row is of this case: the same inputs."""
    columns = case.columns()
    same = all(getattr(row, name) == columns.get(name) for name in ("suite", "case", "dtype", "seed"))
    return same and row.model_fingerprint == columns.get("model_fingerprint")


def is_done(
    case: Case, specs: Sequence[MethodSpec], rows: Sequence[Row], device: torch.device, kinds: Sequence[str] = ()
) -> bool:
    """True if every method asked for has its rows in this case, none failed, and none skipped could run by now.

    Args:
        kinds: cache states, launches and stages that every timed method must have a row of: "warm", "eager", "gap".
    """
    of_case = [row for row in rows if belongs(row, case)]
    for spec, reason in unavailable(specs, case, device):
        own = [row for row in of_case if row.variant == spec.variant]
        if not own or any(row.status in FAILED or not same_origin(row, spec, case, device) for row in own):
            return False
        present = {kind for row in own if row.timed for kind in (row.cache_state, row.launch, row.stage)}
        if present and not present.issuperset(kinds):
            return False
        if any(row.status == "skipped" and not row.final for row in own) and not reason:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Job:
    """Methods of one case that are measured and written together; `name` says which."""

    case: Case
    specs: list[MethodSpec]
    name: str


def jobs_of(case: Case, specs: Sequence[MethodSpec], is_left: Callable[[Sequence[MethodSpec]], bool]) -> list[Job]:
    """What is left of a case: all its methods, or only those that are left where methods are independent.

    Methods are compared within a run. Without a dense one there is no ratio, and those that are done keep theirs.

    Args:
        is_left: whether any of these methods is to be measured.
    """
    if case.at_a_time is None and any(spec.variant.is_dense for spec in specs):
        return [Job(case, list(specs), case.slug)] if is_left(specs) else []
    left = [spec for spec in specs if is_left([spec])]
    if case.at_a_time is None or len(left) <= case.at_a_time:
        return [Job(case, left, case.slug)] if left else []
    jobs = []
    for first in range(0, len(left), case.at_a_time):
        group = left[first : first + case.at_a_time]
        name = f"{case.slug}, methods {first + 1} to {first + len(group)} of {len(left)}"
        jobs.append(Job(case, group, name))
    return jobs


def run_cases(
    cases: Sequence[Case],
    specs: Sequence[MethodSpec],
    worker: Worker,
    path: Path,
    device: torch.device,
    console: Console,
    *,
    fresh: bool = False,
    kinds: Sequence[str] = (),
    further: Mapping[str, Sequence[MethodSpec]] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Measure what `path` does not hold yet (with `fresh`: all that is asked for); write each job's rows as they come.

    A job is a case, or some methods of a case whose methods are independent (`at_a_time`). Rows that are measured again
    give way when their successors are there, and a failure never takes the place of good rows. Ctrl-C stops with all
    finished jobs written (exit status 130). A job that kills the measuring process becomes failed rows.

    Args:
        further: methods that only some cases run, by the case's slug.
    """
    start = clock()
    contents = read_file(path) if path.exists() else Contents()
    held = contents.rows
    if contents.unreadable:
        number, _, reason = contents.unreadable[0]
        text = f"{path}: {len(contents.unreadable)} lines are no rows (line {number}: {reason}); they are kept"
        console.print(f"{text}, in {path.name}.unreadable if the file is written anew", highlight=False, markup=False)
    jobs: list[Job] = []
    resumed = foreign = 0
    for case in cases:
        wanted = [*specs, *(further or {}).get(case.slug, ())]

        def is_left(some: Sequence[MethodSpec], case: Case = case) -> bool:
            return fresh or not is_done(case, some, held, device, kinds)

        left = jobs_of(case, wanted, is_left)
        resumed += not left
        jobs += left
        foreign += sum(
            not same_origin(row, spec, case, device)
            for spec in wanted for row in held if row.variant == spec.variant and belongs(row, case)
        )  # fmt: skip
    if foreign and not fresh:
        text = f"{foreign} rows are of other sources, libraries, texts or another device: they are measured again"
        console.print(text, highlight=False, markup=False)
    outcome = Outcome(path, held, len(cases), resumed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}", markup=False),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            what = "cases" if resumed + len(jobs) == len(cases) else "groups of methods"
            task = progress.add_task(what, total=resumed + len(jobs), completed=resumed, step="starting")
            for job in jobs:
                began = clock()
                rows = _attempt(job, worker, device, partial(_show, progress, task, job.name))
                rows = [finite(row) for row in rows]
                outcome.lost += keep(path, job, rows)
                progress.advance(task)
                if not console.is_terminal:
                    text = f"{job.name}: {_digest(rows)} in {clock() - began:.0f} s"
                    console.print(text, highlight=False, markup=False)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        worker.stop()
    if path.exists():
        with locked(path):
            outcome.rows = read_file(path).rows
            write_csv(outcome.rows, path.with_suffix(".csv"))
    outcome.seconds = clock() - start
    return outcome


def finite(row: Row) -> Row:
    """The row, or a failed one that says which columns are not finite numbers: JSON has none."""
    record = to_record(row)
    names = not_finite(record)
    if not names:
        return row
    kept = {name: value for name, value in record.items() if name not in names and not name.endswith("_us")}
    return from_record(kept | {"status": "failed", "reason": f"not a finite number: {', '.join(names)}"})[0]


def keep(path: Path, job: Job, rows: Sequence[Row]) -> list[Row]:
    """Write a job's rows into a file that other processes may write, too; the rows that were not taken.

    Rows of an earlier run of its methods give way. Rows that nobody asked for (dense decoding's, which come with each
    group of methods) take the place of the earlier ones of the same measurement. A failed row never takes the place of
    good ones: it is returned instead.
    """
    with locked(path):
        contents = read_file(path) if path.exists() else Contents()
        asked = {spec.variant for spec in job.specs}
        good = {row.variant for row in contents.rows if belongs(row, job.case) and row.measured}
        failed = {v for v in asked if v in good and not any(row.measured for row in rows if row.variant == v)}
        taken = [row for row in rows if row.variant not in failed]
        replaced = asked - failed
        newer = {identity(row): row for row in taken if row.variant not in asked}
        held = {identity(row) for row in contents.rows}
        others = [row for row in contents.rows if not (belongs(row, job.case) and row.variant in replaced)]
        partial_rows = [row for row in contents.partial if not (belongs(row, job.case) and row.variant in replaced)]
        cut = len(partial_rows) < len(contents.partial) or contents.unreadable
        if len(others) == len(contents.rows) and held.isdisjoint(newer) and not cut:
            append(path, [replace(row, case_rows=len(taken)) for row in taken])
        else:
            others = [replace(row, case_rows=None) if belongs(row, job.case) else row for row in others]
            added = [row for row in taken if row.variant in asked or identity(row) not in held]
            added = [replace(row, case_rows=len(added)) for row in added]
            merged = [*(newer.get(identity(row), row) for row in others), *added, *partial_rows]
            rewrite(path, merged, contents.unreadable)  # at once, so that nothing is ever missing from the file
    return [row for row in rows if row.variant in failed and row.status in FAILED]


def _show(progress: Progress, task: TaskID, name: str, text: str) -> None:
    progress.update(task, step=f"{name}: {text}")


def _attempt(job: Job, worker: Worker, device: torch.device, on_step: Report) -> list[Row]:
    """Rows of a job; failed rows if the measuring process does not survive it."""
    try:
        return worker.run(job.case, job.specs, on_step)
    except WorkerDied as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stderr)
    commit, dirty = source_state()

    def row(spec: MethodSpec, missing: str | None) -> Row:
        verdict: dict[str, Any] = {"status": "skipped", "reason": missing} if missing else {
            "status": "failed", "reason": reason,
        }  # fmt: skip
        common = {"method": spec.name, "stage": "total", "commit": commit, "dirty": dirty}
        return Row(**(job.case.columns() | common | spec.columns() | verdict))

    return [row(spec, missing) for spec, missing in unavailable(job.specs, job.case, device)]


def _digest(rows: Sequence[Row]) -> str:
    measured = sum(row.measured for row in rows)
    failed = sum(row.status in FAILED for row in rows)
    skipped = sum(row.status == "skipped" for row in rows)
    tail = (f", {skipped} skipped" if skipped else "") + (f", {failed} FAILED" if failed else "")
    return f"{measured} measured{tail}"
