"""Reports of NVIDIA's tools, recorded on an H100 (qwen2.5-7b-b1-256k, resa b16), read and put into tables."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from resa_bench.profiling import nsys
from resa_bench.profiling.timeline import Call, Kernel, Range, Timeline, TraceMismatch, passes
from resa_bench.suites.profile.analysis import kernel_frame, sections, stage_frame, timeline_frame

DATA = Path(__file__).parent / "data"
REPORT = DATA / "nsys-resa-b1-256k.sqlite"


def test_an_nsys_report() -> None:
    """Eight replayed steps, a replayed rectification, and one of each launched from Python."""
    found = passes(nsys.read(REPORT))
    assert [(one.kind, one.graph, len(one.kernels)) for one in found] == [
        *[("step", True, 4)] * 8, ("rectification", True, 4), ("step", False, 4), ("rectification", False, 4),
    ]  # fmt: skip
    assert {one.context for one in found} == {262144}
    assert [(k.name, k.stage) for k in found[9].kernels] == [
        ("_score_kernel", "append+score"), ("_select_kernel", "select"),
        ("_sparse_decode_kernel", "attend"), ("_merge_kernel", "merge"),
    ]  # fmt: skip
    assert all(0 < one.call_us < one.host_us for one in found)


def test_payloads_of_an_nsys_report() -> None:
    ranges = {(one.name, one.value) for one in nsys.read(REPORT).ranges}
    assert {("step", 262144), ("select", 1639), ("attend", 1639), ("merge", None)} <= ranges


def test_stages_and_gap_sum_to_the_wall_clock() -> None:
    parts = sections(passes(nsys.read(REPORT)), back_to_back=False)
    assert [(part.kind, part.launch, part.passes) for part in parts] == [
        ("step", "graph", 8), ("step", "eager", 1), ("rectification", "graph", 1), ("rectification", "eager", 1),
    ]  # fmt: skip
    step = parts[0]
    assert list(step.stages_us) == ["append+score", "select", "attend", "merge"]
    spans = [
        max(k.end_us for k in step.kernels[i : i + 4]) - step.kernels[i].start_us
        for i in range(0, len(step.kernels), 4)
    ]
    assert step.wall_us == pytest.approx(sum(spans) / 8)
    assert step.stages_us["attend"] == pytest.approx(24.37, abs=0.01)
    frame = stage_frame(parts)
    assert frame.groupby(["kind", "launch"]).share.sum().to_numpy() == pytest.approx(1, abs=1e-4)
    assert set(frame.stage) == {"append+score", "select", "attend", "merge", "rectify", "gap"}


def test_kernels_and_timeline() -> None:
    parts = sections(passes(nsys.read(REPORT)), back_to_back=False)
    kernels = kernel_frame(parts)
    step = kernels[(kernels.kind == "step") & (kernels.launch == "graph")]
    assert list(step["count"]) == [1, 1, 1, 1]
    drawn = timeline_frame(parts)
    assert len(drawn) == 8
    assert set(drawn.launch) == {"graph"}
    assert (drawn.groupby("kind").start_us.min() == 0).all()
    assert (drawn.end_us > drawn.start_us).all()


@pytest.mark.parametrize("content", ["nothing", "not a database", "empty tables"])
def test_what_is_no_report(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.sqlite"
    with sqlite3.connect(path) as connection:
        if content == "empty tables":
            connection.execute("CREATE TABLE StringIds (id, value)")
            connection.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start, end, correlationId, demangledName)")
    if content == "not a database":
        path.write_bytes(b"text" * 1000)
    with pytest.raises(ValueError, match=str(path.name)):
        nsys.read(path)


def timeline(*stages: str | None, graph: str = "ab") -> Timeline:
    """An eager step of kernels a, b with a stage each (None: outside all), and a replayed one of `graph`'s."""
    found = Timeline(ranges=[Range(1, "step", 0, 100), Range(1, "step", 200, 300)])
    for i, (name, stage) in enumerate(zip("ab", stages, strict=True)):
        found.kernels.append((Kernel(name, 10 * i, 10 * i + 5), i))
        found.calls[i] = Call(1, 20 * i + 1, 20 * i + 2)
        if stage:
            found.ranges.append(Range(1, stage, 20 * i, 20 * i + 10))
    found.calls["graph"] = Call(1, 210, 215)
    found.kernels += [(Kernel(name, 220 + 10 * i, 225 + 10 * i), "graph") for i, name in enumerate(graph)]
    return found


def test_replays_take_their_stages_from_the_eager_pass() -> None:
    replayed, eager = sections(passes(timeline("score", "attend")), back_to_back=True)
    assert replayed.stages_us == eager.stages_us == {"score": 5, "attend": 5}
    assert replayed.gap_us == 5


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (timeline("score", None), "outside every stage: b"),
        (timeline("score", "attend", graph="ac"), "kernel 1 is c in the replay, b in the eager pass"),
        (timeline("score", "attend", graph="abb"), "3 kernels in 1 replays, 2 in an eager pass"),
    ],
    ids=["unmarked", "another-kernel", "one-more"],
)
def test_kernels_without_a_stage_fail(found: Timeline, message: str) -> None:
    with pytest.raises(TraceMismatch, match=message):
        sections(passes(found), back_to_back=False)
