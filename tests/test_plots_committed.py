"""Figures of committed rows: which lines, in whose colour, with which names, and what the captions say of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from figure_parts import labels, readable, texts
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.plots.curves import MOST
from resa_bench.plots.registry import figures_of, set_makers
from resa_bench.plots.style import RING, STAR, paper, save
from resa_bench.plots.timeline import LEAST, draw_timeline
from resa_bench.suites.core.looks import LOOKS
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row

H200 = Path(__file__).parents[1] / "results" / "h200"
TOKENS = "tokens_per_s"
DRAWN = [
    *(
        ("micro", name)
        for name in ("latency", "speedup", "speedup-amortised", "floors", "methods", "roofline", "stages")
    ),
    *(("decode", f"decode-{name}") for name in ("tokens", "speedup", "stages")),
    *(("quality", f"quality-{name}") for name in ("drift", "recall", "methods")),
]
CURVES = {"latency", "speedup", "speedup-amortised", "floors", "decode-tokens", "decode-speedup", "quality-drift"}
TITLE_COLOURS = {look.title: look.colour.lower() for look in LOOKS.values()}


@cache
def rows_of(file: str) -> list[Row]:
    """The rows of a file, of the quality suite without heads' recall but in two layers: reading is what takes long."""
    return read_rows(H200 / f"{file}.jsonl.gz")


@cache
def drawn(file: str, name: str) -> Figure:
    """A figure of a committed file; nobody changes it."""
    suite = file.rpartition("/")[2]
    data = next(
        figures
        for figures in set_makers()[suite].make(rows_of(file))
        if figures.slug.startswith(("qwen2.5-7b", "smollm2"))
    )
    with paper():
        return figures_of(suite)[name](data)


@pytest.mark.parametrize(("file", "name"), DRAWN, ids=[name for _, name in DRAWN])
@pytest.mark.slow
def test_what_holds_for_every_figure(file: str, name: str) -> None:
    fig = drawn(file, name)
    with paper():
        readable(fig)
    words, shown = texts(fig), [ax for ax in fig.axes if ax.get_visible()]
    first = rows_of(file)[0]
    assert f"{first.device}" in words
    assert f"commit {(first.commit or '')[:7]}" in words
    for ax in shown:
        lines = [line for line in ax.lines if line.get_label() != RING]
        named = [line for line in lines if not str(line.get_label()).startswith("_")]
        if name in CURVES:
            assert 2 <= len(named) <= MOST
            assert sorted(str(line.get_label()) for line in named) == sorted(labels(fig, fig.axes.index(ax)))
        for line in named:  # a method is one colour everywhere
            colour = TITLE_COLOURS.get(str(line.get_label()))
            assert colour in (None, to_hex(line.get_color()))
    rings = sum(line.get_label() == RING for ax in shown for line in ax.lines)
    names = [t.get_text() for ax in shown for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    stars = sum(text.endswith(STAR) for text in names)
    assert (f"ringed ({rings} point" in words) == bool(rings)
    assert (f"* ({stars} bar" in words) == bool(stars)
    assert "hollow" not in words


def is_plain(row: Row, method: str) -> bool:
    """A method at its default settings."""
    settings = (row.block_size, row.rectify_every, row.summary_kind, row.summary_dtype, row.pinned_blocks or 0)
    return row.method == method and settings == (16, 32, "minmax", None, 0)


def test_the_hero_shows_the_fastest_beside_resa_the_best_dense_and_their_floors() -> None:
    fig = drawn("decode", "decode-tokens")
    titles = [ax.get_title() for ax in fig.axes]
    for weights in ("bf16", "int4"):
        ax = fig.axes[titles.index(f"{weights} weights, batch 1")]
        lines = {str(line.get_label()): line for line in ax.lines}
        steps = sorted((r for r in rows_of("decode") if r.stage == "total" and r.launch == "graph"
                        and (r.weight_dtype, r.batch) == (weights, 1)), key=lambda r: r.context)  # fmt: skip
        for label, method in (("ReSA", "resa"), ("ReSA (chain)", "resa-chain")):
            own = [getattr(row, TOKENS) for row in steps if is_plain(row, method)]
            assert list(lines[label].get_ydata()) == own  # type: ignore[arg-type]
            assert lines[label].get_color() == LOOKS[method].colour
        dense = {
            r.context: max(getattr(x, TOKENS) for x in steps if x.context == r.context and x.variant.is_dense)
            for r in steps
        }
        assert list(lines["best dense"].get_ydata()) == list(dense.values())  # type: ignore[arg-type]
        assert {"dense floor", "ReSA's floor"} <= set(lines)
        last = next(r for r in steps if is_plain(r, "resa") and r.context == 262144)
        assert f"{last.speedup_vs_best_dense:.2f}x" in {text.get_text() for text in ax.texts}
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()


@pytest.mark.parametrize("name", ["decode-tokens", "decode-stages"])
@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes_and_no_date_or_version(name: str, tmp_path: Path) -> None:
    files = []
    for folder in ("once", "again"):
        drawn.cache_clear()
        with paper():
            files.append(save(drawn("decode", name), tmp_path / folder / name))
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    png, svg = (path.read_bytes() for path in files[0])
    for word in (b"Software", b"tEXt", b"matplotlib", b"Matplotlib"):
        assert word not in png
    assert b"dc:date" not in svg
    assert b"Matplotlib v" not in svg


def test_a_traced_steps_timeline_loses_no_kernel(tmp_path: Path) -> None:
    folder = H200 / "profile" / "nsys-resa"
    svg = draw_timeline(folder / "timeline.csv.gz", folder / "facts.json", tmp_path / "timeline")[1].read_text()
    assert f"Bars are drawn {LEAST:.2%} of the axis" in svg
    for words in ("one step, replayed", "from its middle: 18 kernels of 183", "one rectification, replayed"):
        assert words in svg


def test_a_batch_of_a_single_context_has_no_panel_of_curves_and_the_caption_says_so() -> None:
    fig = drawn("micro", "speedup")
    assert "batch 16: a single context, not drawn" in texts(fig)
    assert not any("batch 16" in ax.get_title() for ax in fig.axes)
