"""Running parts one after another: what is done stays, what is left goes on, each end is published at once."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..core.exits import INTERRUPTED
from ..core.manifest import FAILED, INCOMPLETE, OK, STOPPED, Manifest, PartRecord, Sources, is_intact
from ..core.report import counted
from .parts import Step, is_side_by_side, usual_machine
from .publish import lines_of, publish, publish_kept, restore

POLL_S = 0.5  # within which Ctrl-C is heard while parts run side by side
GRACE_S = 20.0  # from the signal that ends a part to the one that kills it
Launch = Callable[[Sequence[str], Path, float | None], int]
"""Runs `resa-bench` with these words, its output to a file, for so many seconds at most: the exit status."""
RUNNING: set[subprocess.Popen[bytes]] = set()
"""Processes of parts: Ctrl-C reaches the main thread alone, those that other threads wait for are told by it."""


def launch(words: Sequence[str], log: Path, seconds: float | None) -> int:
    """A process of its own: a crash costs one part. At the end of its time it is interrupted, as by Ctrl-C."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "resa_bench.suites", *words]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        RUNNING.add(process)
        try:
            return process.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            return INTERRUPTED
        finally:
            RUNNING.discard(process)


@dataclass(slots=True)
class Reference:
    """One call of the reference run.

    Attributes:
        order: all parts, in the order in which files hold them.
        output: the published folder; `work`: a folder for each part's own output.
        device_name: given to every part, where it was given.
    """

    order: Sequence[Step]
    output: Path
    work: Path
    device: torch.device
    sources: Sources
    manifest: Manifest
    chip: dict[str, Any]
    versions: Mapping[str, str]
    console: Console
    device_name: str | None = None
    launch: Launch = launch
    clock: Callable[[], float] = time.monotonic
    _began: float = field(default=0.0)
    _failed: list[str] = field(default_factory=list)  # parts whose failure took no published rows' place

    def is_done(self, step: Step) -> bool:
        """Whether a part ended well from these sources, and its file is what the manifest says."""
        record = self.manifest.parts.get(step.name)
        if record is None or record.status != OK or record.sources != self.sources:
            return False
        return is_intact(self.manifest, self.output, record.file)

    def command(self, step: Step) -> str:
        """What the manifest records."""
        return "resa-bench " + shlex.join(step.words(self.work, self.device_name))

    def run(self, chosen: Sequence[Step], minutes: float | None) -> int:
        """Run what is not done; the exit status: 0 all done, 1 some failed, 130 some are left.

        Args:
            minutes: no part is started that would end later, and one that still runs then is stopped; None: no limit.
        """
        self._began = self.clock()
        for step in self.order:
            restore(step, self.manifest, self.sources, self.output, self.work)
        started = 0
        for steps in self._turns([step for step in chosen if not self.is_done(step)]):
            expected = max(step.part.minutes(self.device.type) or 0.0 for step in steps)
            if minutes is not None and started and self._elapsed() + expected > minutes:
                continue
            started += 1
            records = self._run_parts(steps, None if minutes is None else minutes * 60 - self._elapsed() * 60)
            if minutes is None and any(record.status == STOPPED for record in records):
                break  # by hand
        return self._say_the_end(chosen)

    def _turns(self, steps: Sequence[Step]) -> list[list[Step]]:
        """Parts in the order in which they start: first those that run side by side, then each of the others alone."""
        together = [step for step in steps if is_side_by_side(step, self.device.type)]
        return [*([together] if together else []), *([step] for step in steps if step not in together)]

    def _elapsed(self) -> float:
        return (self.clock() - self._began) / 60

    def _log(self, step: Step) -> Path:
        return self.work / f"{step.name}.log"

    def _run_parts(self, steps: Sequence[Step], seconds: float | None) -> list[PartRecord]:
        """Run parts side by side; each is published as soon as it has ended."""
        for step in steps:
            expected, log = step.part.minutes(self.device.type), self._log(step)
            where = usual_machine(self.device.type)
            self._say(f"{step.name}: about {expected:g} minutes on {where}; its output goes to {log}")
        began, started_at = self.clock(), datetime.now(UTC).isoformat(timespec="seconds")

        def run(step: Step) -> int:
            return self.launch(step.words(self.work, self.device_name), self._log(step), seconds)

        if len(steps) == 1:  # in this thread, which Ctrl-C reaches
            return [self._end_part(steps[0], run(steps[0]), self.clock() - began, started_at)]
        records: list[PartRecord] = []
        with ThreadPoolExecutor(len(steps)) as pool:
            running: dict[Future[int], Step] = {pool.submit(run, step): step for step in steps}
            while running:
                try:
                    ended = wait(running, POLL_S, FIRST_COMPLETED).done
                except KeyboardInterrupt:
                    for process in tuple(RUNNING):
                        process.send_signal(signal.SIGINT)
                    continue
                for part in ended:
                    step = running.pop(part)
                    records.append(self._end_part(step, part.result(), self.clock() - began, started_at))
        return records

    def _end_part(self, step: Step, status: int, seconds: float, started_at: str) -> PartRecord:
        """Read what a part has left, and publish it."""
        log, minutes = self._log(step), seconds / 60
        before = self.manifest.parts.get(step.name)
        spent = before.minutes if before and before.sources == self.sources and before.status != OK else 0.0
        try:
            lines = lines_of(step, self.work)
            fault = None
        except (OSError, ValueError) as error:
            lines, fault = [], str(error)
        ended = STOPPED if status == INTERRUPTED else FAILED if not lines else INCOMPLETE if status else OK
        reason = fault or (_last_line(log) if ended in (FAILED, INCOMPLETE) else None)
        record = PartRecord(
            command=self.command(step), file=step.file, rows=len(lines), minutes=round(spent + minutes, 2),
            status=ended, reason=reason, commit=self.sources.commit, dirty=self.sources.dirty,
            source=self.sources.source, chip=self.manifest.chip_index(self.chip), started_at=started_at,
            side_by_side=is_side_by_side(step, self.device.type),
        )  # fmt: skip
        because = f": {reason}" if reason else ""
        if before is not None and self._outweighs(before, record):
            self._failed += [step.name] if ended == FAILED else []
            kept = f"the {before.rows} rows of commit {(before.commit or 'unknown')[:10]} stay in {step.file}"
            self._say(f"  {ended}: {kept}, {minutes:.1f} minutes{because}")
            return record
        self._publish(step, record, lines)
        self._say(f"  {ended}: {counted(len(lines), 'row')} in {step.file}, {minutes:.1f} minutes{because}")
        return record

    def _outweighs(self, before: PartRecord, record: PartRecord) -> bool:
        """Whether published rows stay where a run ended so: nothing measured goes before its successor is there."""
        if not before.rows or not is_intact(self.manifest, self.output, before.file):
            return False
        return not record.rows or (before.status == OK and record.status in (STOPPED, FAILED))

    def _publish(self, step: Step, record: PartRecord, lines: list[bytes]) -> None:
        publish(self.manifest, self.output, step.name, record, lines, self.order)
        publish_kept(step, self.work, self.output, self.manifest)
        self.manifest.versions = dict(self.versions)
        self.manifest.save(self.output)

    def _say_the_end(self, chosen: Sequence[Step]) -> int:
        records = {step.name: self.manifest.parts.get(step.name) for step in chosen}
        own = {name: r for name, r in records.items() if r is not None and r.sources == self.sources}
        failed = [name for name, record in own.items() if record.status in (FAILED, INCOMPLETE)] + self._failed
        left = [step.name for step in chosen if not self.is_done(step) and step.name not in failed]
        done = len(chosen) - len(failed) - len(left)
        self._say(f"{done} of {len(chosen)} parts are done, in {self._elapsed():.1f} minutes; {self.output}")
        if failed:
            self._say(f"with failures: {', '.join(failed)}; the same command tries them again")
        if left:
            self._say(f"left: {', '.join(left)}; the same command goes on")
        return 1 if failed else INTERRUPTED if left else 0

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _last_line(log: Path) -> str | None:
    """What a command said last; None where it said nothing."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    return next((line[:300] for line in reversed(lines) if line), None)
