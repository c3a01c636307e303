"""Figures of whole-model decoding from synthetic rows: what is drawn, what is left out, and that either is said."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import FigureSet, NotDrawn, without_varied
from resa_bench.plots.decode_attention import PAPER, decode_attention
from resa_bench.plots.decode_curves import decode_speedup, decode_tokens
from resa_bench.plots.decode_data import decode_sets, fastest_dense, settings
from resa_bench.plots.decode_periods import decode_periods
from resa_bench.plots.decode_stages import decode_stages
from resa_bench.plots.figures import draw_all
from resa_bench.plots.registry import figures_of
from resa_bench.plots.stage_style import STAGE_COLOURS, bar_place, fill
from resa_bench.plots.style import SMALL_PT, names_of, paper
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import PINNED
from resa_bench.suites.core.stages import ATTENTION, FUSED

K = 1024
DECODE_FIGURES, FIGURES = figures_of("decode"), figures_of("micro")
LINEAR = {"project": 800.0, "ffn": 4000.0, "head": 400.0, "sample": 9.0, "other": 6.0}  # microseconds of a step
RESA = {"block_size": 16, "active_ratio": 0.1, "gqa_policy": "group-mean", "summary_kind": "minmax"}
QUEST = RESA | {"gqa_policy": "group-sum", "dense_layers": 2}


def stages_of(method: str, context: int, every: int = 32) -> dict[str, float]:
    """Microseconds by stage of a step."""
    dense_us = context / 40
    if "dense" in method or method == "sdpa-cudnn":
        return LINEAR | {"append": 60.0, "attend": dense_us * (1.1 if method == "triton-dense" else 1.0), "gap": 50.0}
    sparse = {"append": 60.0, "score": dense_us / 16, "select": 120.0, "attend": dense_us / 8, "merge": 90.0}
    if method == "resa-fused":
        sparse = {FUSED: 0.8 * sum(sparse.values())}
    if method.startswith("resa"):
        sparse |= {"rectify": 2 * dense_us / every, "rectify+project+ffn": 8000 / every}
    return LINEAR | sparse | {"gap": 50.0}


def method_rows(method: str, context: int, **columns: Any) -> list[Row]:
    """The whole step of a method and its stages."""
    batch, launch = columns.get("batch", 1), columns.get("launch", "graph")
    weights, shared = columns.get("weight_dtype", "bf16"), columns.get("shared_kv", False)
    parts = stages_of(method, context, columns.get("rectify_every") or 32)
    mean = sum(parts.values())
    common: dict[str, Any] = {
        "suite": "decode", "model": "qwen2.5-7b", "method": method, "context": context, "batch": batch, "q_heads": 28,
        "kv_heads": 4, "head_dim": 128, "layers": 28, "dtype": "bf16", "weight_dtype": weights, "shared_kv": shared,
        "selection_pattern": "synthetic", "cache_state": "cold", "launch": launch, "status": "ok",
        "case": f"decode-{weights}-b{batch}-{context}-{shared}", "device": "NVIDIA H100", "commit": "0123456789abcdef",
        "dirty": False, "started_at": "2026-11-22T02:00:00+00:00", "seed": 0,
    }  # fmt: skip
    common |= columns
    rate = batch / mean * 1e6
    total = {"median_us": mean, "mean_us": mean, "tokens_per_s": rate, "floor_us": mean / 1.5}
    total |= {"speedup_vs_best_dense": 2.0 if "block_size" in columns else 1.0, "best_dense": "sdpa-cudnn"}
    rows = [Row(**common, stage="total", floor_speedup=2.5, **total)]
    return rows + [Row(**common, stage=name, median_us=us, mean_us=us) for name, us in parts.items()]


def case(context: int, **columns: Any) -> list[Row]:
    """Two dense methods, ReSA and Quest."""
    rows = method_rows("sdpa-cudnn", context, **columns) + method_rows("triton-dense", context, **columns)
    rows += method_rows("resa", context, rectify_every=32, **RESA, **columns)
    return rows + method_rows("quest", context, **QUEST, **columns)


def fused(rows: list[Row]) -> list[Row]:
    """ReSA in one kernel, wherever rows have ReSA with the usual settings."""
    columns = ("batch", "weight_dtype", "shared_kv")
    totals = [r for r in rows if (r.method, r.stage, r.block_size, r.rectify_every) == ("resa", "total", 16, 32)]
    cases = [method_rows("resa-fused", r.context, rectify_every=32, **RESA, **{n: getattr(r, n) for n in columns})
             for r in totals]  # fmt: skip
    return [row for case in cases for row in case]


def study(context: int = 256 * K, **columns: Any) -> list[Row]:
    """Further block sizes and periods of ReSA."""
    rows = [method_rows("resa", context, rectify_every=f, **RESA, **columns) for f in (16, 64, 128)]
    rows += [method_rows("resa", context, rectify_every=32, **RESA | {"block_size": b}, **columns) for b in (32, 64)]
    return [row for group in rows for row in group]


def run_of(**columns: Any) -> list[Row]:
    """All settings: curves at batch 1, the paper's cases at batch 8, the study at int4."""
    rows = [row for c in (4, 32, 256) for row in case(c * K, **columns)]
    rows += [row for c in (4, 32, 256) for row in case(c * K, weight_dtype="int4", **columns)]
    rows += [row for c in (16, 64, 256) for row in case(c * K, batch=8, shared_kv=True, **columns)]
    return in_own_run(rows + study(weight_dtype="int4", **columns))


@cache
def whole(name: str, one_kernel: bool = False) -> Figure:
    """A figure of the whole run; nobody changes it."""
    rows = run_of(dirty=True)
    return DECODE_FIGURES[name](only_set(rows + fused(rows) if one_kernel else rows))


def cpu_run() -> list[Row]:
    cpu = {"model": "SmolLM2-135M", "device": "CPU Intel (2 threads)", "launch": "eager", "dtype": "fp32"}
    cpu |= {"weight_dtype": "fp32", "selection_pattern": "text"}
    rows = []
    for context in (1 * K, 4 * K):
        rows += method_rows("torch-dense", context, **cpu)
        rows += method_rows("resa-torch", context, rectify_every=32, **RESA, **cpu)
        rows += method_rows("quest", context, **QUEST, **cpu)
    return rows


def only_set(rows: list[Row]) -> FigureSet:
    (figures,) = decode_sets(rows)
    return figures


def write(path: Path, rows: list[Row]) -> Path:
    for name in dict.fromkeys(row.case for row in rows):
        append(path, [row for row in rows if row.case == name])
    return path


def texts(fig: Figure) -> str:
    """Title, legend and caption of a figure, on one line."""
    legend = [text.get_text() for box in fig.legends for text in box.get_texts()]
    words = [*legend, *(text.get_text() for text in fig.texts)]
    return " ".join(" ".join(words).replace("\u00a0", " ").split())


def titles(fig: Figure) -> list[str]:
    return [ax.get_title() for ax in fig.axes if ax.get_visible()]


def tops(fig: Figure, panel: int = 0) -> dict[float, float]:
    """Where each stack of bars ends, by its middle."""
    heights: dict[float, float] = {}
    for bar in fig.axes[panel].patches:
        x = round(bar.get_x() + bar.get_width() / 2, 3)
        heights[x] = max(heights.get(x, 0.0), bar.get_y() + bar.get_height())
    return heights


@pytest.fixture(autouse=True)
def _paper_settings():
    with paper():
        yield


# What is written


@pytest.mark.slow
def test_decode_and_micro_rows_in_one_call_draw_both(tmp_path: Path) -> None:
    micro = [
        replace(row, suite="micro", case=f"micro-{row.context}", selection_pattern=None, speedup_vs_best_dense=2.0)
        for c in (4, 32)
        for row in case(c * K)
        if row.stage in ("total", "attend")
    ]
    write(tmp_path / "a.jsonl", run_of())
    write(tmp_path / "b.jsonl", micro)
    written = {path.name for path in draw_all([tmp_path], tmp_path / "out")}
    for name in (*DECODE_FIGURES, "speedup", "latency", "stages"):
        assert {f"{name}-qwen2.5-7b.png", f"{name}-qwen2.5-7b.svg"} <= written


@pytest.mark.slow
def test_decode_rows_alone_draw_decode_figures_alone(tmp_path: Path) -> None:
    written = draw_all([write(tmp_path / "a.jsonl", case(4 * K) + case(32 * K))], tmp_path / "out")
    kinds = {path.stem.removesuffix("-qwen2.5-7b") for path in written}
    assert kinds == {"decode-tokens", "decode-speedup", "decode-stages"}
    assert not set(DECODE_FIGURES) & set(FIGURES)


def test_cpu_rows_draw_the_first_three_and_say_why_not_the_others(tmp_path: Path, capsys) -> None:
    written = draw_all([write(tmp_path / "a.jsonl", cpu_run())], tmp_path / "out")
    kinds = {path.name.removesuffix("-smollm2-135m.png") for path in written if path.suffix == ".png"}
    assert kinds == {"decode-tokens", "decode-speedup", "decode-stages"}
    printed = capsys.readouterr().out
    assert re.search("skipped decode-attention-.*: no steps of ReSA and a dense method at batch 8", printed)
    assert re.search("skipped decode-periods-.*: no case was measured with several", printed)


def test_no_figure_at_all_names_what_both_suites_need(tmp_path: Path) -> None:
    rows = [replace(row, tokens_per_s=None) for row in run_of()]
    with pytest.raises(ValueError, match=r"'micro'.*'cold'.*'decode'.*tokens_per_s"):
        draw_all([write(tmp_path / "a.jsonl", rows)], tmp_path / "out")


# What is left out, and why


@pytest.mark.parametrize(
    ("draw", "kept", "reason"),
    [
        pytest.param(decode_tokens, lambda r: r.context == 256 * K, "single context", id="one-context"),
        pytest.param(decode_speedup, lambda r: r.block_size is None, "no sparse method", id="only-dense"),
        pytest.param(decode_stages, lambda r: r.stage == "total", "no-breakdown", id="no-stages"),
        pytest.param(decode_attention, lambda r: not r.shared_kv, "batch 8", id="not-the-papers-cases"),
        pytest.param(decode_attention, lambda r: r.stage != "attend", "no stages of both", id="no-attention"),
        pytest.param(decode_periods, lambda r: r.weight_dtype == "bf16", "several rectification", id="no-study"),
    ],
)
def test_a_figure_without_its_rows_says_why(draw, kept, reason: str) -> None:
    with pytest.raises(NotDrawn, match=reason):
        draw(only_set([row for row in run_of() if kept(row)]))


def test_speedup_without_the_column_says_so() -> None:
    with pytest.raises(NotDrawn, match="speedup_vs_best_dense"):
        decode_speedup(only_set([replace(row, speedup_vs_best_dense=None) for row in run_of()]))


def test_eager_rows_stay_out_beside_graphs_and_a_method_without_graph_is_named() -> None:
    eager = [row for row in run_of(launch="eager") if row.stage == "total"]
    alone, beside = only_set(run_of()), only_set(run_of() + eager)
    assert beside.lines == alone.lines
    notes = only_set(run_of() + method_rows("oracle", 4 * K, launch="eager", **RESA)).notes
    assert notes == ("qwen2.5-7b: oracle ran eagerly only and is left out",)


def test_a_repeated_measurement_is_drawn_as_last_measured() -> None:
    late = [replace(row, mean_us=1.0, started_at="2026-12-01T00:00:00Z") for row in run_of()]
    figures = only_set(late + run_of())
    assert {row.mean_us for row in figures.rows} == {1.0}
    assert figures.notes == (f"qwen2.5-7b: {len(late)} decode rows were measured again later: the latest is drawn",)


# Titles, captions, sizes


@pytest.mark.parametrize("name", DECODE_FIGURES)
def test_caption_says_where_the_numbers_come_from(name: str) -> None:
    words = texts(whole(name))
    for part in ("qwen2.5-7b", "NVIDIA H100", "0123456-dirty", "2026-11-22", "r = 0.1", "graph replay"):
        assert part in words
    assert "CPU" not in words


@pytest.mark.parametrize("name", ["decode-tokens", "decode-speedup", "decode-stages"])
def test_cpu_is_in_the_title(name: str) -> None:
    words = texts(DECODE_FIGURES[name](only_set(cpu_run())))
    assert "portable torch path on CPU" in words
    assert "graph" not in words


@pytest.mark.parametrize("name", DECODE_FIGURES)
@pytest.mark.parametrize("setting", ["all-settings", "one-setting", "one-kernel"])
def test_nothing_is_clipped_or_too_small_to_read(name: str, setting: str) -> None:
    alone = [r for r in run_of() if r.weight_dtype == "int4"]
    if name == "decode-attention":
        alone = [r for r in run_of() if r.shared_kv and r.context == 64 * K]
    fig = whole(name, setting == "one-kernel")
    if setting == "one-setting":
        fig = DECODE_FIGURES[name](only_set(alone))
    fig.draw_without_rendering()
    shown = [ax for ax in fig.axes if ax.get_visible()]
    heading, words = fig.texts
    (box,) = fig.legends
    extents = [artist.get_window_extent() for artist in (heading, words, box)] + [ax.get_tightbbox() for ax in shown]
    for extent in extents:  # pixels
        assert min(extent.x0, extent.y0) >= -1
        assert extent.x1 <= fig.bbox.x1 + 1
        assert extent.y1 <= fig.bbox.y1 + 1
    assert extents[0].y0 >= max(e.y1 for e in extents[3:]) - 1
    assert extents[2].y1 <= min(e.y0 for e in extents[3:]) + 1
    assert extents[1].y1 <= extents[2].y0
    sizes = {words.get_fontsize()} | {t.get_fontsize() for t in box.get_texts()}
    sizes |= {t.get_fontsize() for ax in shown for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts)}
    assert min(sizes) >= SMALL_PT


@pytest.mark.parametrize("name", DECODE_FIGURES)
def test_tick_names_do_not_overlap(name: str) -> None:
    rows = [row for c in (4, 8, 16, 32, 64, 128, 256) for row in case(c * K) + case(c * K, batch=4)]
    rows += run_of()
    fig = DECODE_FIGURES[name](only_set(rows + fused(rows)))
    fig.draw_without_rendering()
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text() and ax.get_visible()]
        for left, right in pairwise(boxes):
            assert left.x1 <= right.x0 + 1


# What the figures show


def test_tokens_draws_a_line_a_method_the_best_dense_area_and_the_ratio() -> None:
    figures = only_set(run_of())
    fig = whole("decode-tokens")
    assert titles(fig) == ["bf16 weights, batch 1", "int4 weights, batch 1", "bf16 weights, batch 8, shared K/V"]
    ax = fig.axes[0]
    assert ax.get_xscale() == "log"
    assert ax.get_ylim()[0] == 0
    best = fastest_dense(figures, settings(figures)[0])
    assert [row.method for row in best.values()] == ["sdpa-cudnn"] * 3
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert [row.tokens_per_s for row in best.values()] in drawn
    assert [1.5 * (row.tokens_per_s or 0) for row in best.values()] in [pytest.approx(ys) for ys in drawn]
    (ratio,) = [text.get_text() for text in ax.texts]
    assert re.fullmatch(r"\d\.\d\dx", ratio)
    words = texts(fig)
    for name in ("best dense", "cuDNN (SDPA)", "ReSA b16", "Quest b16 group-sum", "what the floor allows"):
        assert name in words
    assert "5 variants timed at one context only: not drawn" in words
    assert "f64" not in words


def test_a_ratio_is_that_of_the_rows_own_run(tmp_path: Path) -> None:
    """A dense method measured again, slower, in a later run is drawn; ReSA's ratio stays that of its own run."""
    rows = in_own_run(run_of())
    late = [
        replace(row, tokens_per_s=0.5 * row.tokens_per_s, mean_us=2 * row.mean_us, started_at="2026-12-01T00:00:00Z")
        for row in rows
        if row.stage == "total" and row.variant.is_dense and row.tokens_per_s and row.mean_us
    ]
    figures = only_set(rows + late)
    words = [[text.get_text() for text in ax.texts] for ax in decode_tokens(figures).axes]
    own = [[text.get_text() for text in ax.texts] for ax in decode_tokens(only_set(rows)).axes]
    last = next(r for r in rows if (r.method, r.stage, r.context, r.weight_dtype) == ("resa", "total", 256 * K, "bf16"))
    assert words == own
    assert words[0] == [f"{last.speedup_vs_best_dense:.2f}x"]
    with pytest.raises(NotDrawn, match="in one run"):
        decode_attention(figures)
    assert decode_attention(only_set(rows)).axes


def in_own_run(rows: list[Row]) -> list[Row]:
    """Speed-ups over cuDNN as the rows' times have them."""
    rival = {row.case: row.mean_us or 0.0 for row in rows if (row.method, row.stage) == ("sdpa-cudnn", "total")}
    return [
        replace(row, speedup_vs_best_dense=rival[row.case] / row.mean_us)
        if row.stage == "total" and row.mean_us
        else row
        for row in rows
    ]


def test_sampled_decoding_has_panels_of_its_own() -> None:
    greedy = [row for c in (4, 32) for row in case(c * K)]
    sampled = [replace(row, case=row.case + "-t0.6-p0.95") for row in greedy]
    assert titles(decode_tokens(only_set(greedy + sampled))) == [
        "bf16 weights, batch 1",
        "bf16 weights, batch 1, sampled (t 0.6, p 0.95)",
    ]


def test_throttled_rows_are_hollow_points_or_starred_bars_and_nothing_else_is_said_to_be() -> None:
    hot = [replace(row, status="throttled") if row.method == "quest" else row for row in run_of()]
    fig = decode_tokens(only_set(hot))
    hollow = [line for ax in fig.axes for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert {line.get_marker() for line in hollow} == {"v"}  # Quest's own
    assert f"hollow ({len(hollow)} points): measured under throttling" in texts(fig)
    bars = decode_stages(only_set(hot))
    names = [tick.get_text() for ax in bars.axes for tick in ax.get_xticklabels()]
    assert "hollow" not in texts(bars)
    assert f"* ({names.count('Quest*')} bars): measured under throttling" in texts(bars)
    for draw in (decode_attention, decode_periods):  # without Quest
        assert "throttling" not in texts(draw(only_set(in_own_run(hot))))


def test_floors_that_are_drawn_lie_within_their_panel() -> None:
    for ax in whole("decode-tokens").axes:
        lines = [line for line in ax.lines if ax.get_visible()]
        assert max((max(line.get_ydata()) for line in lines), default=0.0) <= ax.get_ylim()[1]  # type: ignore[type-var]


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
    assert "what ReSA's floor allows" in texts(fig)
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
    assert min(bar.get_height() for bar in fig.axes[0].patches) > 0
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


def test_one_kernel_is_a_line_of_tokens_and_the_ratio_stays_the_chains() -> None:
    chain, beside = whole("decode-tokens"), whole("decode-tokens", True)
    for ax, more in zip(chain.axes, beside.axes, strict=True):
        assert [t.get_text() for t in ax.texts] == [t.get_text() for t in more.texts]
        assert len(more.lines) == len(ax.lines) + (1 if ax.get_visible() else 0)
    assert "ReSA (one kernel) b16" in texts(beside)
    assert "ratio: ReSA b16 over the best dense of its run" in texts(beside)


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
    assert all(bar.get_hatch() for bar in fig.axes[2].patches if bar.get_x() > 2)


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
