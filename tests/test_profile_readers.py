"""Reports of NVIDIA's tools, recorded on an H100 (qwen2.5-7b-b1-256k, resa b16), read and put into tables."""

from __future__ import annotations

import math
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from resa_bench.profiling import ncu, nsys
from resa_bench.profiling.timeline import UNMARKED, Call, Kernel, Range, Timeline, TraceMismatch, passes
from resa_bench.suites.profile.analysis import kernel_frame, sections, stage_frame, timeline_frame

DATA = Path(__file__).parent / "data"
REPORT = DATA / "nsys-resa-b1-256k.sqlite"


def test_an_nsys_report() -> None:
    """Eight replayed steps, a replayed rectification, and step of each launched from Python."""
    recorded = passes(nsys.read(REPORT))
    assert [(step.kind, step.graph, len(step.kernels)) for step in recorded] == [
        *[("step", True, 4)] * 8, ("rectification", True, 4), ("step", False, 4), ("rectification", False, 4),
    ]  # fmt: skip
    assert {step.context for step in recorded} == {262144}
    assert [(k.name, k.stage) for k in recorded[9].kernels] == [
        ("_score_kernel", "append+score"), ("_select_kernel", "select"),
        ("_sparse_decode_kernel", "attend"), ("_merge_kernel", "merge"),
    ]  # fmt: skip
    assert all(0 < step.call_us < step.host_us for step in recorded)


def test_payloads_of_an_nsys_report() -> None:
    ranges = {(opened.name, opened.value) for opened in nsys.read(REPORT).ranges}
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


def altered(tmp_path: Path, *statements: str, name: str = "other.sqlite") -> Path:
    """The recorded report as another version might have exported it."""
    path = tmp_path / name
    shutil.copy(REPORT, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return path


KERNEL, RUNTIME = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"


def dropped(table: str, column: str) -> str:
    return f'ALTER TABLE {table} DROP COLUMN "{column}"'


@pytest.mark.parametrize(
    ("statements", "missing"),
    [
        pytest.param([], [], id="as-recorded"),
        pytest.param([dropped(KERNEL, "demangledName")], [], id="short-names"),
        pytest.param(
            [f"ALTER TABLE {RUNTIME} RENAME TO CUPTI_ACTIVITY_KIND_DRIVER"], [], id="calls-in-the-drivers-table"
        ),
        pytest.param(
            [dropped("NVTX_EVENTS", "int64Value")], ["NVTX_EVENTS.int64Value: ranges have no payload"], id="payloads"
        ),
        pytest.param(
            [dropped("NVTX_EVENTS", "domainId")],
            ["NVTX_EVENTS.domainId: ranges of other domains count as ours"],
            id="domains",
        ),
        pytest.param(
            [dropped("NVTX_EVENTS", "globalTid")],
            ["NVTX_EVENTS.globalTid: calls and ranges of all threads count as of one"],
            id="threads",
        ),
        pytest.param([dropped("NVTX_EVENTS", "textId")], [], id="texts-in-place"),
    ],
)
def test_an_export_of_another_version_gives_the_same_steps(
    tmp_path: Path, statements: list[str], missing: list[str]
) -> None:
    if statements == [dropped("NVTX_EVENTS", "textId")]:
        text = "coalesce(text, (SELECT value FROM StringIds WHERE id = textId))"
        statements = [f"UPDATE NVTX_EVENTS SET text = {text}", *statements]
    timeline = nsys.read(altered(tmp_path, *statements))
    assert timeline.missing == tuple(f"the export lacks {what}" for what in missing)
    steps = passes(timeline)
    assert [(step.kind, step.graph, len(step.kernels)) for step in steps] == [
        (step.kind, step.graph, len(step.kernels)) for step in passes(nsys.read(REPORT))
    ]
    assert [(kernel.name, kernel.stage) for kernel in steps[9].kernels] == [
        ("_score_kernel", "append+score"), ("_select_kernel", "select"),
        ("_sparse_decode_kernel", "attend"), ("_merge_kernel", "merge"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("statements", "missing"),
    [
        pytest.param([f"DROP TABLE {RUNTIME}"], f"{RUNTIME}: kernels are not matched", id="no-calls"),
        pytest.param([dropped(RUNTIME, "correlationId")], f"{RUNTIME}.correlationId: kernels are", id="call-column"),
        pytest.param([dropped(KERNEL, "correlationId")], f"{KERNEL}.correlationId: kernels are not", id="correlation"),
        pytest.param(["DROP TABLE NVTX_EVENTS"], "NVTX_EVENTS: there are no steps", id="no-ranges"),
        pytest.param([dropped("NVTX_EVENTS", "end")], "NVTX_EVENTS.end: there are no steps", id="range-column"),
        pytest.param(
            ["DELETE FROM NVTX_EVENTS WHERE eventType = 75"], "a domain named resa in NVTX_EVENTS", id="no-domain"
        ),
        pytest.param(["DROP TABLE StringIds"], "StringIds: names are numbers", id="no-strings"),
        pytest.param(
            [dropped(KERNEL, name) for name in ("demangledName", "shortName", "mangledName")],
            f"{KERNEL}.demangledName: kernels have no names",
            id="no-names",
        ),
    ],
)
def test_kernels_are_there_without_the_rest(tmp_path: Path, statements: list[str], missing: str) -> None:
    timeline = nsys.read(altered(tmp_path, *statements))
    assert len(timeline.kernels) == len(nsys.read(REPORT).kernels)
    assert any(line.startswith(f"the export lacks {missing}") for line in timeline.missing)
    passes(timeline)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        pytest.param([dropped(KERNEL, "start")], f"the export has no column {KERNEL}.start", id="no-start"),
        pytest.param([dropped(KERNEL, "end")], f"the export has no column {KERNEL}.end", id="no-end"),
        pytest.param([f"UPDATE {KERNEL} SET start = 'x'"], "holds a time that is no number", id="text-for-a-time"),
        pytest.param(
            [
                f"DELETE FROM {KERNEL}",
                "DROP TABLE CUPTI_ACTIVITY_KIND_MEMSET",
                "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INT)",
            ],
            "record with --cuda-graph-trace=node",
            id="whole-graphs",
        ),
    ],
)
def test_an_export_without_kernels_or_their_times(tmp_path: Path, statements: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        nsys.read(altered(tmp_path, *statements))
    assert "\n" not in str(raised.value)


def test_events_that_never_ended_and_names_that_are_not_there(tmp_path: Path) -> None:
    statements = (
        f'UPDATE {KERNEL} SET "end" = NULL WHERE rowid = 1',
        f"UPDATE {KERNEL} SET demangledName = NULL",
        f"UPDATE {KERNEL} SET shortName = NULL, mangledName = NULL WHERE rowid = 2",
    )
    timeline = nsys.read(altered(tmp_path, *statements))
    assert len(timeline.kernels) == len(nsys.read(REPORT).kernels) - 1
    assert "unnamed" in {kernel.name for kernel, _ in timeline.kernels}


@pytest.mark.parametrize("name", ["a#b.sqlite", "50%20.sqlite", "a?mode=rwc.sqlite", "ä b.sqlite"])
def test_any_name_of_a_file(tmp_path: Path, name: str) -> None:
    assert nsys.read(altered(tmp_path, name=name)).kernels


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.sqlite: not an export of nsys \(unable to open"):
        nsys.read(tmp_path / "none.sqlite")


COUNTED = (DATA / "ncu-resa-b1-128k.csv").read_text()


@pytest.mark.parametrize(
    ("replaced", "field", "metric"),
    [
        (("dram__bytes_read.sum", "other"), "dram_read_bytes", "dram__bytes_read.sum"),
        (("launch__registers_per_thread", "other"), "registers", "launch__registers_per_thread"),
        (("lts__t_sector_hit_rate.pct", "other"), "l2_hit_percent", "lts__t_sector_hit_rate.pct"),
    ],
)
def test_a_metric_that_ncu_does_not_count(replaced: tuple[str, str], field: str, metric: str) -> None:
    """Its counter is None or nan; the others are as they were."""
    text = COUNTED.replace(*replaced)
    for launch, whole in zip(ncu.parse(text), ncu.parse(COUNTED), strict=True):
        counter = getattr(launch, field)
        assert counter is None or math.isnan(counter)
        assert (launch.name, launch.stage, launch.duration_ns) == (whole.name, whole.stage, whole.duration_ns)
        assert launch.dram_write_bytes == whole.dram_write_bytes
    assert ncu.missing(text) == (f"the report lacks {metric}: {field} is not known",)
    assert ncu.missing(COUNTED) == ()


def test_names_of_units_and_ranges_in_other_versions() -> None:
    older = COUNTED.replace('"ns"', '"nsecond"').replace("PL_Value:CLR_Type:Color:Msg_Type:Msg", "PL_Value")
    assert ncu.parse(older) == ncu.parse(COUNTED)


def test_counters_without_ranges_names_or_values() -> None:
    text = COUNTED.replace("Push/Pop_Range", "gone").replace('"Kernel Name"', '"other"')
    launches = ncu.parse(text)
    assert {(launch.name, launch.stage, launch.kind) for launch in launches} == {("unnamed", UNMARKED, "")}
    assert ncu.missing(text) == (
        "the report lacks Kernel Name: kernels have no names",
        "the report lacks NVTX push/pop ranges: kernels belong to no stage",
    )
    header, units, launch = COUNTED.splitlines()[:3]
    registers = f'"{ncu.parse(COUNTED)[0].registers}"'
    lines = (header, units, launch.replace(registers, '"n/a"'), launch + ',"more"', launch[: len(launch) // 2])
    assert [launch.registers for launch in ncu.parse("\n".join(lines))] == [None, 64, None]


def test_an_ncu_report_without_any_metric() -> None:
    text = COUNTED
    for metric in ncu.METRICS.values():
        text = text.replace(metric, "other")
    with pytest.raises(ValueError, match=r"ncu's CSV lacks gpu__time_duration.sum, dram__bytes_read.sum"):
        ncu.parse(text)


def timeline(*stages: str | None, graph: str = "ab") -> Timeline:
    """An eager step of kernels a, b with a stage each (None: outside all), and a replayed one of `graph`'s."""
    traced = Timeline(ranges=[Range(1, "step", 0, 100), Range(1, "step", 200, 300)])
    for i, (name, stage) in enumerate(zip("ab", stages, strict=True)):
        traced.kernels.append((Kernel(name, 10 * i, 10 * i + 5), i))
        traced.calls[i] = Call(1, 20 * i + 1, 20 * i + 2)
        if stage:
            traced.ranges.append(Range(1, stage, 20 * i, 20 * i + 10))
    traced.calls["graph"] = Call(1, 210, 215)
    traced.kernels += [(Kernel(name, 220 + 10 * i, 225 + 10 * i), "graph") for i, name in enumerate(graph)]
    return traced


def test_replays_take_their_stages_from_the_eager_pass() -> None:
    replayed, eager = sections(passes(timeline("score", "attend")), back_to_back=True)
    assert replayed.stages_us == eager.stages_us == {"score": 5, "attend": 5}
    assert replayed.gap_us == 5


@pytest.mark.parametrize(
    ("traced", "message"),
    [
        (timeline("score", None), "outside every stage: b"),
        (timeline("score", "attend", graph="ac"), "kernel 1 is c in the replay, b in the eager pass"),
        (timeline("score", "attend", graph="abb"), "3 kernels in 1 replays, 2 in an eager pass"),
    ],
    ids=["unmarked", "another-kernel", "one-more"],
)
def test_kernels_without_a_stage_fail(traced: Timeline, message: str) -> None:
    with pytest.raises(TraceMismatch, match=message):
        sections(passes(traced), back_to_back=False)
