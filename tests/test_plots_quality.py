"""Figures of the quality suite: excess over f = 1, recall by layer, quality paired with speed by settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_parts import labels, points, readable, texts
from matplotlib.figure import Figure
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import NotDrawn
from resa_bench.plots.decode_data import decode_sets
from resa_bench.plots.figures import draw_all
from resa_bench.plots.quality_curves import _chosen, quality_drift, quality_recall
from resa_bench.plots.quality_data import QualitySet, plain, quality_sets
from resa_bench.plots.quality_memory import quality_memory
from resa_bench.plots.quality_speed import Point, SpeedSet, front, pair, quality_speed, speed_errors
from resa_bench.plots.ranking import quality_methods
from resa_bench.plots.style import names_of, paper
from resa_bench.suites.core.looks import GREY, look_of
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import PINNED

SELECTED: dict[str, Any] = {"block_size": 16, "active_ratio": 0.1, "min_blocks": 16}
SCORED = SELECTED | {"gqa_policy": "group-mean", "summary_kind": "minmax"}
GROUP_SUM = SELECTED | {"gqa_policy": "group-sum", "summary_kind": "minmax"}
METHODS: list[tuple[str, dict[str, Any], float]] = [  # with their KL
    ("sparse", SCORED, 0.15),
    ("resa-torch", SCORED | {"rectify_every": 1}, 0.06),
    ("resa-torch", SCORED | {"rectify_every": 32}, 0.12),
    ("resa-torch", SCORED | {"rectify_every": 128}, 0.14),
    ("quest", GROUP_SUM | {"dense_layers": 0}, 0.16),
    ("quest", GROUP_SUM | {"dense_layers": 2}, 0.11),
    ("oracle", SELECTED, 0.01),
]


def quality_row(method: str, settings: dict[str, Any], **columns: Any) -> Row:
    common: dict[str, Any] = {
        "suite": "quality", "model": "small", "case": "quality-small-b2-4k-96-text", "stage": "forced",
        "context": 4192, "batch": 2, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "status": "ok", "device": "CPU",
        "selection_pattern": "text", "launch": "parallel",
    }  # fmt: skip
    return Row(**(common | {"method": method} | settings | columns))


@pytest.fixture
def quality_rows() -> list[Row]:
    rows = []
    for method, settings, kl in METHODS:
        for step, more in ((32, -0.01), (64, 0.0), (96, 0.01)):
            rows.append(quality_row(method, settings, metric="kl", step=step, value=kl + more, n_samples=64))
            rows.append(quality_row(method, settings, metric="kv_error", step=step, value=kl, n_samples=64))
        for layer in range(3):
            for head in range(4):
                value = 0.9 - kl - 0.1 * layer + 0.01 * head
                rows.append(
                    quality_row(method, settings, metric="recall", step=96, layer=layer, head=head, value=value)
                )
    return rows


@pytest.fixture
def decode_rows() -> list[Row]:
    timed = [
        ("triton-dense", {}, 100.0), ("sdpa-cudnn", {}, 90.0), ("resa", SCORED | {"rectify_every": 32}, 180.0),
        ("resa", SCORED | {"rectify_every": 128}, 190.0), ("sparse", SCORED, 200.0),
        ("quest", GROUP_SUM | {"dense_layers": 2}, 170.0), ("resa", SCORED | {"rectify_every": 64}, 185.0),
    ]  # fmt: skip
    rows = []
    for context, count in ((262144, len(timed)), (32768, 3)):
        for method, settings, speed in timed[:count]:
            common: dict[str, Any] = {
                "suite": "decode", "model": "large", "case": f"decode-large-int4-b1-{context}", "stage": "total",
                "context": context, "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "status": "ok",
                "device": "GPU", "launch": "graph", "weight_dtype": "int4", "median_us": 1e6 / speed,
                "mean_us": 1e6 / speed, "tokens_per_s": speed, "commit": "abcdef0123",
            }  # fmt: skip
            rows.append(Row(**(common | {"method": method} | settings)))
    return rows


@pytest.fixture
def figures(quality_rows: list[Row]) -> QualitySet:
    (quality,) = quality_sets(quality_rows)
    return quality


def test_a_repeated_measurement_counts_once(quality_rows: list[Row]) -> None:
    again = quality_row("oracle", SELECTED, metric="kl", step=32, value=0.5, started_at="2030-01-01")
    (quality,) = quality_sets([again, *quality_rows])
    kept = [r.value for r in quality.rows if (r.method, r.metric, r.step) == ("oracle", "kl", 32)]
    assert kept == [0.5]


def by_name(figures: QualitySet) -> dict[str, Any]:
    """Variants by what figures call them."""
    names = names_of(figures.rows)
    return {names.of(variant): variant for variant in figures.lines}


def excess_of(figures: QualitySet) -> dict[str, Any]:
    """Points of the lines of excess, by what stands at their ends."""
    curves = _chosen(figures, figures.lines, "excess")
    return {curve.label: list(zip(curve.xs, curve.ys, strict=True)) for curve in curves}


def test_excess_is_over_the_level_of_the_same_selection(figures: QualitySet) -> None:
    excess = excess_of(figures)
    own = {"sparse only", "ReSA (torch) b16 f32", "ReSA (torch) b16 f128"}  # not Quest's
    assert set(excess) == own | {"ReSA, f = 1"}
    assert [y for _, y in excess["sparse only"]] == pytest.approx([0.09] * 3)
    assert [x for x, _ in excess["sparse only"]] == [16, 48, 80]
    assert [y for _, y in excess["ReSA, f = 1"]] == [0.0] * 3
    with paper():
        fig = quality_drift(figures)
        readable(fig)
    assert labels(fig) == ["ReSA (torch)", "Quest", "sparse only", "oracle top-k", "ReSA, f = 1"]
    words = [ax.get_title() for ax in fig.axes if ax.get_visible()]
    assert words == ["KL(dense || method), nats", "KL over that of f = 1, nats", "error of new K and V"]


def test_a_band_is_a_standard_error_over_the_stretches_taken_together(quality_rows: list[Row]) -> None:
    longer = [replace(r, step=s, value=v) for r in quality_rows if r.metric == "kl" and r.step == 32
              for s, v in zip(range(32, 32 * 17, 32), [0.1, 0.3] * 8, strict=True)]  # fmt: skip
    (figures,) = quality_sets(longer)
    (curve, *_) = _chosen(figures, figures.lines, "kl")
    assert list(curve.ys) == pytest.approx([0.2] * 8)
    assert curve.band is not None
    assert list(curve.band[0]) == pytest.approx([0.1] * 8)
    assert list(curve.band[1]) == pytest.approx([0.3] * 8)
    with paper():
        fig = quality_drift(figures)
    assert len(fig.axes[0].collections) == len(labels(fig)) == 5
    assert "band: one standard error over stretches of steps" in texts(fig)


def test_the_level_is_grey_and_other_looks_are_their_methods(figures: QualitySet) -> None:
    styles = figures.looks
    assert styles[by_name(figures)["ReSA (torch) b16 f1"]].colour == GREY
    assert styles[by_name(figures)["oracle top-k b16"]] == look_of("oracle")
    assert len(set(styles.values())) == len(METHODS)


def test_recall_has_one_line_a_method(figures: QualitySet) -> None:
    with paper():
        (ax,) = quality_recall(figures).axes
    drawn = {tuple(round(y, 3) for _, y in points(line)) for line in ax.lines}
    means = {kl: tuple(round(0.9 - kl - 0.1 * layer + 0.015, 3) for layer in range(3)) for _, _, kl in METHODS}
    assert drawn == {means[kl] for kl in (0.12, 0.11, 0.01)}  # of ReSA and Quest the usual variant
    (band,) = ax.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((0.58, 0.81))


def test_no_recall_no_figure(quality_rows: list[Row]) -> None:
    (figures,) = quality_sets([r for r in quality_rows if r.metric != "recall"])
    with pytest.raises(NotDrawn, match="recall"):
        quality_recall(figures)


def test_points_are_paired_by_settings(figures: QualitySet, decode_rows: list[Row]) -> None:
    (decode,) = decode_sets(decode_rows)
    where, context, points = pair(figures, decode)
    assert (str(where), context) == ("int4 weights, batch 1", 262144)
    names = names_of(p.row for p in points)
    assert [(names[p.row], p.tokens_per_s, pytest.approx(p.kl)) for p in points] == [
        ("Triton dense", 100.0, 0.0),
        ("Quest b16 group-sum", 170.0, 0.11),
        ("ReSA b16 f32", 180.0, 0.12),
        ("ReSA b16 f128", 190.0, 0.14),
        ("sparse only b16", 200.0, 0.15),
    ]  # f = 64 has no KL, Quest without dense layers and the oracle no time
    with paper():
        (ax,) = quality_speed(SpeedSet(figures, decode)).axes
    measured = [line for line in ax.lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]
    assert len(measured) == len(points)
    stairs = next(line for line in ax.lines if line.get_label() == "front")
    assert stairs.get_drawstyle() == "steps-pre"  # up to a point's speed its KL is what can be had
    assert list(stairs.get_xdata())[1:] == [100.0, 170.0, 180.0, 190.0, 200.0]  # type: ignore[arg-type]
    assert list(stairs.get_ydata())[1:] == pytest.approx([0.0, 0.11, 0.12, 0.14, 0.15])  # type: ignore[arg-type]
    bars = [np.asarray(path.vertices) for box in ax.collections for path in box.get_paths()]  # type: ignore[attr-defined]
    error = 0.01 / 3**0.5  # of stretches at -0.01, 0 and 0.01 around the mean
    heights = sorted({round(float(ends[1][1] - ends[0][1]), 5) for ends in bars})
    assert heights == [0.0, round(2 * error, 5)]
    assert {text.get_text() for text in ax.texts} >= {"1", "2", "5", "a sparse step's own error"}
    assert ax.get_xlabel() == "tokens/s, large shape at 256K (int4 weights, batch 1)"
    assert ax.get_ylabel() == "KL(dense || method) on small,\nnats a token"


def in_one_kernel(rows: list[Row], **columns: Any) -> list[Row]:
    return [replace(row, method="resa-fused", **columns) for row in rows if row.method.startswith("resa")]


def test_one_kernel_is_a_point_with_the_quality_of_the_chain(
    quality_rows: list[Row], figures: QualitySet, decode_rows: list[Row]
) -> None:
    fused = in_one_kernel([r for r in decode_rows if r.rectify_every == 32], tokens_per_s=210.0)
    (decode,) = decode_sets([*decode_rows, *fused])
    _, _, points = pair(figures, decode)
    assert [(p.row.method, p.kl, p.tokens_per_s) for p in points if p.row.rectify_every == 32] == [
        ("resa", pytest.approx(0.12), 180.0),
        ("resa-fused", pytest.approx(0.12), 210.0),
    ]
    with paper():
        fig = quality_speed(SpeedSet(figures, decode))
        readable(fig)
    names = listed(fig)
    assert len(set(names)) == len(names) == len(points)
    assert "ReSA (one kernel) b16" in [name.removesuffix(" (on the front)") for name in names]
    look = look_of("resa-fused")
    drawn = [(line.get_color(), line.get_marker()) for line in fig.axes[0].lines]
    assert drawn.count((look.colour, look.marker)) == 1
    (own,) = quality_sets(in_one_kernel(quality_rows))  # its quality was measured itself
    with paper():
        names = listed(quality_speed(SpeedSet(own, decode)))
    assert "ReSA (one kernel) b16 (on the front)" in names


def listed(fig: Figure) -> list[str]:
    """The names beside the points, without their numbers."""
    return [t.get_text().split("  ")[1] for t in fig.axes[0].texts if "  " in t.get_text()]


def test_memory_is_an_axis_where_rows_say_what_fits(figures: QualitySet, decode_rows: list[Row]) -> None:
    (decode,) = decode_sets(decode_rows)
    with pytest.raises(NotDrawn, match=r"0 of its decode rows say how large a batch fits"):
        quality_memory(SpeedSet(figures, decode))
    (sized,) = decode_sets([replace(row, largest_batch=8 + i) for i, row in enumerate(decode_rows)])
    with paper():
        (ax,) = quality_memory(SpeedSet(figures, sized)).axes
    places: list[Any] = [line.get_xdata() for line in ax.lines]
    drawn = sorted(float(xs[0]) for xs in places if len(xs) == 1)
    assert drawn == [8, 10, 11, 12, 13]
    assert ax.get_xscale() == "log"


def test_errors_of_speed_are_those_of_the_mean(decode_rows: list[Row]) -> None:
    row = replace(decode_rows[0], mean_us=10_000.0, tokens_per_s=100.0, ci_low_us=8_000.0, ci_high_us=12_500.0)
    assert speed_errors(row) == pytest.approx((20.0, 25.0))
    assert speed_errors(replace(row, ci_low_us=None)) == (0.0, 0.0)


def test_one_kernel_beside_the_chain_has_its_own_line_and_level(quality_rows: list[Row], figures: QualitySet) -> None:
    fused = [replace(row, value=(row.value or 0.0) + 0.01) for row in in_one_kernel(quality_rows)]
    (both,) = quality_sets([*quality_rows, *fused])
    excess, alone = (excess_of(quality) for quality in (both, figures))
    assert set(excess) == {"ReSA (one kernel) b16 f32", "ReSA (one kernel) b16 f128", "ReSA (torch) b16 f32",
                           "ReSA (torch) b16 f128", "ReSA, f = 1"}  # fmt: skip
    assert all(excess[name] == alone[name] for name in set(excess) & set(alone))
    assert [y for _, y in excess["ReSA (one kernel) b16 f32"]] == pytest.approx([0.06] * 3)
    styles, variants = both.looks, by_name(both)
    assert len(set(styles.values())) == len(METHODS) + 2  # the level is one line, whoever computed it
    names = [f"ReSA ({form}) b16 f32" for form in ("one kernel", "torch")]
    assert [styles[variants[name]].colour for name in names] == [
        look_of(m).colour for m in ("resa-fused", "resa-torch")
    ]
    with paper():
        assert labels(quality_drift(both))[:2] == ["ReSA (one kernel)", "ReSA (torch)"]


def test_a_ratio_that_the_least_number_of_blocks_overrules_is_no_pair(
    quality_rows: list[Row], decode_rows: list[Row]
) -> None:
    """At 4K 64 blocks of 16 tokens are far more than a tenth; at 256K they are not."""
    short = [replace(r, min_blocks=64) if r.rectify_every == 32 else r for r in quality_rows]  # type: ignore[call-arg]
    (figures,), (decode,) = quality_sets(short), decode_sets(decode_rows)
    periods = [p.row.rectify_every for p in pair(figures, decode)[2]]
    assert 128 in periods
    assert 32 not in periods


def test_front(decode_rows: list[Row]) -> None:
    def point(speed: float, kl: float) -> Point:
        return Point(speed, kl, decode_rows[0])

    slow, worse, fast = point(1, 0.0), point(2, 0.5), point(3, 0.2)
    assert front([worse, fast, slow]) == [slow, fast]


def test_other_settings_are_no_pairs(figures: QualitySet, decode_rows: list[Row]) -> None:
    (decode,) = decode_sets([r for r in decode_rows if r.rectify_every == 64 or r.method == "triton-dense"])
    with pytest.raises(NotDrawn, match="0 of its methods"):
        pair(figures, decode)


def test_all_methods_side_by_side(figures: QualitySet) -> None:
    """The least KL on top, each in its method's colour, f = 1 in grey; other selections are in no curve of drift."""
    with paper():
        left, right = quality_methods(figures).axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert (names[-1], len(names)) == ("oracle top-k b16", len(METHODS))
    widths = [bar.get_width() for bar in left.patches]  # type: ignore[attr-defined]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(0.01)
    assert len(right.lines) == len(METHODS)
    other = replace(figures.rows[0], **PINNED)
    assert len(plain(QualitySet("small", "case", "CPU", [*figures.rows, other]).lines)) == len(METHODS)
    with pytest.raises(NotDrawn, match="compared in the table"):
        quality_methods(QualitySet("small", "case", "CPU", [r for r in figures.rows if r.method == "sparse"]))


@pytest.mark.slow
def test_files_of_both_suites_bring_all_figures(
    quality_rows: list[Row], decode_rows: list[Row], tmp_path: Path
) -> None:
    append(tmp_path / "quality.jsonl", quality_rows)
    for case in {row.case for row in decode_rows}:
        append(tmp_path / "decode.jsonl", [row for row in decode_rows if row.case == case])
    names = {p.name for p in draw_all([tmp_path], tmp_path / "plots") if p.suffix == ".png"}
    wanted = {
        "drift-small-b2-4k-96-text",
        "recall-small-b2-4k-96-text",
        "methods-small-b2-4k-96-text",
        "speed-small-b2-4k-96-text-on-large",
    }
    assert {f"quality-{name}.png" for name in wanted} <= names
