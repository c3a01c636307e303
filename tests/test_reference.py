"""The reference run: its manifest, what it publishes, and how it goes on."""

from __future__ import annotations

import _thread
import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from reference_cases import CUDA, FIRST, ORDER, SECOND, FakeLaunch, cases, reference
from resa_bench.suites.core.exits import INTERRUPTED
from resa_bench.suites.core.manifest import read_manifest
from resa_bench.suites.reference.join import join
from resa_bench.suites.reference.parts import total_minutes
from resa_bench.suites.reference.run import RUNNING


def test_every_part_runs_once_and_is_published(tmp_path: Path) -> None:
    launch = FakeLaunch()
    assert reference(tmp_path, launch).run(ORDER, None) == 0
    assert launch.parts == ["echo", "echo-seeded", "other"]
    assert cases(tmp_path / "results/echo.jsonl.gz") == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]
    assert launch.commands[2][:3] == ["other", "--from", str(tmp_path / "work" / "echo" / "echo.jsonl")]
    record = json.loads((tmp_path / "results/manifest.json").read_text())
    assert (record["commit"], record["dirty"], record["minutes"]) == (FIRST.commit, False, 12.0)
    assert record["parts"]["echo"]["command"] == f"resa-bench echo --output {tmp_path / 'work' / 'echo'}"
    assert record["parts"]["echo-seeded"]["rows"] == 2
    assert set(record["files"]) == {"echo.jsonl.gz", "other.jsonl.gz"}
    again = FakeLaunch()
    assert reference(tmp_path, again).run(ORDER, None) == 0
    assert again.parts == []


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        assert reference(tmp_path / name, FakeLaunch()).run(ORDER, None) == 0
        files.append((tmp_path / name / "results/echo.jsonl.gz").read_bytes())
    assert files[0] == files[1]


def test_no_part_is_started_that_would_end_late(tmp_path: Path) -> None:
    launch = FakeLaunch()
    assert reference(tmp_path, launch).run(ORDER, 9) == INTERRUPTED
    assert launch.parts == ["echo", "echo-seeded"]
    assert launch.limits == [9 * 60.0, 5 * 60.0]  # what is still running then is stopped
    assert reference(tmp_path, launch).run(ORDER, 9) == 0
    assert launch.parts[2:] == ["other"]


def test_a_stopped_part_goes_on_elsewhere_from_what_is_published(tmp_path: Path) -> None:
    launch = FakeLaunch(echo=INTERRUPTED)
    assert reference(tmp_path, launch).run(ORDER[:1], 2) == INTERRUPTED
    assert read_manifest(tmp_path / "results").parts["echo"].status == "stopped"
    elsewhere = FakeLaunch()
    assert reference(tmp_path, elsewhere, work="new").run(ORDER[:1], None) == 0
    assert cases(tmp_path / "new/echo/echo.jsonl")[:2] == ["echo-0", "echo-1"]  # it found them there
    assert read_manifest(tmp_path / "results").parts["echo"].minutes == 8.0  # both times


def test_a_part_alone_at_another_commit_leaves_the_others(tmp_path: Path) -> None:
    assert reference(tmp_path, FakeLaunch()).run(ORDER, None) == 0
    launch = FakeLaunch()
    assert reference(tmp_path, launch, SECOND, "new").run(ORDER[1:2], None) == 0
    assert launch.parts == ["echo-seeded"]
    manifest = read_manifest(tmp_path / "results")
    assert manifest.commit is None
    assert {name: part.commit for name, part in manifest.parts.items()} == {
        "echo": FIRST.commit, "echo-seeded": SECOND.commit, "other": FIRST.commit,
    }  # fmt: skip
    assert cases(tmp_path / "results/echo.jsonl.gz") == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]
    assert reference(tmp_path, launch, SECOND, "new").run(ORDER, None) == 0
    assert launch.parts[1:] == ["echo", "other"]
    assert read_manifest(tmp_path / "results").commit == SECOND.commit


def test_a_failed_part_says_why_and_is_tried_again(tmp_path: Path) -> None:
    launch = FakeLaunch(other=1)
    assert reference(tmp_path, launch).run(ORDER, None) == 1
    record = read_manifest(tmp_path / "results").parts["other"]
    assert (record.status, record.rows, record.reason) == ("failed", 0, "this went wrong")
    assert reference(tmp_path, launch).run(ORDER, None) == 0
    assert launch.parts[3:] == ["other"]


@pytest.mark.parametrize(("ending", "status"), [(1, 1), (INTERRUPTED, INTERRUPTED)], ids=["failed", "stopped"])
def test_published_rows_stay_until_their_successors_are_there(tmp_path: Path, ending: int, status: int) -> None:
    """At another commit a part fails, or is stopped: the rows of the earlier commit are still published."""
    assert reference(tmp_path, FakeLaunch()).run(ORDER, None) == 0
    launch = FakeLaunch(echo=ending)
    assert reference(tmp_path, launch, SECOND, "new").run(ORDER[:1], None) == status
    assert read_manifest(tmp_path / "results").parts["echo"].commit == FIRST.commit
    assert cases(tmp_path / "results/echo.jsonl.gz") == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]
    assert reference(tmp_path, launch, SECOND, "new").run(ORDER[:1], None) == 0
    assert read_manifest(tmp_path / "results").parts["echo"].commit == SECOND.commit


def test_a_changed_file_is_measured_again(tmp_path: Path) -> None:
    assert reference(tmp_path, FakeLaunch()).run(ORDER, None) == 0
    path = tmp_path / "results/echo.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"echo-0", b"echo-9")))
    launch = FakeLaunch()
    assert reference(tmp_path, launch, work="new").run(ORDER, None) == 0
    assert launch.parts == ["echo", "echo-seeded"]
    assert cases(path) == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]


def test_another_chip_is_listed(tmp_path: Path) -> None:
    assert reference(tmp_path, FakeLaunch()).run(ORDER[:1], None) == 0
    other = replace(reference(tmp_path, FakeLaunch()), chip={"name": "a chip", "clusters": {"16": 7}})
    assert other.run(ORDER, None) == 0
    manifest = read_manifest(tmp_path / "results")
    assert [part.chip for part in manifest.parts.values()] == [0, 1, 1]


def test_parts_of_two_cards_join(tmp_path: Path) -> None:
    """Each card's parts once, of one file in turn; the manifest says which card ran which."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert reference(first, FakeLaunch()).run(ORDER[:1], None) == 0
    other = replace(reference(second, FakeLaunch()), chip={"name": "a chip", "clusters": {"16": 7}})
    assert other.run(ORDER[:2], None) == 0
    output, folders = tmp_path / "joined", [first / "results", second / "results"]
    assert list(join(folders, output).values()) == [["echo"], ["echo-seeded"]]
    assert cases(output / "echo.jsonl.gz") == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]
    manifest = read_manifest(output)
    assert {name: part.chip for name, part in manifest.parts.items()} == {"echo": 0, "echo-seeded": 1}
    assert manifest.chips[1]["clusters"] == {"16": 7}
    assert list(join(folders, output).values()) == [[], []]


def test_what_does_not_join(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert reference(first, FakeLaunch()).run(ORDER[:1], None) == 0
    assert reference(second, FakeLaunch(), SECOND).run(ORDER[1:2], None) == 0
    assert replace(reference(third, FakeLaunch()), chip={"name": "another"}).run(ORDER[1:2], None) == 0
    output = tmp_path / "joined"
    join([first / "results"], output)
    with pytest.raises(ValueError, match="commits"):
        join([second / "results"], output)
    with pytest.raises(ValueError, match="chips"):
        join([third / "results"], output)
    with pytest.raises(ValueError, match="holds no part"):
        join([tmp_path / "nothing"], output)
    (first / "results/echo.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="not what the manifest says"):
        join([first / "results"], tmp_path / "again")


class MeetingLaunch(FakeLaunch):
    """Each part that times nothing waits until all of them have started."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.met = threading.Barrier(parts)

    def __call__(self, words: Sequence[str], log: Path, seconds: float | None) -> int:
        if words[0] == "echo":
            self.met.wait(timeout=10)
        return super().__call__(words, log, seconds)


def test_parts_without_times_share_a_gpu(tmp_path: Path) -> None:
    untimed = [replace(step, part=replace(step.part, gpu_minutes=4.0, timed=False)) for step in ORDER[:2]]
    timed = replace(ORDER[2], part=replace(ORDER[2].part, gpu_minutes=4.0))
    launched = MeetingLaunch(len(untimed))
    run = replace(reference(tmp_path, launched), order=(*untimed, timed), device=CUDA)
    assert run.run([timed, *untimed], None) == 0
    assert set(launched.parts[:2]) == {step.name for step in untimed}  # first, and at once: the barrier fell
    assert launched.parts[2:] == [timed.name]
    manifest = read_manifest(tmp_path / "results")
    assert [manifest.parts[step.name].side_by_side for step in (*untimed, timed)] == [True, True, False]
    longest = max(manifest.parts[step.name].minutes for step in untimed)
    assert manifest.minutes == longest + manifest.parts[timed.name].minutes
    assert total_minutes((*untimed, timed), "cuda") == 8.0
    assert total_minutes((*untimed, timed), "cpu") == 12.0


def test_parts_without_times_run_one_by_one_on_a_cpu(tmp_path: Path) -> None:
    untimed = [replace(step, part=replace(step.part, timed=False)) for step in ORDER]
    launched = FakeLaunch()
    run = replace(reference(tmp_path, launched), order=untimed)
    assert run.run(untimed, None) == 0
    assert not any(record.side_by_side for record in read_manifest(tmp_path / "results").parts.values())


def test_an_interrupt_stops_parts_that_run_side_by_side(tmp_path: Path) -> None:
    """As Ctrl-C does: it reaches the main thread, which waits for the parts' threads."""
    untimed = [replace(step, part=replace(step.part, gpu_minutes=4.0, timed=False)) for step in ORDER[:2]]
    started = threading.Barrier(len(untimed), action=_thread.interrupt_main)

    class SleepingLaunch(FakeLaunch):
        def __call__(self, words: Sequence[str], log: Path, seconds: float | None) -> int:
            super().__call__(words, log, seconds)
            with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()  # it is ready
                RUNNING.add(process)
                started.wait(timeout=30)
                try:
                    return process.wait(timeout=30)
                finally:
                    RUNNING.discard(process)

    run = replace(reference(tmp_path, SleepingLaunch()), order=untimed, device=CUDA)
    assert run.run(untimed, None) == INTERRUPTED
    parts = read_manifest(tmp_path / "results").parts
    assert [parts[step.name].status for step in untimed] == ["stopped", "stopped"]
    assert [parts[step.name].rows for step in untimed] == [2, 2]  # what they had done stays


SLEEP = f"""
import sys, time
print("ready", flush=True)
try:
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit({INTERRUPTED})
"""
