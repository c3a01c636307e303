"""The reference run: its parts, its manifest, what it publishes, and how it goes on."""

from __future__ import annotations

import _thread
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resa_bench.suites.cli import build_parser, main
from resa_bench.suites.core.exits import INTERRUPTED
from resa_bench.suites.core.plugins import VARIABLE
from resa_bench.suites.core.reference import MOST_MINUTES, Part
from resa_bench.suites.core.registry import Plan, Suite, suites
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row, from_record
from resa_bench.suites.core.spread import spreads
from resa_bench.suites.profile.reference import profile_rows
from resa_bench.suites.reference.chip import describe_chip, folder_name
from resa_bench.suites.reference.join import join
from resa_bench.suites.reference.manifest import Sources, read_manifest
from resa_bench.suites.reference.parts import Step, choose, steps, total_minutes
from resa_bench.suites.reference.run import RUNNING, Reference
from rich.console import Console

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FIRST, SECOND = Sources("a" * 40, False, "first"), Sources("b" * 40, False, "second")
ORDER = (
    Step("echo", Part(cpu_minutes=4.0)),
    Step("echo", Part("--seed 1", name="seeded", cpu_minutes=4.0)),
    Step("other", Part("--from {work}/echo/echo.jsonl", cpu_minutes=4.0)),
)


def row(**columns: object) -> Row:
    shape = {"context": 1, "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "model": "none", "method": "m"}
    return from_record({**shape, "suite": "echo", "case": "c", "stage": "total", "status": "ok", **columns})[0]


class FakeLaunch:
    """Writes two rows where the command would; what it was told to do it does once."""

    def __init__(self, **endings: int) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float | None] = []
        self.endings, self.now = endings, 0.0

    def __call__(self, words: Sequence[str], log: Path, seconds: float | None) -> int:
        self.commands.append(list(words))
        self.limits.append(seconds)
        self.now += 4 * 60.0
        folder = Path(words[-1])
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("starting\nthis went wrong\n")
        status = self.endings.pop(folder.name, 0)
        if status != 1:
            append(folder / f"{words[0]}.jsonl", [row(case=f"{folder.name}-{i}") for i in range(2)])
        return status

    @property
    def parts(self) -> list[str]:
        """Names of the parts run."""
        return [Path(words[-1]).name for words in self.commands]


def reference(folder: Path, launch: FakeLaunch, sources: Sources = FIRST, work: str = "work") -> Reference:
    output = folder / "results"
    return Reference(
        ORDER, output, folder / work, CPU, sources, read_manifest(output), {"name": "a chip"}, {"torch": "9"},
        Console(quiet=True), launch=launch, clock=lambda: launch.now,
    )  # fmt: skip


def cases(path: Path) -> list[str]:
    return [r.case for r in read_rows(path)]


def test_every_part_runs_once_and_is_published(tmp_path: Path) -> None:
    launch = FakeLaunch()
    assert reference(tmp_path, launch).run(ORDER, None) == 0
    assert launch.parts == ["echo", "echo-seeded", "other"]
    assert cases(tmp_path / "results/echo.jsonl.gz") == ["echo-0", "echo-1", "echo-seeded-0", "echo-seeded-1"]
    assert launch.commands[2][:3] == ["other", "--from", f"{tmp_path}/work/echo/echo.jsonl"]
    record = json.loads((tmp_path / "results/manifest.json").read_text())
    assert (record["commit"], record["dirty"], record["minutes"]) == (FIRST.commit, False, 12.0)
    assert record["parts"]["echo"]["command"] == f"resa-bench echo --output {tmp_path}/work/echo"
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


# --- what is there to run ---------------------------------------------------------------------------------------------


def test_parts_fit_their_limits() -> None:
    minutes = [step.part.minutes("cuda") or 0.0 for step in steps(CUDA)]
    assert max(minutes) < MOST_MINUTES
    assert total_minutes(steps(CUDA), "cuda") <= 27  # of 30: machines start, packages are installed
    assert max(step.part.minutes("cpu") or 0.0 for step in steps(CPU)) < MOST_MINUTES


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_every_suite_takes_part_and_every_command_parses(device: torch.device, tmp_path: Path) -> None:
    listed = steps(device)
    assert {step.owner for step in listed} >= set(suites()) - {"reference"} | {"profile"}
    assert len({step.name for step in listed}) == len(listed)
    parser = build_parser()
    for step in listed:
        parser.parse_args(step.words(tmp_path))


@pytest.mark.parametrize("name", ["micro", "decode"])
def test_both_ways_of_resas_step_are_in_the_default_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from resa_bench.suites.core import flags

    suite = suites()[name]
    for step in steps(CUDA):
        if step.owner == name and step.file == f"{name}.jsonl.gz":
            given = vars(build_parser().parse_args(step.words(Path("work"))))
            planned = suite.plan(flags.options(suite.flags, given), CUDA)
            for case in planned.cases:
                names = {spec.name for spec in (*planned.specs, *planned.further[case.slug])}
                assert "resa" in names
                assert len(names & {"resa-chain", "resa-fused"}) == 1


def test_parts_named_cases_keep_the_study() -> None:
    from resa_bench.suites.core import flags

    suite = suites()["decode"]
    given = vars(build_parser().parse_args(steps(CUDA)[1].words(Path("work"))))
    planned = suite.plan(flags.options(suite.flags, given), CUDA)
    assert {case.columns()["batch"] for case in planned.cases} == {1}
    studied = [case for case, further in planned.further.items() if len(further) > 1]
    assert studied == ["decode-qwen2.5-7b-int4-b1-256k"]


def test_choosing_by_part_and_by_suite() -> None:
    assert [step.name for step in choose(ORDER, ["echo"])] == ["echo", "echo-seeded"]
    assert [step.name for step in choose(ORDER, ["echo-seeded"])] == ["echo-seeded"]
    assert choose(ORDER, []) == list(ORDER)
    with pytest.raises(ValueError, match=r"--part nothing: unknown; parts are echo, echo-seeded, other"):
        choose(ORDER, ["nothing"])


def test_a_suite_that_says_nothing_gives_its_default_list() -> None:
    suite = Suite("new", "help", "examples", (), lambda options, device: Plan([], []), act=lambda *given: 0)
    assert suite.reference == (Part(),)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA A100-SXM4-80GB", "a100")],
)
def test_folders_are_named_by_chip(name: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert folder_name(CUDA) == folder
    assert folder_name(CPU) == "cpu"


def test_a_cpu_has_no_clusters() -> None:
    assert set(describe_chip(CPU)) == {"name", "type", "cores"}


# --- the spread -------------------------------------------------------------------------------------------------------


def timed(case: str, median_us: float, **columns: object) -> Row:
    return row(suite="micro", case=case, median_us=median_us, launch="graph", cache_state="cold", **columns)


def test_spread_is_the_largest_over_the_smallest() -> None:
    slow = [timed("a", 10.0), timed("b", 10.0), timed("c", 10.0), timed("a", 5.0, stage="score"), timed("alone", 1.0)]
    two = [timed("a", 11.0), timed("b", 10.0), timed("c", 8.0), timed("a", 5.0, stage="score")]
    whole, stages = spreads([slow, two])
    assert (whole.kind, whole.count, stages.kind, stages.count) == ("whole steps", 3, "stages", 1)
    assert whole.median == pytest.approx(0.1)
    assert (whole.worst, whole.worst_row) == (0.25, "c m total")
    with pytest.raises(ValueError, match="expected two"):
        spreads([slow])


# --- profiles as rows -------------------------------------------------------------------------------------------------


def test_a_profile_becomes_rows(tmp_path: Path) -> None:
    columns = {"model": "none", "case": "c", "method": "resa", "context": 1, "batch": 1, "q_heads": 4, "kv_heads": 2}
    facts = {
        "columns": columns | {"head_dim": 16, "suite": "decode"}, "environment": {"device": "a chip"}, "graph": True,
        "command": "nsys profile ...", "untraced_us": 3.5,
    }  # fmt: skip
    assert profile_rows(tmp_path) == []
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    (tmp_path / "stages.csv").write_text("kind,launch,stage,kernels,time_us,share\nstep,graph,attend,28,681.2,0.18\n")
    (tmp_path / "bytes.csv").write_text("stage,model_mb,dram_mb,ratio,verdict\nattend,26.8,27.4,1.02,agrees\n")
    rows = profile_rows(tmp_path)
    assert {(r.suite, r.stage, r.metric, r.value) for r in rows} == {
        ("profile", "total", "untraced_us", 3.5), ("profile", "attend", "step_us", 681.2),
        ("profile", "attend", "dram_bytes_ratio", 1.02),
    }  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts | {"columns": {}}))
    with pytest.raises(ValueError, match="profile the case again"):
        profile_rows(tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_changed_tree_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RESA_BENCH_COMMIT", "a" * 40 + "-dirty")
    assert main(["reference", "--device", "cpu"]) == 2
    assert "--allow-dirty" in capsys.readouterr().err


def test_results_of_another_chip_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference(tmp_path, FakeLaunch()).run(ORDER[:1], None) == 0
    monkeypatch.setenv("RESA_BENCH_COMMIT", "a" * 40)
    assert main(["reference", "--device", "cpu", "--output", str(tmp_path / "results")]) == 2
    assert "holds a run on a chip" in " ".join(capsys.readouterr().err.split())


JOINING = """
from resa_bench.suites.core import flags
from resa_bench.suites.core.registry import Plan, Suite, register_suite
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row


def act(options, device, command, console):
    shape = dict(context=1, batch=1, q_heads=4, kv_heads=2, head_dim=16)
    append(options.output / "joins.jsonl", [
        Row(suite="joins", model="none", case="c", method="m", stage="total", status="ok", command=command, **shape)
    ])
    return 0


def plan(options, device):
    return Plan([], [])


register_suite(Suite("joins", "help", "examples", (flags.DEVICE, flags.OUTPUT), plan, act=act))
"""


@pytest.mark.slow
def test_a_registered_suite_joins(tmp_path: Path) -> None:
    """The whole command, on a suite of a user's own that says nothing of the reference run."""
    plugin = tmp_path / "joining.py"
    plugin.write_text(JOINING)
    command = [sys.executable, "-m", "resa_bench.suites", "reference", "--device", "cpu", "--part", "joins"]
    done = subprocess.run(
        [*command, "--output", "published"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {VARIABLE: str(plugin), "RESA_BENCH_COMMIT": "a" * 40},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r.case for r in read_rows(tmp_path / "published/joins.jsonl.gz")] == ["c"]
    record = json.loads((tmp_path / "published/manifest.json").read_text())
    assert (record["commit"], record["parts"]["joins"]["status"]) == ("a" * 40, "ok")
    assert record["versions"]["torch"] == torch.__version__


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
