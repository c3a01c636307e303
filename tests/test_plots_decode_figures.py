"""What the decode suite's figures show: ratios, floors, parts of a step, the paper's figures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from figure_parts import bars, labels, texts
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from plots_decode_rows import (
    RESA,
    K,
    case,
    fused,
    in_own_run,
    method_rows,
    only_set,
    run_of,
    stages_of,
    whole,
)
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import NotDrawn, without_varied
from resa_bench.plots.decode_attention import PAPER, decode_attention
from resa_bench.plots.decode_curves import decode_tokens
from resa_bench.plots.decode_data import fastest_dense, settings
from resa_bench.plots.decode_periods import decode_periods
from resa_bench.plots.stage_style import STAGE_COLOURS, bar_place, fill
from resa_bench.plots.stages import decode_stages
from resa_bench.plots.style import END_LABEL, RING, names_of, paper
from resa_bench.suites.core.spec import PINNED
from resa_bench.suites.core.stages import ATTENTION, FUSED


def titles(fig: Figure) -> list[str]:
    return [ax.get_title() for ax in fig.axes if ax.get_visible()]


def tops(fig: Figure, panel: int = 0) -> dict[float, float]:
    """Where each stack of bars ends, by its middle."""
    heights: dict[float, float] = {}
    for bar in bars(fig.axes[panel]):
        x = round(bar.get_x() + bar.get_width() / 2, 3)
        heights[x] = max(heights.get(x, 0.0), bar.get_y() + bar.get_height())
    return heights


@pytest.fixture(autouse=True)
def _paper_settings():
    with paper():
        yield


# What the figures show


def test_tokens_draws_the_main_methods_the_best_dense_their_floors_and_the_ratio() -> None:
    figures = only_set(run_of())
    fig = whole("decode-tokens")
    assert titles(fig) == ["bf16 weights, batch 1", "int4 weights, batch 1", "bf16 weights, batch 8, shared K/V"]
    ax = fig.axes[0]
    assert ax.get_xscale() == "log"
    assert ax.get_ylim() == fig.axes[1].get_ylim()  # side by side, on one scale from 0
    assert ax.get_ylim()[0] == 0
    best = fastest_dense(figures, settings(figures)[0])
    assert [row.method for row in best.values()] == ["sdpa-cudnn"] * 3
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert [row.tokens_per_s for row in best.values()] in drawn
    assert [1.5 * (row.tokens_per_s or 0) for row in best.values()] in [pytest.approx(ys) for ys in drawn]
    assert labels(fig) == ["best dense", "ReSA", "Quest", "dense floor", "ReSA's floor"]
    (ratio,) = ratios(ax)
    assert re.fullmatch(r"\d\.\d\dx", ratio)
    words = texts(fig)
    for name in ("best dense: sdpa-cudnn", "ReSA b16", "Quest b16 group-sum"):
        assert name in words
    assert "5 variants timed at one context only: not drawn" in words
    assert "f64" not in words


def ratios(ax: Axes) -> list[str]:
    """The texts within a panel: what is no line's name."""
    return [text.get_text() for text in ax.texts if text.get_gid() != END_LABEL]


@pytest.mark.slow
def test_a_ratio_is_that_of_the_rows_own_run(tmp_path: Path) -> None:
    """A dense method measured again, slower, in a later run is drawn; ReSA's ratio stays that of its own run."""
    rows = in_own_run(run_of())
    late = [
        replace(row, tokens_per_s=0.5 * row.tokens_per_s, mean_us=2 * row.mean_us, started_at="2026-12-01T00:00:00Z")
        for row in rows
        if row.stage == "total" and row.variant.is_dense and row.tokens_per_s and row.mean_us
    ]
    figures = only_set(rows + late)
    words = [ratios(ax) for ax in decode_tokens(figures).axes]
    own = [ratios(ax) for ax in decode_tokens(only_set(rows)).axes]
    last = next(r for r in rows if (r.method, r.stage, r.context, r.weight_dtype) == ("resa", "total", 256 * K, "bf16"))
    assert words == own
    assert words[0] == [f"{last.speedup_vs_best_dense:.2f}x"]
    with pytest.raises(NotDrawn, match="in one run"):
        decode_attention(figures)
    assert decode_attention(only_set(rows)).axes


def test_sampled_decoding_has_panels_of_its_own() -> None:
    greedy = [row for c in (4, 32) for row in case(c * K)]
    sampled = [replace(row, case=row.case + "-t0.6-p0.95") for row in greedy]
    assert titles(decode_tokens(only_set(greedy + sampled))) == [
        "bf16 weights, batch 1",
        "bf16 weights, batch 1, sampled (t 0.6, p 0.95)",
    ]


@pytest.mark.slow
def test_throttled_rows_are_ringed_points_or_starred_bars_and_nothing_else_is_said_to_be() -> None:
    hot = [replace(row, status="throttled") if row.method == "quest" else row for row in run_of()]
    fig = decode_tokens(only_set(hot))
    rings = [line for ax in fig.axes for line in ax.lines if line.get_label() == RING]
    assert len(rings) == 9  # Quest's, in three panels
    assert f"ringed ({len(rings)} points): measured under throttling" in texts(fig)
    bars = decode_stages(only_set(hot))
    names = [tick.get_text() for ax in bars.axes for tick in ax.get_xticklabels()]
    assert "ringed" not in texts(bars)
    assert f"* ({names.count('Quest*')} bars): measured under throttling" in texts(bars)
    for draw in (decode_attention, decode_periods):  # without Quest
        assert "throttling" not in texts(draw(only_set(in_own_run(hot))))


def test_a_throttled_bar_keeps_its_colour() -> None:
    hot = [replace(row, status="throttled") if row.rectify_every == 64 else row for row in run_of()]
    fig = decode_periods(only_set(hot))
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["16", "32", "64*", "128"]
    assert len({bar.get_facecolor() for bar in fig.axes[0].patches if bar.get_facecolor() != (1, 1, 1, 1)}) == 1


def test_floors_end_within_their_panel() -> None:
    for ax in whole("decode-tokens").axes:
        ends = [list(line.get_ydata())[-1] for line in ax.lines if ax.get_visible()]
        assert max(ends, default=0.0) <= ax.get_ylim()[1]  # type: ignore[type-var]


def test_floors_far_above_are_left_out_of_tokens() -> None:
    rows = [replace(row, floor_us=row.floor_us / 9 if row.floor_us else None) for row in run_of()]
    assert "floor" not in texts(decode_tokens(only_set(rows)))


def test_speedup_draws_the_column_its_limit_and_the_line_at_one() -> None:
    fig = whole("decode-speedup")
    drawn = [list(line.get_ydata()) for line in fig.axes[0].lines]
    rows = [row for row in run_of() if (row.method, row.stage, row.weight_dtype) == ("quest", "total", "bf16")]
    column = [row.speedup_vs_best_dense for row in rows if row.batch == 1]
    for ys in ([1, 1], column, [2.5] * 3):
        assert ys in drawn
    assert labels(fig) == ["ReSA", "Quest", "ReSA's floor", "best dense"]
    assert "cuDNN (SDPA)" not in texts(fig)
    assert "best dense: sdpa-cudnn" in texts(fig)


def test_stages_sum_to_the_step_in_the_colours_of_the_micro_suite() -> None:
    rows = case(32 * K)
    fig = decode_stages(only_set(rows))
    steps = [r.mean_us / 1e3 for r in rows if r.stage == "total" and r.mean_us and r.method != "triton-dense"]
    assert list(tops(fig).values()) == pytest.approx(steps)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["dense", "ReSA", "Quest"]
    filled = {to_hex(bar.get_facecolor()).upper() for bar in fig.axes[0].patches if not bar.get_hatch()}
    assert {STAGE_COLOURS[stage].upper() for stage in ATTENTION} <= filled
    words = texts(fig)
    for name in ("gap", "rectify: linear layers", "sampling, other", "feed-forward"):
        assert name in words
    assert "measured step" not in words


def test_a_gap_below_zero_is_drawn_as_none_and_said() -> None:
    rows = [replace(r, mean_us=-600.0) if (r.stage, r.method) == ("gap", "quest") else r for r in case(32 * K)]
    fig = decode_stages(only_set(rows))
    assert min(bar.get_height() for bar in bars(fig.axes[0])) > 0
    assert "1 of 3 gaps below 0" in texts(fig)
    assert "measured step" in texts(fig)


def test_a_fused_stage_is_hatched() -> None:
    rows = [replace(r, stage="score+select") if r.stage == "score" else r for r in case(32 * K)]
    rows = [r for r in rows if r.stage != "select"]
    assert "score+select" in texts(decode_stages(only_set(rows)))


def test_one_kernel_has_a_bar_of_its_own_beside_the_chain() -> None:
    rows = case(32 * K)
    rows += fused(rows)
    fig = decode_stages(only_set(rows))
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["dense", "ReSA", "ReSA (one kernel)", "Quest"]
    steps = {r.method: r.mean_us / 1e3 for r in rows if r.stage == "total" and r.mean_us}
    drawn = ("sdpa-cudnn", "resa", "resa-fused", "quest")
    assert list(tops(fig).values()) == pytest.approx([steps[name] for name in drawn])
    assert "sparse step in one kernel" in texts(fig)
    assert FUSED not in texts(fig)
    assert sorted(["rectify", FUSED, "attend", "ffn"], key=bar_place) == ["ffn", "attend", FUSED, "rectify"]
    fills = [fill(stage) for stage in (FUSED, "append+score", "score+select", "attend+merge", "attend")]
    assert all(fills[0] != other for other in fills[1:])


def test_several_variants_in_one_kernel_are_named_by_their_settings() -> None:
    rows = case(32 * K) + [
        row
        for block in (16, 32)
        for row in method_rows("resa-fused", 32 * K, rectify_every=32, **RESA | {"block_size": block})
    ]
    ticks = [t.get_text() for t in decode_stages(only_set(rows)).axes[0].get_xticklabels()]
    assert ticks == ["dense", "ReSA", "ReSA (one kernel) b16", "ReSA (one kernel) b32", "Quest"]


def test_one_kernel_stands_beside_the_chain_and_the_ratio_is_its_own() -> None:
    rows = run_of()
    beside = decode_tokens(only_set(rows + in_own_run([*fused(rows), *rows])[: len(fused(rows))]))
    assert labels(beside) == ["best dense", "ReSA (one kernel)", "ReSA", "dense floor", "ReSA's floor"]
    last = [
        r
        for r in in_own_run([*fused(rows), *rows])
        if (r.method, r.stage, r.context) == ("resa-fused", "total", 256 * K)
    ]
    step = next(r for r in last if (r.weight_dtype, r.batch) == ("bf16", 1))
    assert ratios(beside.axes[0]) == [f"{step.speedup_vs_best_dense:.2f}x"]
    assert "ratio: ReSA (one kernel) over the best dense of its run" in texts(beside)


@pytest.mark.parametrize("name", ["decode-attention", "decode-periods"])
def test_parts_and_studies_are_the_chains(name: str) -> None:
    """One kernel has no parts to set beside the paper's, and one period."""
    assert [tops(whole(name), i) for i in range(2)] == [tops(whole(name, True), i) for i in range(2)]
    assert "one kernel" not in texts(whole(name, True))


def test_attention_stands_beside_the_papers_figures() -> None:
    fig = decode_attention(only_set(run_of() + case(32 * K, batch=8, shared_kv=True)))
    assert titles(fig) == ["16K tokens", "64K tokens", "256K tokens"]
    parts = stages_of("resa", 256 * K)
    ours = sum(parts[stage] for stage in ("append", "score", "select", "attend", "merge", "rectify")) / 1e3
    dense = (60 + 256 * K / 40) / 1e3
    assert list(tops(fig, 2).values()) == pytest.approx([dense, ours, 77.2, 25.89])
    written = {text.get_text() for text in fig.axes[2].texts}
    assert {"paper, A100", "measured", "2.98x", f"{dense / ours:.2f}x"} <= written
    assert "arXiv 2506.04108" in texts(fig)
    assert all(bar.get_hatch() for bar in bars(fig.axes[2]) if bar.get_x() > 2)


def test_another_model_has_no_paper_beside_it() -> None:
    fig = decode_attention(only_set(run_of(model="llama-3.1-8b")))
    assert "paper" not in texts(fig)
    assert len(tops(fig)) == 2


@pytest.mark.parametrize(("context", "total"), [(16 * K, 4.38), (64 * K, 8.99), (256 * K, 25.9)])
def test_the_papers_parts_sum_to_its_totals(context: int, total: float) -> None:
    assert sum(PAPER[context].resa_ms.values()) == pytest.approx(total, abs=0.02)


def test_periods_and_block_sizes_at_their_case() -> None:
    fig = whole("decode-periods")
    assert titles(fig) == ["int4 weights, batch 1, 256K, b16", "int4 weights, batch 1, 256K, f32"]
    ticks = [[t.get_text() for t in ax.get_xticklabels()] for ax in fig.axes]
    assert ticks == [["16", "32", "64", "128"], ["16", "32", "64"]]
    shares = [text.get_text() for text in fig.axes[0].texts if "%" in text.get_text()]
    parts = stages_of("resa", 256 * K, 16)
    share = (parts["rectify"] + parts["rectify+project+ffn"]) / sum(parts.values())
    assert shares[0] == f"{share:.0%}"
    assert len(shares) == 4


def test_periods_alone_make_one_panel() -> None:
    fig = decode_periods(only_set([row for row in run_of() if row.block_size in (None, 16)]))
    assert titles(fig) == ["int4 weights, batch 1, 256K, b16"]


# Lines


def test_periods_are_lines_ordered_by_number_after_the_usual_one() -> None:
    figures = only_set(run_of())
    names = [names_of(figures.rows).of(variant) for variant in figures.lines]
    assert [n for n in names if "ReSA b16" in n] == [f"ReSA b16 f{every}" for every in (32, 16, 64, 128)]


def test_other_selections_of_a_method_are_left_to_the_figure_of_quality() -> None:
    """Pinned blocks, mean/std, fp8 summaries: lines keep their names and points, the rows stay at hand."""
    plain = method_rows("resa", 4096, block_size=16, summary_kind="minmax")
    others = [replace(plain[0], **PINNED), replace(plain[0], summary_kind="meanstd", spread_weight=0.5)]
    others.append(replace(plain[0], summary_dtype="fp8"))
    both = only_set([*plain, *others])
    assert both.rows == plain
    assert sorted(map(repr, both.alike)) == sorted(map(repr, others))
    alone = only_set(others[1:])
    assert (len(alone.rows), alone.alike) == (2, ())
    assert without_varied(alone) == alone
