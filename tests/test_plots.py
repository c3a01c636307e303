"""Figures from synthetic rows: what is drawn, what is left out, and that either is said."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_parts import labels, readable, texts
from matplotlib.colors import rgb_to_hsv, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.caption import caption, title
from resa_bench.plots.data import FigureSet, NotDrawn, best_dense, lines_of, micro_sets
from resa_bench.plots.figures import NoFigure, draw_all
from resa_bench.plots.micro_curves import floors, latency, speedup, speedup_amortised
from resa_bench.plots.ranking import methods
from resa_bench.plots.registry import figures_of
from resa_bench.plots.roofline import roofline, roofs
from resa_bench.plots.stages import stages
from resa_bench.plots.style import RING, context_axis, names_of, paper, spread, tokens
from resa_bench.suites.core.looks import LOOKS, look_of, looks
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row

K = 1024
FIGURES = figures_of("micro")
STAGES = {"append": 2.0, "score": 4.0, "select": 6.0, "attend": 9.0, "merge": 3.0}  # microseconds


USUAL: dict[str, Any] = {"block_size": 16, "active_ratio": 0.1, "gqa_policy": "group-mean", "rectify_every": 32}


def make(method: str, stage: str = "total", **changes: Any) -> Row:
    """A timed row at 8K, batch 1, of a 30 us step."""
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "qwen2.5-7b", "case": "qwen2.5-7b-b1-8k", "context": 8 * K, "batch": 1,
        "q_heads": 28, "kv_heads": 4, "head_dim": 128, "dtype": "bf16", "cache_state": "cold", "launch": "graph",
        "median_us": 30.0, "q20_us": 29.0, "q80_us": 32.0, "floor_us": 15.0, "floor_fraction": 0.5,
        "read_ceiling_gbps": 3068.0, "status": "ok", "bytes": 46_020_000, "flops": 92_040_000,
        "device": "NVIDIA H100", "commit": "0123456789abcdef",
        "dirty": False, "started_at": "2026-11-21T22:00:00Z",
    }  # fmt: skip
    return Row(**(defaults | {"method": method, "stage": stage} | changes))


def untimed(method: str, status: str, reason: str, **changes: Any) -> Row:
    nothing: dict[str, Any] = dict.fromkeys(("median_us", "q20_us", "q80_us", "floor_us", "floor_fraction"))
    return make(method, status=status, reason=reason, **(nothing | changes))


def run_of(
    contexts: tuple[int, ...] = (8 * K, 32 * K), batches: tuple[int, ...] = (1,), resa: str = "resa", **changes: Any
) -> list[Row]:
    """A small run: two dense methods, ReSA with its stages and rectification, Quest."""
    rows = []
    for batch, context in product(batches, contexts):
        shape: dict[str, Any] = {"case": f"c-b{batch}-{context}", "context": context, "batch": batch} | changes
        dense_us = context / K
        rows += [make("sdpa-cudnn", stage, median_us=dense_us, **shape) for stage in ("attend", "total")]
        rows += [make("flash-attn-2", median_us=dense_us + 5, **shape)]
        for block in (16, 32):
            known = shape | {"block_size": block, "active_ratio": 0.1, "gqa_policy": "group-mean", "rectify_every": 32}
            rows += [make(resa, stage, median_us=us, **known) for stage, us in STAGES.items()]
            against = {"speedup_vs_best_dense": dense_us / 12, "best_dense": "sdpa-cudnn", "floor_speedup": 6.0}
            rows.append(make(resa, median_us=12.0, **known | against))
            amortised = known | against | {"speedup_vs_best_dense": dense_us / 15}
            rows.append(make(resa, "total_amortised", median_us=15.0, **amortised))
        policy = shape | {"gqa_policy": "per-head", "active_ratio": 0.1}
        rows.append(make("quest", block_size=16, median_us=20.0, speedup_vs_best_dense=dense_us / 20, **policy))
    return rows


def with_fused(rows: list[Row]) -> list[Row]:
    """ReSA in one kernel beside it: no stages of its own, a tenth faster; once with summaries in fp8, faster still."""
    extended = list(rows)
    for row in rows:
        if row.method == "resa" and row.stage not in STAGES:
            ratio = (row.speedup_vs_best_dense or 0.0) / 0.9
            faster = replace(row, median_us=0.9 * (row.median_us or 0.0), speedup_vs_best_dense=ratio)
            kinds: list[dict[str, Any]] = [{"method": "resa-fused"}]
            if row.block_size == 16:
                kinds += [{"method": name, "summary_dtype": "fp8"} for name in ("resa", "resa-fused")]
            extended += [replace(faster, **kind) for kind in kinds]
    return extended


def only_set(rows: list[Row]) -> FigureSet:
    (figures,) = micro_sets(rows)
    return figures


def write(path: Path, rows: list[Row]) -> Path:
    for case in dict.fromkeys(row.case for row in rows):
        append(path, [row for row in rows if row.case == case])
    return path


def heights(fig: Figure, panel: int = 0) -> list[tuple[float, ...]]:
    """The y values of each line of a panel."""
    return [tuple(np.asarray(line.get_ydata(), dtype=float).tolist()) for line in fig.axes[panel].lines]


@pytest.fixture(autouse=True)
def _paper_settings():
    with paper():
        yield


# What is written


def test_every_figure_is_written_as_png_and_svg(tmp_path: Path) -> None:
    written = draw_all([write(tmp_path / "run.jsonl", run_of())], tmp_path / "out")
    assert sorted(path.name for path in written) == sorted(
        f"{name}-qwen2.5-7b{ending}" for name in FIGURES for ending in (".png", ".svg")
    )
    for path in written:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start
        assert path.stat().st_size > 5000


@pytest.mark.slow
def test_a_folder_stands_for_its_files_and_each_model_gets_its_own_figures(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", run_of())
    write(tmp_path / "b.jsonl", run_of(model="llama-3.1-8b"))
    (tmp_path / "notes.txt").write_text("not rows")
    names = {path.name for path in draw_all([tmp_path], tmp_path / "out")}
    assert {"speedup-qwen2.5-7b.png", "speedup-llama-3.1-8b.png"} <= names


def test_two_devices_are_never_in_one_figure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", run_of() + run_of(device="NVIDIA A100"))
    names = {path.name for path in draw_all([path], tmp_path / "out")}
    assert {"latency-qwen2.5-7b-nvidia-h100.png", "latency-qwen2.5-7b-nvidia-a100.png"} <= names


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", run_of())
    first, second = (draw_all([path], tmp_path / name) for name in ("one", "two"))
    assert first
    for before, after in zip(first, second, strict=True):
        assert before.read_bytes() == after.read_bytes(), before.name


# What is left out, and why


def test_a_single_context_makes_bars_but_no_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = draw_all([write(tmp_path / "a.jsonl", run_of(contexts=(8 * K,)))], tmp_path / "out")
    assert {path.stem for path in written} == {f"{name}-qwen2.5-7b" for name in ("methods", "roofline", "stages")}
    printed = capsys.readouterr().out
    for name in ("speedup", "speedup-amortised", "latency", "floors"):
        assert re.search(rf"skipped {name}-qwen2.5-7b: .*single context", printed)


@pytest.mark.parametrize(
    ("draw", "dropped", "reason"),
    [
        pytest.param(speedup_amortised, lambda r: r.stage == "total_amortised", "amortised", id="no-rectification"),
        pytest.param(speedup, lambda r: r.speedup_vs_best_dense, "speedup_vs_best_dense", id="no-dense-rival"),
        pytest.param(stages, lambda r: r.stage in STAGES, "single stage", id="no-stages"),
        pytest.param(latency, lambda r: r.stage == "total", "'total'", id="no-total"),
    ],
)
def test_a_figure_without_its_rows_says_why(draw, dropped, reason: str) -> None:
    with pytest.raises(NotDrawn, match=reason):
        draw(only_set([row for row in run_of() if not dropped(row)]))


def test_floors_without_floors_says_why() -> None:
    with pytest.raises(NotDrawn, match="floor_fraction"):
        floors(only_set([replace(row, floor_fraction=None) for row in run_of()]))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"suite": "decode"}, id="another-suite"),
        pytest.param({"cache_state": "warm"}, id="warm"),
        pytest.param({"selection_pattern": "clustered"}, id="another-pattern"),
    ],
)
def test_no_main_rows_is_an_error_that_names_what_is_needed(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", run_of(**changes))
    with pytest.raises(NoFigure, match=r"no figure from \d+ rows.*'micro'.*'cold'"):
        draw_all([path], tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"suite": "decode"}, id="another-suite"),
        pytest.param({"cache_state": "warm"}, id="warm"),
        pytest.param({"launch": "eager"}, id="eager"),
        pytest.param({"selection_pattern": "clustered"}, id="another-pattern"),
    ],
)
def test_other_rows_stay_out_of_the_main_figures(changes: dict[str, Any]) -> None:
    alone, beside = only_set(run_of()), only_set(run_of() + run_of(**changes))
    assert beside.lines == alone.lines


def test_missing_path_and_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        draw_all([tmp_path / "nothing.jsonl"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .*jsonl in .*empty"):
        draw_all([tmp_path / "empty"], tmp_path / "out")


def test_a_repeated_measurement_is_drawn_as_last_measured() -> None:
    late = [replace(row, median_us=99.0, started_at="2026-12-01T00:00:00Z") for row in run_of()]
    figures = only_set(late + run_of())
    assert {row.median_us for row in figures.rows} == {99.0}
    assert figures.notes == (f"qwen2.5-7b: {len(late)} micro rows were measured again later: the latest is drawn",)


# Titles and captions


@pytest.mark.parametrize("name", FIGURES)
def test_cpu_rows_put_the_cpu_in_the_title_and_use_eager_rows(name: str) -> None:
    figures = only_set(run_of(resa="resa-torch", launch="eager", device="CPU AMD EPYC", dtype="fp32"))
    fig = FIGURES[name](figures)
    assert "portable torch path on CPU" in " ".join(fig.get_suptitle().split())
    assert "eager" in texts(fig)
    assert "graph" not in texts(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_gpu_rows_do_not_say_cpu(name: str) -> None:
    assert "CPU" not in texts(FIGURES[name](only_set(run_of())))


def test_cpu_by_device_name_without_resa() -> None:
    rows = [make("torch-dense", device="Intel CPU @ 2 GHz"), make("torch-dense", device="NVIDIA H100")]
    assert [("CPU" in title(figures, "x")) for figures in micro_sets(rows)] == [True, False]


@pytest.mark.parametrize("name", FIGURES)
def test_caption_says_where_the_numbers_come_from(name: str) -> None:
    caption_text = texts(FIGURES[name](only_set(run_of(dirty=True))))
    for part in ("NVIDIA H100", "0123456-dirty", "2026-11-21", "bf16", "r = 0.1", "cold cache", "graph replay"):
        assert part in caption_text


def test_caption_names_the_best_dense_kernel_and_a_clean_commit() -> None:
    words = texts(speedup(only_set(run_of())))
    assert "best dense: sdpa-cudnn" in words
    assert "dirty" not in words


def test_caption_counts_methods_not_drawn() -> None:
    missing = [
        untimed("flash-attn-3", "skipped", "not installed: " + "x" * 100),
        untimed("flashinfer", "skipped", r"no $CUDA\home, $PATH"),
        untimed("quest", "oom", "out of memory", case="c-b1-1"),
    ]
    figures = only_set(run_of() + missing)
    words = caption(figures, figures.rows)
    assert "2 methods skipped: flash-attn-3 (not installed: xxx" in words
    assert r"flashinfer (no $CUDA\home, $PATH)" in words
    assert "1 method failed: quest in 1 case (out of memory)" in words
    assert "x" * 50 not in words
    assert r"no $CUDA\home, $PATH" in texts(latency(figures))  # drawn as it is, not as a formula
    assert not {variant.method for variant in figures.lines} & {"flash-attn-3", "flashinfer"}


def test_throttled_points_are_ringed_and_counted_and_keep_their_look() -> None:
    steady = run_of()
    hot = [replace(r, status="throttled") if (r.method, r.stage) == ("quest", "total") else r for r in steady]
    figs = [latency(only_set(rows)) for rows in (steady, hot)]
    rings = [[line for line in fig.axes[0].lines if line.get_label() == RING] for fig in figs]
    assert [len(lines) for lines in rings] == [0, 2]
    quest = [next(line for line in fig.axes[0].lines if line.get_label() == "Quest") for fig in figs]
    for get in ("get_color", "get_marker", "get_markerfacecolor"):
        assert getattr(quest[0], get)() == getattr(quest[1], get)()
    assert "ringed (2 points): measured under throttling" in texts(figs[1])
    assert "throttling" not in texts(figs[0])


@pytest.mark.parametrize("fused", [False, True], ids=["chain", "one-kernel"])
@pytest.mark.parametrize("batches", [(1,), (1, 2, 4, 8, 16)], ids=lambda batches: f"{len(batches)}-batches")
@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_clipped_or_too_small_to_read(name: str, batches: tuple[int, ...], fused: bool) -> None:
    rows = [untimed(f"rival-{i}", "skipped", "a reason of some length, as they are") for i in range(5)]
    rows += run_of(batches=batches)
    fig = FIGURES[name](only_set(with_fused(rows) if fused else rows))
    readable(fig)


# What the figures show


def test_speedup_draws_the_column_the_floor_and_the_line_at_one() -> None:
    fig = speedup(only_set(run_of(batches=(1, 4))))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1", "batch 4"]
    drawn = heights(fig)
    assert drawn.count((8 / 12, 32 / 12)) == 1  # of both block sizes the usual one
    assert drawn.count((8 / 20, 32 / 20)) == 1
    assert (6.0, 6.0) in drawn
    assert (1.0, 1.0) in drawn
    assert labels(fig) == ["ReSA", "Quest", "ReSA's floor", "best dense"]
    assert "Quest b16 per-head" in texts(fig)
    assert "cuDNN (SDPA)" not in texts(fig)


def test_methods_without_room_have_panels_below() -> None:
    rivals = ("retro", "sparse", "sink-window", "oracle")
    more = [replace(r, method=name) for r in run_of() if r.method == "quest" for name in rivals]
    fig = speedup(only_set(with_fused(run_of()) + more))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1", "batch 1, other methods"]
    assert labels(fig) == ["ReSA (one kernel)", "ReSA", "Quest", "ReSA's floor", "best dense"]
    assert labels(fig, 1) == ["RetroAttention", "sparse only", "sink + window", "oracle top-k", "best dense"]


def test_amortised_shows_resa_only_beside_the_step_alone_and_its_settings() -> None:
    fig = speedup_amortised(only_set(run_of()))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1", "batch 1, ReSA"]
    assert labels(fig) == ["ReSA", "step alone", "best dense"]
    assert labels(fig, 1) == ["b16", "b32", "best dense"]
    assert {(8 / 12, 32 / 12), (8 / 15, 32 / 15)} <= set(heights(fig))
    assert "Quest" not in texts(fig)


def test_one_kernel_stands_beside_the_amortised_chain_and_has_panels_of_its_own() -> None:
    fig = speedup_amortised(only_set(with_fused(run_of(batches=(1, 4)))))
    groups = ("", ", ReSA", ", ReSA (one kernel)")
    assert [ax.get_title() for ax in fig.axes] == [f"batch {n}{group}" for group in groups for n in (1, 4)]
    both, fused = ({tuple(round(y, 3) for y in ys) for ys in heights(fig, panel)} for panel in (0, 4))
    for us in (12, 15):
        own, faster = (tuple(round(c / us / f, 3) for c in (8, 32)) for f in (1, 0.9))
        assert {own, faster} <= both
        assert own not in fused
    assert labels(fig, 4) == ["b16", "b16 fp8", "b32", "best dense"]


def test_one_kernel_is_a_line_where_steps_are_whole_and_no_bar_where_stages_are_apart() -> None:
    alone, beside = only_set(run_of()), only_set(with_fused(run_of()))
    for draw in (speedup, latency):
        assert labels(draw(beside))[:2] == ["ReSA (one kernel)", "ReSA"]
    assert labels(floors(beside)) == ["cuDNN (SDPA)", "ReSA", "floor"]  # it is not timed apart
    assert labels(floors(beside), 1) == ["cuDNN (SDPA)", "ReSA (one kernel)", "ReSA", "Quest", "floor"]
    ticks = [[t.get_text() for t in ax.get_xticklabels()] for ax in stages(beside).axes]
    assert ticks == [[t.get_text() for t in ax.get_xticklabels()] for ax in stages(alone).axes]


def test_variants_can_be_told_apart_where_the_line_stands_for_something_else() -> None:
    styles = only_set(with_fused(run_of())).looks
    sparse = [(look.colour, look.marker) for variant, look in styles.items() if not variant.is_dense]
    assert len(set(sparse)) == len(sparse)


def test_latency_draws_the_dense_floor_and_a_band_for_each_method() -> None:
    fig = latency(only_set(run_of()))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1", "batch 1, dense kernels"]
    assert labels(fig) == ["ReSA", "Quest", "best dense", "dense floor"]
    assert labels(fig, 1) == ["cuDNN (SDPA)", "FlashAttention 2", "dense floor"]
    assert [len(ax.collections) for ax in fig.axes] == [2, 2]
    assert heights(fig)[2:] == [(8.0, 32.0), (15.0, 15.0)]
    assert fig.axes[0].get_yscale() == fig.axes[0].get_xscale() == "log"
    assert "1 further variant in the figure `methods`" in texts(fig)


def test_methods_rank_all_variants_with_their_floors() -> None:
    rows = [replace(r, status="throttled") if r.method == "quest" else r for r in with_fused(run_of())]
    fig = methods(only_set(rows))
    (ax,) = fig.axes
    bars = {round(bar.get_width(), 2): to_hex(bar.get_facecolor()) for bar in ax.patches}  # type: ignore[attr-defined]
    assert bars[32.0] == LOOKS["sdpa-cudnn"].colour
    assert bars[20.0].upper() == LOOKS["quest"].colour
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert (names[0], len(names)) == ("FlashAttention 2", len(only_set(rows).lines))
    assert "Quest b16 per-head*" in names
    assert heights(fig)[-1] == tuple(range(len(names)))  # a tick each
    assert "* (1 bar): measured under throttling" in texts(fig)


def test_roofline_is_one() -> None:
    """Points at FLOPs a byte and TFLOP/s of the rows, below the read rate and the rate of the matrix units."""
    rectify = [
        make("resa", "rectify", **USUAL, context=c, flops=10**11, bytes=10**8, median_us=500.0) for c in (8 * K,)
    ]
    figures = only_set(run_of() + rectify)
    (ax,) = roofline(figures).axes
    points = {
        (round(float(x), 4), round(float(y), 4))
        for line in ax.lines
        if line.get_marker() != ""
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert (2.0, round(92.04 / 12.0, 4)) in points  # ReSA's step of 12 us
    assert (1000.0, 200.0) in points
    roof = next(line for line in ax.lines if line.get_marker() == "")
    assert [float(y) / float(x) for x, y in zip(*roof.get_data(), strict=True)] == pytest.approx([3.068] * 2)
    assert "no row carries the rate of the matrix units" in texts(roofline(figures))
    with_ceiling = only_set([replace(row, matrix_ceiling_tflops=700.0) for row in run_of() + rectify])
    (ax,) = roofline(with_ceiling).axes
    roof = next(line for line in ax.lines if line.get_marker() == "")
    assert list(roof.get_ydata())[1:] == pytest.approx([700.0, 700.0])  # type: ignore[arg-type]
    assert {"read: 3068 GB/s", "matrix units: 700 TFLOP/s"} <= {text.get_text() for text in ax.texts}


def test_a_floor_above_that_of_the_bytes_tells_the_rate_of_the_matrix_units() -> None:
    row = make("resa", bytes=3068_000, flops=10**9, floor_us=10.0)
    assert roofs([row]) == (3068.0, pytest.approx(100.0))
    assert roofs([replace(row, floor_us=1.0)]) == (3068.0, None)


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        pytest.param([0.1, 0.5, 0.9], [0.1, 0.5, 0.9], id="apart"),
        pytest.param([0.5, 0.5], [0.45, 0.55], id="on-one-place"),
        pytest.param([0.6, 0.5, 0.55], [0.65, 0.45, 0.55], id="in-their-order"),
        pytest.param([1.0, 1.0], [0.9, 1.0], id="at-the-top"),
        pytest.param([-3.0, 0.0, 0.5], [0.0, 0.1, 0.5], id="below"),
    ],
)
def test_labels_are_moved_apart_as_little_as_that_takes(wanted: list[float], placed: list[float]) -> None:
    assert spread(wanted, 0.1) == pytest.approx(placed)


def test_stages_stack_to_their_sum_and_mark_the_total() -> None:
    fig = stages(only_set(run_of(contexts=(8 * K,))))
    (ax,) = fig.axes
    tops = {round(bar.get_x() + bar.get_width() / 2): bar.get_y() + bar.get_height() for bar in ax.patches}
    assert tops == pytest.approx({0: 8.0, 1: sum(STAGES.values()), 2: sum(STAGES.values())})
    assert sorted(heights(fig)) == [(8.0,), (12.0,), (12.0,)]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["dense", "ReSA b16", "ReSA b32"]


def test_contexts_that_differ_much_have_panels_and_scales_of_their_own() -> None:
    fig = stages(only_set(run_of(contexts=(8 * K, 32 * K, 256 * K))))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1, 8K to 32K", "batch 1, 256K"]
    assert "panels have their own scales" in texts(fig)


def test_a_fused_stage_is_hatched_and_never_counted_twice() -> None:
    rows = run_of(contexts=(8 * K,))
    scores = [row for row in rows if row.stage == "score"]
    fused = [replace(row, stage="score+select", median_us=7.0) for row in scores]
    fig = stages(only_set(rows + fused))
    (ax,) = fig.axes
    top = max(bar.get_y() + bar.get_height() for bar in ax.patches)
    assert top == pytest.approx(2 + 7 + 9 + 3)
    assert {bar.get_height() for bar in ax.patches if bar.get_hatch()} == {7.0}
    assert "score+select" in texts(fig)


def test_floors_show_attention_fused_or_not_and_counts_rows_above_one() -> None:
    rows = [replace(row, stage="attend+merge") if row.stage == "attend" else row for row in run_of()]
    rows = [replace(r, floor_fraction=1.25) if (r.method, r.stage) == ("quest", "total") else r for r in rows]
    fig = floors(only_set(rows))
    assert [ax.get_title() for ax in fig.axes] == ["batch 1, attention alone", "batch 1, whole step"]
    assert heights(fig).count((0.5, 0.5)) == 2  # cuDNN, and ReSA
    assert heights(fig, 1).count((1.25, 1.25)) == 1
    assert "2 rows above 1" in texts(fig)
    assert fig.axes[0].get_ylim()[0] == 0
    assert fig.axes[0].get_ylim()[1] > 1.25
    assert "compulsory bytes at the measured 3068 GB/s" in texts(fig)


# Variants, looks, labels


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        pytest.param("block_size", (16, 32), ["ReSA b16", "ReSA b32"], id="block"),
        pytest.param("active_ratio", (0.1, 0.2), ["ReSA r0.1", "ReSA r0.2"], id="ratio"),
        pytest.param("rectify_every", (32, 64), ["ReSA f32", "ReSA f64"], id="period"),
        pytest.param("budget_tokens", (512, 1024), ["ReSA 512 tokens", "ReSA 1024 tokens"], id="budget"),
    ],
)
def test_rows_at_the_same_point_are_lines_that_differ_in_name_and_look(column: str, values: tuple, names: list) -> None:
    rows = [make("resa", **{column: value}) for value in values]
    lines = lines_of(rows, lambda row: row.context)
    assert [names_of(rows).of(variant) for variant in lines] == names
    assert len(set(looks(lines).values())) == 2


def test_caches_that_lie_another_way_are_sets_of_their_own_and_say_so() -> None:
    plain, paged = micro_sets(run_of(kv_layout="head-major", paged=False) + run_of(kv_layout="head-major", paged=True))
    assert (plain.slug, paged.slug) == ("qwen2.5-7b", "qwen2.5-7b-paged-k-v")
    assert list(plain.lines) == list(paged.lines)
    assert "paged K/V" in texts(latency(paged))
    assert "paged" not in texts(latency(plain))


def test_a_methods_variants_are_shades_of_one_colour_in_every_figure() -> None:
    everything = only_set(with_fused(run_of()))
    hues = {v: hue(look.colour) for v, look in everything.looks.items()}
    assert all(hues[v] == pytest.approx(hue(look_of(v.method).colour), abs=0.03) for v in hues)
    assert len(set(everything.looks.values())) == len(everything.lines)
    first = next(v for v in everything.lines if v.method == "quest")
    assert everything.looks[first] == LOOKS["quest"]


def hue(colour: str) -> float:
    return float(rgb_to_hsv(to_rgb(colour))[0])


def test_every_marker_can_be_hollow() -> None:
    assert {look.marker for look in LOOKS.values()} <= set(Line2D.filled_markers)


def test_a_method_not_known_here_is_drawn_too() -> None:
    rows = [*run_of(), *(make("brand-new", context=c, case=f"c{c}") for c in (8 * K, 32 * K))]
    assert "brand-new" in texts(latency(only_set(rows)))


def test_best_dense_is_the_fastest_measured() -> None:
    figures = only_set(run_of())
    best = best_dense(figures, 1, 8 * K)
    assert best is not None
    assert best[1].method == "sdpa-cudnn"
    assert best_dense(figures, 1, 999) is None


@pytest.mark.parametrize(
    ("context", "name"), [(512, "512"), (4096, "4K"), (262144, "256K"), (1 << 20, "1M"), (1536, "1.5K")]
)
def test_context_names(context: int, name: str) -> None:
    assert tokens(context) == name


def test_context_axis_is_log2_and_names_the_longest() -> None:
    contexts = [4 * K << i for i in range(7)]
    ax = Figure(figsize=(2.3, 2)).subplots()
    context_axis(ax, contexts)
    assert ax.get_xscale() == "log"
    assert list(ax.get_xticks()) == contexts
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4K", "", "", "32K", "", "", "256K"]
