"""Figures from synthetic rows: what is drawn, what is left out, and that either is said."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from figure_parts import readable, texts
from plots_rows import STAGES, K, make, only_set, run_of, with_fused
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.caption import caption, title
from resa_bench.plots.data import NotDrawn, micro_sets
from resa_bench.plots.figures import NoFigure, draw_all
from resa_bench.plots.micro_curves import floors, latency, speedup, speedup_amortised
from resa_bench.plots.registry import figures_of
from resa_bench.plots.stages import stages
from resa_bench.plots.style import RING, paper
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row

FIGURES = figures_of("micro")


def untimed(method: str, status: str, reason: str, **changes: Any) -> Row:
    nothing: dict[str, Any] = dict.fromkeys(("median_us", "q20_us", "q80_us", "floor_us", "floor_fraction"))
    return make(method, status=status, reason=reason, **(nothing | changes))


def write(path: Path, rows: list[Row]) -> Path:
    for case in dict.fromkeys(row.case for row in rows):
        append(path, [row for row in rows if row.case == case])
    return path


@pytest.fixture(autouse=True)
def _paper_settings():
    with paper():
        yield


# What is written


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All figures of one run."""
    folder = tmp_path_factory.mktemp("drawn")
    with paper():
        return draw_all([write(folder / "run.jsonl", run_of())], folder / "out")


@pytest.mark.slow
def test_every_figure_is_written_as_png_and_svg(drawn: list[Path]) -> None:
    assert sorted(path.name for path in drawn) == sorted(
        f"{name}-qwen2.5-7b{ending}" for name in FIGURES for ending in (".png", ".svg")
    )
    for path in drawn:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start
        assert path.stat().st_size > 5000


@pytest.mark.slow
def test_a_folder_stands_for_its_files_and_each_model_gets_its_own_figures(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", run_of(contexts=(8 * K,)))
    write(tmp_path / "b.jsonl", run_of(contexts=(8 * K,), model="llama-3.1-8b"))
    (tmp_path / "notes.txt").write_text("not rows")
    names = {path.name for path in draw_all([tmp_path], tmp_path / "out")}
    assert {"methods-qwen2.5-7b.png", "methods-llama-3.1-8b.png"} <= names


@pytest.mark.slow
def test_two_devices_are_never_in_one_figure(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", run_of(contexts=(8 * K,)) + run_of(contexts=(8 * K,), device="NVIDIA A100"))
    names = {path.name for path in draw_all([path], tmp_path / "out")}
    assert {"methods-qwen2.5-7b-nvidia-h100.png", "methods-qwen2.5-7b-nvidia-a100.png"} <= names


@pytest.mark.slow
def test_the_same_rows_give_the_same_files(drawn: list[Path], tmp_path: Path) -> None:
    again = draw_all([write(tmp_path / "a.jsonl", run_of())], tmp_path / "out")
    assert again
    for before, after in zip(drawn, again, strict=True):
        assert before.read_bytes() == after.read_bytes(), before.name


# What is left out, and why


@pytest.mark.slow
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


def test_rows_of_unknown_methods_alone_cost_figures_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As another's tool may write them: stages, whole and amortised steps, all of one name."""
    rows = [replace(row, method="zzz") for row in run_of()]
    drawn = draw_all([write(tmp_path / "a.jsonl", rows)], tmp_path / "plots")
    assert any(path.name.startswith("latency") for path in drawn)
    assert "no measured row of the methods that it shows" in capsys.readouterr().out


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
@pytest.mark.slow
def test_nothing_is_clipped_or_too_small_to_read(name: str, batches: tuple[int, ...], fused: bool) -> None:
    rows = [untimed(f"rival-{i}", "skipped", "a reason of some length, as they are") for i in range(5)]
    rows += run_of(batches=batches)
    fig = FIGURES[name](only_set(with_fused(rows) if fused else rows))
    readable(fig)


@pytest.mark.slow
def test_names_that_a_terminal_obeys_are_written_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An escape character in a model's name ends an SVG; a letter that the font has not is a box, not a warning."""
    rows = [replace(row, model="[red]m\x1b[2J漢") for row in run_of(contexts=(8 * K,)) if row.stage == "attend"]
    rows += [replace(row, stage="total") for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = draw_all([write(tmp_path / "a.jsonl", rows)], tmp_path / "out")
    drawings = [path for path in written if path.suffix == ".svg"]
    assert drawings
    for path in drawings:
        ElementTree.parse(path)
    assert "\x1b" not in "".join(capfd.readouterr())
