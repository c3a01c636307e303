"""The reference run: its parts, chips, spread, and what joins it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_cases import CPU, CUDA, ORDER, FakeLaunch, reference, row
from resa_bench.suites.cli import build_parser, main
from resa_bench.suites.core.plugins import VARIABLE
from resa_bench.suites.core.reference import MOST_MINUTES, Part
from resa_bench.suites.core.registry import Plan, Suite, suites
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spread import spreads
from resa_bench.suites.profile.reference import profile_rows
from resa_bench.suites.reference.chip import describe_chip, folder_name
from resa_bench.suites.reference.parts import choose, steps, total_minutes

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
