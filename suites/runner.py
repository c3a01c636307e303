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

from ..kernels import get_method, registered
from ..profiling.device import device_name, source_state
from .cases import MethodSpec
from .rows import Row, append_case, read_rows, rewrite, write_csv
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
    """Measure what `path` does not hold yet (with `fresh`: all that is asked for); write each case's rows as they come.

    Rows that are measured again give way when their successors are there; all others stay. Ctrl-C stops after writing
    all finished cases (exit status 130). A case that kills the measuring process becomes failed rows.

    Args:
        further: methods that only some cases run, by the case's slug.
    """
    start = clock()
    kept = read_rows(path) if path.exists() else []
    wanted = {case.slug: [*specs, *(further or {}).get(case.slug, ())] for case in cases}
    done = {case.slug for case in cases if not fresh and is_done(case, wanted[case.slug], kept, device, kinds)}
    if path.exists():
        rewrite(path, kept)  # without what a run cut short left at its end
    outcome = Outcome(path, kept, len(done))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}"),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("cases", total=len(cases), completed=len(done), step="starting")
            for case in cases:
                if case.slug in done:
                    continue
                began = clock()
                mine = wanted[case.slug]
                asked = {(spec.name, *sorted(spec.columns().items())) for spec in mine}
                rows = _attempt(case, mine, worker, device, partial(_show, progress, task, case.slug))
                others = [r for r in outcome.rows if not (_belongs(r, case) and _settings(r) in asked)]
                if len(others) < len(outcome.rows):
                    outcome.rows = [replace(r, case_rows=None) if _belongs(r, case) else r for r in others]
                    rewrite(path, outcome.rows)
                append_case(path, rows)
                outcome.rows += rows
                progress.advance(task)
                if not console.is_terminal:
                    console.print(f"{case.slug}: {_digest(rows)} in {clock() - began:.0f} s", highlight=False)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        worker.stop()
    if outcome.rows:
        write_csv(outcome.rows, path.with_suffix(".csv"))
    outcome.seconds = clock() - start
    return outcome


def _belongs(row: Row, case: AnyCase) -> bool:
    return (row.suite, row.case, row.dtype, row.seed) == (case.suite, case.slug, case.dtype, case.seed)


def _settings(row: Row) -> tuple[Any, ...]:
    names = get_method(row.method).uses if row.method in registered() else ()
    columns = {name: getattr(row, name) for name in names}
    columns |= {n: getattr(row, n) for n in ("dense_layers", "draft_length") if getattr(row, n) is not None}
    return (row.method, *sorted(columns.items()))


def _show(progress: Progress, task: TaskID, slug: str, text: str) -> None:
    progress.update(task, step=f"{slug}: {text}")


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
