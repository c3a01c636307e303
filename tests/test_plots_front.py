"""Bytes read against quality: the Pareto front, its figure, and its table of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from figure_parts import readable, texts
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import get_method
from resa_bench.plots.data import NotDrawn
from resa_bench.plots.pages.fronts import render_front
from resa_bench.plots.pages.numbers import PlaceError, Sources
from resa_bench.plots.quality_bytes import quality_bytes
from resa_bench.plots.quality_data import QualitySet, quality_sets
from resa_bench.plots.quality_front import least_read, read_points
from resa_bench.plots.style import paper
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row
from test_plots_quality import GROUP_SUM, SCORED, SELECTED, decode_rows, quality_row  # noqa: F401  (a fixture)

PLUS = SELECTED | {"rectify_every": 32, **get_method("resa-plus").defaults}
METHODS: list[tuple[str, dict[str, Any], float, float]] = [  # with KL, and the share read
    ("resa-torch", SCORED | {"rectify_every": 32}, 0.12, 0.197),
    ("resa-torch", SCORED | {"rectify_every": 32, "selector": "pooled"}, 0.07, 0.197),
    ("resa-torch", SCORED | {"rectify_every": 32, "selector": "shared2"}, 0.15, 0.166),
    ("resa-plus", PLUS, 0.013, 0.196),
    ("oracle", SELECTED, 0.009, 0.6),
    ("quest", GROUP_SUM | {"dense_layers": 2}, 0.11, 0.3),
    ("sink-window", SELECTED, 0.2, 0.1),
]
FRONT = ["sink-window", "resa-torch", "resa-plus", "oracle"]


@pytest.fixture
def rows() -> list[Row]:
    rows = [quality_row("torch-dense", {}, metric="loss", step=96, value=2.0)]
    for method, settings, kl, share in METHODS:
        rows.append(quality_row(method, settings, metric="kl", step=96, value=kl, value_error=0.1 * kl))
        rows += [
            quality_row(method, settings, metric="kl_of_text", step=96, value=kl * (1 + sign / 10), stretch=i)
            for i, sign in enumerate((-1, 1))
        ]
        rows.append(quality_row(method, settings, metric="read_share", step=96, value=share))
        rows.append(quality_row(method, settings, metric="loss", step=96, value=2.0 + kl))
    return rows


@pytest.fixture
def quality(rows: list[Row]) -> QualitySet:
    (quality,) = quality_sets(rows)
    return quality


def test_the_front_has_what_nothing_beats_in_both(quality: QualitySet) -> None:
    points = read_points(quality)
    assert [point.variant.method for point in least_read(points)] == FRONT
    assert len(points) == len(METHODS)
    plus = next(point for point in points if point.variant.method == "resa-plus")
    assert plus.kl_error == pytest.approx(0.1 * 0.013)  # of two texts: half their distance


def test_the_figure_names_the_front_and_numbers_the_rest(quality: QualitySet) -> None:
    with paper():
        fig = quality_bytes(quality)
        readable(fig)
    words = [text.get_text() for text in fig.axes[0].texts]
    assert {"ReSA plus b16", "oracle top-k b16", "Quest b16 group-sum", "sink + window b16"} <= set(words)
    assert [word for word in words if word.isdigit()] == ["1"]  # `pooled` is neither on the front nor a first variant
    assert any(word.startswith("1  ReSA (torch)") and word.endswith("pooled") for word in words)
    assert "staircase: Pareto front" in texts(fig)
    (line,) = (line for line in fig.axes[0].lines if line.get_label() == "front")
    assert line.get_drawstyle() == "steps-post"


def test_rows_that_do_not_say_what_is_read_make_no_figure(rows: list[Row]) -> None:
    (quality,) = quality_sets([row for row in rows if row.metric != "read_share"])
    with pytest.raises(NotDrawn, match="read_share"):
        quality_bytes(quality)


def sources(folder: Path, *rows: Row) -> Sources:
    append(folder / "rows.jsonl", list(rows))
    return Sources(folder, {"quality": ["rows.jsonl"]}, {})


def test_the_table_marks_the_front_and_has_speeds(rows: list[Row], decode_rows: list[Row], tmp_path: Path) -> None:  # noqa: F811
    place = {"file": "quality", "case": "quality-small", "speed": "quality"}
    head, _, *lines = render_front(place, sources(tmp_path, *rows, *decode_rows)).splitlines()
    assert "tokens/s, large at 256K" in head
    assert [line for line in lines if "| **" in line] == [lines[0], lines[1], lines[2], lines[-2]]
    assert "| **ReSA plus b16** | 19.6% | **0.013** ± 0.001 |" in lines[2]
    resa = next(line for line in lines if "0.120" in line)
    assert resa.endswith("| 180 |")  # timed as `resa`, whose steps these are
    assert lines[-1].startswith("| dense | 100% | 0 |")


def test_a_table_without_rows(tmp_path: Path, rows: list[Row]) -> None:
    held = sources(tmp_path, *rows)
    assert render_front({"file": "quality", "case": "quality-large", "none": "Not measured."}, held) == "Not measured."
    with pytest.raises(PlaceError, match="no quality rows of case 'quality-large'"):
        render_front({"file": "quality", "case": "quality-large"}, held)
