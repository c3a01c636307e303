"""Running a list of cases: progress, results written as they come, resume, failures that do not stop the run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha1
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...kernels import get_method, registered
from ...profiling.device import device_name, source_state
from ..micro.cases import MethodSpec
from .rows import Row, append_case, identity, read_rows, rewrite, write_csv
from .worker import AnyCase, Worker, WorkerDied

FAILED = ("failed", "oom")
INTERRUPTED = 130  # exit status


@dataclass(slots=True)
class Outcome:
    """What a run left behind."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    resumed: int = 0  # cases found done
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.status in FAILED]

    @property
    def exit_status(self) -> int:
        return INTERRUPTED if self.interrupted else int(bool(self.failures))


def default_folder(device: torch.device) -> Path:
    """`runs/<device>/<commit>`: another commit or device starts a file of its own, so resuming never mixes trees."""
    commit, dirty = source_state()
    tag = commit[:10] if commit else "unversioned"
    if dirty:
        tag += f"-dirty-{_changes()}"
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return Path("runs") / slug / tag


def _changes() -> str:
    """A short hash of what the tree holds beyond its commit, new files included."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False).stdout

    digest = sha1(git("diff", "HEAD"))
    for name in git("ls-files", "--others", "--exclude-standard", "-z", "*.py").split(b"\0"):
        path = root / name.decode()
        if name and path.is_file():
            digest.update(name + path.read_bytes())
    return digest.hexdigest()[:6]


def is_done(
    case: AnyCase,
    specs: Sequence[MethodSpec],
    rows: Sequence[Row],
    device: torch.device,
    kinds: Sequence[str] = (),
) -> bool:
    """True if every method asked for has its rows in this case, none failed, and none skipped could run by now.

    Args:
        kinds: cache states, launches and stages that every timed method must have a row of: "warm", "eager", "gap".
    """
    mine = [row for row in rows if _belongs(row, case)]
    for spec in specs:
        columns = spec.columns()
        found = [r for r in mine if r.method == spec.name and all(getattr(r, k) == v for k, v in columns.items())]
        if not found or any(row.status in FAILED for row in found):
            return False
        present = {kind for row in found if row.timed for kind in (row.cache_state, row.launch, row.stage)}
        if present and not present.issuperset(kinds):
            return False
        if any(row.status == "skipped" and not row.final for row in found) and not get_method(spec.name).unavailable(
            case.shape, case.torch_dtype, device
        ):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Job:
    """Methods of one case that are measured and written together; `name` says which."""

    case: AnyCase
    specs: list[MethodSpec]
    name: str


def jobs_of(case: AnyCase, specs: Sequence[MethodSpec], is_left: Callable[[Sequence[MethodSpec]], bool]) -> list[Job]:
    """What is left of a case: all its methods, or only those that are left where methods are independent.

    Args:
        is_left: whether any of these methods is to be measured.
    """
    if case.at_a_time is None:
        return [Job(case, list(specs), case.slug)] if is_left(specs) else []
    left = [spec for spec in specs if is_left([spec])]
    if len(left) <= case.at_a_time:
        return [Job(case, left, case.slug)] if left else []
    jobs = []
    for first in range(0, len(left), case.at_a_time):
        group = left[first : first + case.at_a_time]
        name = f"{case.slug}, methods {first + 1} to {first + len(group)} of {len(left)}"
        jobs.append(Job(case, group, name))
    return jobs


def run_cases(
    cases: Sequence[AnyCase],
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
    give way when their successors are there; all others stay. Ctrl-C stops with all finished jobs written (exit status
    130). A job that kills the measuring process becomes failed rows.

    Args:
        further: methods that only some cases run, by the case's slug.
    """
    start = clock()
    kept = read_rows(path) if path.exists() else []
    wanted = {case.slug: [*specs, *(further or {}).get(case.slug, ())] for case in cases}
    jobs: list[Job] = []
    done = 0
    for case in cases:
        mine = [row for row in kept if _belongs(row, case)]

        def is_left(specs: Sequence[MethodSpec], case: AnyCase = case, mine: Sequence[Row] = mine) -> bool:
            return fresh or not is_done(case, specs, mine, device, kinds)

        found = jobs_of(case, wanted[case.slug], is_left)
        done += not found
        jobs += found
    if path.exists():
        rewrite(path, kept)  # without what a run cut short left at its end
    outcome = Outcome(path, kept, done)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}"),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            what = "cases" if done + len(jobs) == len(cases) else "groups of methods"
            task = progress.add_task(what, total=done + len(jobs), completed=done, step="starting")
            for job in jobs:
                began = clock()
                rows = _attempt(job.case, job.specs, worker, device, partial(_show, progress, task, job.name))
                _keep(outcome, job, rows)
                progress.advance(task)
                if not console.is_terminal:
                    console.print(f"{job.name}: {_digest(rows)} in {clock() - began:.0f} s", highlight=False)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        worker.stop()
    if outcome.rows:
        write_csv(outcome.rows, path.with_suffix(".csv"))
    outcome.seconds = clock() - start
    return outcome


def _keep(outcome: Outcome, job: Job, rows: list[Row]) -> None:
    """Write a job's rows; those of an earlier run of its methods give way.

    Rows that nobody asked for (dense decoding's, which come with each group of methods) take the place of the earlier
    ones of the same measurement.
    """
    asked = {(spec.name, *sorted(spec.columns().items())) for spec in job.specs}
    newer = {identity(row): row for row in rows if _settings(row) not in asked}
    had = {identity(row) for row in outcome.rows}
    others = [row for row in outcome.rows if not (_belongs(row, job.case) and _settings(row) in asked)]
    if len(others) == len(outcome.rows) and had.isdisjoint(newer):
        append_case(outcome.path, rows)
        outcome.rows += rows
        return
    others = [replace(row, case_rows=None) if _belongs(row, job.case) else row for row in others]
    added = [row for row in rows if _settings(row) in asked or identity(row) not in had]
    added = [replace(row, case_rows=len(added)) for row in added]
    outcome.rows = [*(newer.get(identity(row), row) for row in others), *added]
    rewrite(outcome.path, outcome.rows)  # at once, so that nothing is ever missing from the file


def _belongs(row: Row, case: AnyCase) -> bool:
    return (row.suite, row.case, row.dtype, row.seed) == (case.suite, case.slug, case.dtype, case.seed)


def _settings(row: Row) -> tuple[Any, ...]:
    names = get_method(row.method).uses if row.method in registered() else ()
    columns = {name: getattr(row, name) for name in names}
    columns |= {n: getattr(row, n) for n in ("dense_layers", "draft_length") if getattr(row, n) is not None}
    return (row.method, *sorted(columns.items()))


def _show(progress: Progress, task: TaskID, name: str, text: str) -> None:
    progress.update(task, step=f"{name}: {text}")


def _attempt(
    case: AnyCase, specs: Sequence[MethodSpec], worker: Worker, device: torch.device, on_step: Callable[[str], None]
) -> list[Row]:
    """Rows of a case; failed rows if the measuring process does not survive it."""
    try:
        return worker.run(case, list(specs), on_step)
    except WorkerDied as error:
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stderr)
    commit, dirty = source_state()

    def verdict(spec: MethodSpec) -> dict[str, str]:
        unavailable = get_method(spec.name).unavailable(case.shape, case.torch_dtype, device)
        return {"status": "skipped", "reason": unavailable} if unavailable else {"status": "failed", "reason": reason}

    return [
        Row(
            **case.columns(),
            method=spec.name,
            stage="total",
            commit=commit,
            dirty=dirty,
            **spec.columns(),
            **verdict(spec),  # type: ignore[arg-type]
        )
        for spec in specs
    ]


def _digest(rows: Sequence[Row]) -> str:
    timed = sum(row.timed or row.value is not None for row in rows)
    failed = sum(row.status in FAILED for row in rows)
    skipped = sum(row.status == "skipped" for row in rows)
    return f"{timed} measured" + (f", {skipped} skipped" if skipped else "") + (f", {failed} FAILED" if failed else "")
