"""What the micro suite's figures show: lines, bars, looks, labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from figure_parts import bars, labels, points, texts
from matplotlib.colors import rgb_to_hsv, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from plots_rows import STAGES, K, make, only_set, run_of, with_fused
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import best_dense, lines_of, micro_sets
from resa_bench.plots.micro_curves import floors, latency, speedup, speedup_amortised
from resa_bench.plots.ranking import methods
from resa_bench.plots.roofline import roofline, roofs
from resa_bench.plots.stages import stages
from resa_bench.plots.style import context_axis, names_of, paper, spread, tokens
from resa_bench.suites.core.looks import LOOKS, look_of, looks

USUAL: dict[str, Any] = {"block_size": 16, "active_ratio": 0.1, "gqa_policy": "group-mean", "rectify_every": 32}


def heights(fig: Figure, panel: int = 0) -> list[tuple[float, ...]]:
    """The y values of each line of a panel."""
    return [tuple(np.asarray(line.get_ydata(), dtype=float).tolist()) for line in fig.axes[panel].lines]


@pytest.fixture(autouse=True)
def _paper_settings():
    with paper():
        yield


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


@pytest.mark.slow
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
    colours = {round(bar.get_width(), 2): to_hex(bar.get_facecolor()) for bar in bars(ax)}  # type: ignore[attr-defined]
    assert colours[32.0] == LOOKS["sdpa-cudnn"].colour
    assert colours[20.0].upper() == LOOKS["quest"].colour
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
    measured = {(round(x, 4), round(y, 4)) for line in ax.lines if line.get_marker() != "" for x, y in points(line)}
    assert (2.0, round(92.04 / 12.0, 4)) in measured  # ReSA's step of 12 us
    assert (1000.0, 200.0) in measured
    roof = next(line for line in ax.lines if line.get_marker() == "")
    assert [y / x for x, y in points(roof)] == pytest.approx([3.068] * 2)
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
    tops = {round(bar.get_x() + bar.get_width() / 2): bar.get_y() + bar.get_height() for bar in bars(ax)}
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
    top = max(bar.get_y() + bar.get_height() for bar in bars(ax))
    assert top == pytest.approx(2 + 7 + 9 + 3)
    assert {bar.get_height() for bar in bars(ax) if bar.get_hatch()} == {7.0}
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
