"""Figures of whole-model decoding from synthetic rows: what is drawn, what is left out, and that either is said."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from figure_parts import readable, texts
from plots_decode_rows import (
    DECODE_FIGURES,
    FIGURES,
    QUEST,
    RESA,
    K,
    case,
    fused,
    method_rows,
    only_set,
    run_of,
    whole,
)
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.data import NotDrawn
from resa_bench.plots.decode_attention import decode_attention
from resa_bench.plots.decode_curves import decode_speedup, decode_tokens
from resa_bench.plots.decode_periods import decode_periods
from resa_bench.plots.figures import draw_all
from resa_bench.plots.stages import decode_stages
from resa_bench.plots.style import paper
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row


def cpu_run() -> list[Row]:
    cpu = {"model": "SmolLM2-135M", "device": "CPU Intel (2 threads)", "launch": "eager", "dtype": "fp32"}
    cpu |= {"weight_dtype": "fp32", "selection_pattern": "text"}
    rows = []
    for context in (1 * K, 4 * K):
        rows += method_rows("torch-dense", context, **cpu)
        rows += method_rows("resa-torch", context, rectify_every=32, **RESA, **cpu)
        rows += method_rows("quest", context, **QUEST, **cpu)
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    for name in dict.fromkeys(row.case for row in rows):
        append(path, [row for row in rows if row.case == name])
    return path


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


@pytest.mark.slow
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
    assert "cold cache" not in words, "nothing is flushed between the steps of a model"


@pytest.mark.parametrize("name", ["decode-tokens", "decode-speedup", "decode-stages"])
def test_cpu_is_in_the_title(name: str) -> None:
    words = texts(DECODE_FIGURES[name](only_set(cpu_run())))
    assert "portable torch path on CPU" in words
    assert "graph" not in words


@pytest.mark.parametrize("name", DECODE_FIGURES)
@pytest.mark.parametrize("setting", ["all-settings", "one-setting", "one-kernel"])
@pytest.mark.slow
def test_nothing_is_clipped_or_too_small_to_read(name: str, setting: str) -> None:
    alone = [r for r in run_of() if r.weight_dtype == "int4"]
    if name == "decode-attention":
        alone = [r for r in run_of() if r.shared_kv and r.context == 64 * K]
    fig = whole(name, setting == "one-kernel")
    if setting == "one-setting":
        fig = DECODE_FIGURES[name](only_set(alone))
    readable(fig)


@pytest.mark.parametrize("name", DECODE_FIGURES)
@pytest.mark.slow
def test_tick_names_do_not_overlap(name: str) -> None:
    rows = [row for c in (4, 8, 16, 32, 64, 128, 256) for row in case(c * K) + case(c * K, batch=4)]
    rows += run_of()
    fig = DECODE_FIGURES[name](only_set(rows + fused(rows)))
    fig.draw_without_rendering()
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text() and ax.get_visible()]
        for left, right in pairwise(boxes):
            assert left.x1 <= right.x0 + 1
