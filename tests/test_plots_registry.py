"""Figures registered from outside the package, and the files that figures are written to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from resa_bench.plots import registry
from resa_bench.plots.figures import draw_all
from resa_bench.plots.registry import figure, figure_sets, figures_of, slug, slugs
from resa_bench.suites.core.plugins import VARIABLE, load_plugins
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row

MODULE = '''
"""A figure of the micro suite, and a suite of its own with one."""
from dataclasses import dataclass
from matplotlib.figure import Figure
from resa_bench.plots.registry import figure, figure_sets


@figure("own-bars", suite="micro")
def own_bars(figures):
    """Bars."""
    fig = Figure()
    fig.subplots().bar(range(len(figures.rows)), [row.median_us for row in figures.rows])
    return fig


@dataclass
class OwnSet:
    slug: str
    rows: list


@figure_sets("own", needs="rows of suite 'own'")
def own_sets(rows):
    """One set."""
    own = [row for row in rows if row.suite == "own"]
    return [OwnSet(own[0].model, own)] if own else []


@figure("own-lines", suite="own")
def own_lines(own_set):
    """A line."""
    fig = Figure()
    fig.subplots().plot([row.value for row in own_set.rows])
    return fig
'''


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.discover()
    monkeypatch.setattr(registry, "_figures", dict(registry._figures))
    monkeypatch.setattr(registry, "_makers", dict(registry._makers))


def row(context: int = 8192, **columns: object) -> Row:
    common: dict[str, object] = {
        "suite": "micro", "model": "m", "case": f"m-{context}", "method": "resa", "stage": "total", "context": context,
        "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 64, "cache_state": "cold", "launch": "graph",
        "status": "ok", "median_us": 10.0, "block_size": 16, "device": "GPU",
    }  # fmt: skip
    return Row(**(common | columns))  # type: ignore[arg-type]


def test_figures_and_suites_of_ones_own_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures_of_ones_own.py").write_text(MODULE)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "figures_of_ones_own.py"))
    load_plugins()
    append(tmp_path / "a.jsonl", [row(), row(suite="own", median_us=None, value=1.0, metric="x")])
    names = {path.name for path in draw_all([tmp_path / "a.jsonl"], tmp_path / "out")}
    assert {"own-bars-m.png", "own-bars-m.svg", "own-lines-m.png"} <= names


def test_a_name_is_taken_once() -> None:
    assert "speedup" in figures_of("micro")
    with pytest.raises(ValueError, match="'speedup' is there already"):
        figure("speedup", suite="micro")(lambda _: None)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="'micro'"):
        figure_sets("micro", needs="")(lambda _: [])


@pytest.mark.parametrize("words", ["../../x", "/etc/x", "..", "a\\..\\x", "~/x"])
def test_a_slug_names_no_other_folder(words: str) -> None:
    assert not set(slug(words)) & set("/\\~")
    assert not slug(words).startswith(".")


@pytest.mark.slow
def test_rows_write_into_the_output_folder_alone(tmp_path: Path) -> None:
    rows = [row(c, model="../../x") for c in (8192, 16384)]
    rows += [replace(r, model="../../X") for r in rows]
    value = row(suite="quality", case="../../../y", metric="kl", value=1.0, step=1, median_us=None)
    rows += [replace(value, step=step, rectify_every=every) for step in (1, 2) for every in (1, 16, 32)]  # type: ignore[call-arg]
    folder = tmp_path / "a" / "b" / "out"
    append(tmp_path / "a.jsonl", rows)
    written = draw_all([tmp_path / "a.jsonl"], folder)
    assert {path.parent for path in written} == {folder}
    assert len({path.name for path in written}) == len(written)  # two models of one slug
    assert {"latency-x.png", "latency-x-2.png", "quality-methods-y.png"} <= {path.name for path in written}
    assert sorted(p for p in tmp_path.rglob("*.png") if folder not in p.parents) == []


def test_slugs_name_what_differs() -> None:
    assert slugs([("Qwen 2.5", "H100", "bf16"), ("Qwen 2.5", "A100", "bf16"), ("other", "H100", "fp16")]) == [
        "qwen-2.5-h100",
        "qwen-2.5-a100",
        "other",
    ]
