"""Pages made from rows: what a place may say, what filling in writes, and what the check finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from resa_bench.plots.pages import drawn
from resa_bench.plots.pages.__main__ import docs
from resa_bench.plots.pages.marks import Places, differing, fill
from resa_bench.plots.pages.numbers import PlaceError, Sources, fitting, frame_of, write
from resa_bench.plots.pages.pages import check_pages, fill_pages, pages, read_places
from resa_bench.plots.pages.prose import unmarked
from resa_bench.plots.pages.runs import NO_MANIFEST, NOT_MEASURED, ONE_CHIP, render_run, render_spread
from resa_bench.plots.pages.tables import THROTTLED, render
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import SCHEMA, Row, from_record

ROOT = Path(__file__).parent.parent
PLACES = """
[files]
micro = ["later.jsonl", "rows.jsonl"]

[conditions]
whole = "stage == 'total'"

[value.resa]
file = "micro"
where = "$whole and method == 'resa'"
form = "{speedup_vs_best_dense:.2f}x"
"""


def row(method: str, median_us: float | None = 10.0, **columns: Any) -> Row:
    shape = {"context": 4096, "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "model": "none"}
    shape |= {"suite": "micro", "case": "c", "stage": "total", "status": "ok", "commit": "a" * 40,
              "schema": SCHEMA}  # fmt: skip
    return from_record({**shape, "method": method, "median_us": median_us, **columns})[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project: one file of rows, one place, one page."""
    frame_of.cache_clear()
    fitting.cache_clear()
    rows = [row("dense", 20.0), row("resa", speedup_vs_best_dense=2.0), row("resa", 3.0, stage="score")]
    append(tmp_path / "rows.jsonl", rows)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/places.toml").write_text(PLACES)
    (tmp_path / "constraints.txt").write_text("")
    (tmp_path / "README.md").write_text("It is <!-- value resa --><!-- / --> as fast.\n")
    return tmp_path


def sources(root: Path) -> Sources:
    return read_places(root).sources


def place(**entry: Any) -> dict[str, Any]:
    return {"file": "micro", "where": "$whole and method == 'resa'", "form": "{median_us:.1f}", **entry}


RATIO = {"ratio": "dense_median_us / median_us"}

# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (place(), "10.0"),
        (place(form="{short_commit} {kilotokens:.0f}K"), "aaaaaaa 4K"),
        (place(let={"ms": "median_us / 1000"}, form="{ms:.2f} ms"), "0.01 ms"),
        (place(beside={"dense": "$whole and method == 'dense'"}, let=RATIO, form="{ratio:.1f}"), "2.0"),
        (place(where="$whole", take="any", form="{count:.0f}: {method}"), "2: dense, resa"),
        (place(where="$whole", take="mean"), "15.0"),
        (place(where="method == 'nobody'", none="-"), "-"),
    ],
    ids=["column", "derived", "let", "beside", "any", "mean", "none"],
)  # fmt: skip
def test_what_a_number_may_say(root: Path, entry: dict[str, Any], text: str) -> None:
    assert write(entry, sources(root)) == text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (place(where="method == 'resa'"), "2 rows fit, expected one; they differ in .*stage"),
        (place(where="method == 'nobody'"), "no row of later.jsonl, rows.jsonl fits"),
        (place(file="nothing"), "no entry of .files.; known are micro"),
        (place(where="$nothing"), "no entry of .conditions."),
        (place(where="no_column == 1"), "cannot ask rows.jsonl"),
        (place(form="{no_column}"), "form '{no_column}'"),
        (place(form="{p99_us:.1f}"), "the rows lack that column"),
        (place(take="best"), "unknown; known are one, mean"),
        (place(let={"x": "__import__('os')"}), "let x"),
    ],
)
def test_what_a_number_may_not_say(root: Path, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(PlaceError, match=words):
        write(entry, sources(root))


def test_the_first_file_that_has_the_row_counts(root: Path) -> None:
    append(root / "later.jsonl", [row("resa", 7.0)])
    assert write(place(), sources(root)) == "7.0"
    assert write(place(where="$whole and method == 'dense'"), sources(root)) == "20.0"


def test_break_even_is_of_several_contexts(root: Path) -> None:
    rows = [row("r", speedup_vs_best_dense=s, context=c, case=str(c)) for c, s in ((1024, 0.5), (4096, 2.0))]
    append(root / "later.jsonl", [*rows, row("always", speedup_vs_best_dense=2.0)])
    entry = place(where="method == 'r'", take="crossing", form="{bound}{tokens:.0f}", none="-")
    assert 1024 < int(write(entry, sources(root))) < 4096
    assert write({**entry, "where": "method == 'always'"}, sources(root)) == "-"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table(root: Path) -> None:
    append(root / "later.jsonl", [row("hot", 5.0, status="throttled", reason="power")])
    table = {
        "file": "micro", "where": "$whole", "first": "us", "none": "-",
        "columns": [{"head": "4K", "of": "context == 4096", "form": "{median_us:.1f}"}],
        "rows": [["ReSA", "method == 'resa'"], ["hot", "method == 'hot'"], ["nobody", "method == 'nobody'"]],
    }  # fmt: skip
    text = render(table, sources(root))
    assert text.splitlines() == [
        "| us | 4K |", "|---|---|", "| ReSA | 10.0 |", "| hot | 5.0 † |", "| nobody | - |", "", THROTTLED,
    ]  # fmt: skip
    assert render({**table, "rows": table["rows"][2:], "empty": "Nothing yet."}, sources(root)) == "Nothing yet."
    with pytest.raises(PlaceError, match="row 'ReSA', column '4K': form"):
        render({**table, "columns": [{"head": "4K", "form": "{nothing}"}]}, sources(root))


# --- pages ------------------------------------------------------------------------------------------------------------


def test_filling_in_and_checking(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs(["--check", "--root", str(root)]) == 1
    assert "value resa: the page has '', the rows give '2.00x'" in capsys.readouterr().err
    assert docs(["--root", str(root)]) == 0
    assert (root / "README.md").read_text() == "It is <!-- value resa -->2.00x<!-- / --> as fast.\n"
    assert docs(["--check", "--root", str(root)]) == 0


def test_a_new_row_shows(root: Path) -> None:
    fill_pages(read_places(root))
    append(root / "later.jsonl", [row("resa", speedup_vs_best_dense=3.0)])
    assert check_pages(read_places(root)) == ["README.md: value resa: the page has '2.00x', the rows give '3.00x'"]


def test_places_that_are_not_there_are_all_named(root: Path) -> None:
    (root / "README.md").write_text("<!-- value nothing --><!-- / --> and <!-- graph x --><!-- / -->")
    with pytest.raises(PlaceError) as error:
        fill_pages(read_places(root))
    assert "has no [value.nothing]" in str(error.value)
    assert "graph x: unknown kind; known are value, table, front, figure" in str(error.value)
    assert docs(["--check", "--root", str(root)]) == 2


def test_differing_shows_both_texts(root: Path) -> None:
    places = read_places(root)
    old = "<!-- value resa -->1.00x<!-- / --> <!-- fixed -->9x<!-- / -->"
    new = fill(old, places, root / "README.md")
    assert differing(old, new) == ["value resa: the page has '1.00x', the rows give '2.00x'"]


@pytest.mark.parametrize("number", ["2.28x", "14 us", "3 ms", "545.2 tokens/s", "12 %", "80%", "1.1 J", "3020 GB/s"])
def test_numbers_in_prose_are_found(number: str) -> None:
    assert unmarked(f"first line\nIt takes {number}, as said.") == [(2, number)]
    assert unmarked(f"`{number}` and <!-- fixed -->{number}<!-- / -->, [{'x'}](a/{number.replace(' ', '')})") == []
    assert unmarked(f"```\n{number}\n```") == []


@pytest.mark.parametrize("text", ["Qwen2.5-7B at 256K", "b = 16", "2 x 4", "Python 3.11", "8 us-like", "fp8x"])
def test_other_numbers_are_none_of_the_rules(text: str) -> None:
    assert [number for _, number in unmarked(text)] in ([], ["2 x"], ["8 us"])


# --- manifests and spreads --------------------------------------------------------------------------------------------


def test_where_a_run_came_from(tmp_path: Path) -> None:
    assert render_run(tmp_path / "nothing") == NOT_MEASURED
    assert render_run(tmp_path) == NO_MANIFEST
    part = {"commit": "b" * 40, "file": "micro.jsonl.gz", "rows": 3, "minutes": 4.71, "status": "ok", "command": "c"}
    chip = {"name": "NVIDIA H100", "multiprocessors": 132, "clusters": {"16": 7}}
    record = {"chips": [chip], "versions": {"torch": "9"}, "parts": {"micro": part}, "minutes": 4.71}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    text = render_run(tmp_path)
    assert "NVIDIA H100, 132 multiprocessors, 7 clusters of 16 CTAs at once" in text
    assert "| micro | `micro.jsonl.gz` | 3 | 4.7 | ok | `c` |" in text
    record["parts"] = {str(i): part | {"commit": c * 40} for i, c in enumerate("bdacb")}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    assert f"Commit {', '.join(c * 10 for c in 'bdac')}." in render_run(tmp_path), "in the order of the parts"
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PlaceError, match="not a manifest"):
        render_run(tmp_path)


def test_the_spread_of_two_folders(tmp_path: Path) -> None:
    for name, median_us in (("one", 10.0), ("two", 12.0)):
        append(tmp_path / name / "micro.jsonl", [row("resa", median_us, launch="graph")])
        (tmp_path / name / "manifest.json").write_text("{}")
    assert "| micro | whole steps | 1 | 20.0 % | 20.0 % | 20.0 % | c resa total |" in render_spread(
        [tmp_path / "one", tmp_path / "two"]
    )
    assert render_spread([tmp_path / "one", tmp_path / "three"]) == ONE_CHIP


# --- figures ----------------------------------------------------------------------------------------------------------


def fake_draw(result_paths: list[Path], out_dir: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(1, 1))
    fig.add_subplot().plot([sum(path.stat().st_size for path in result_paths), 1])
    fig.savefig(out_dir / "a.png", dpi=40)
    plt.close(fig)
    return [out_dir / "a.png"]


def test_figures_are_what_the_rows_give(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "draw_all", fake_draw)
    entry = {"folder": "plots", "from": ["rows.jsonl", "not-there.jsonl"]}
    (root / "plots").mkdir()
    assert drawn.faults(entry, root) == ["plots: has no figures.json; nox -s docs draws the figures and writes it"]
    assert drawn.draw(entry, root) == [root / "plots/a.png"]
    assert drawn.faults(entry, root) == []
    assert drawn.redrawn_faults(entry, root) == []
    append(root / "rows.jsonl", [row("new")])
    assert drawn.faults(entry, root) == ["plots: the rows have changed since the figures were drawn"]
    drawn.draw(entry, root)
    (root / "plots/a.png").write_bytes((root / "plots/a.png").read_bytes() + b"x")
    assert drawn.faults(entry, root) == ["plots/a.png: not the file that was drawn"]
    assert drawn.redrawn_faults(entry, root) == []  # looks alike


def test_code_that_draws_otherwise_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "draw_all", fake_draw)
    entry = {"folder": "plots", "from": ["rows.jsonl"]}
    drawn.draw(entry, root)

    def otherwise(result_paths: list[Path], out_dir: Path) -> list[Path]:
        import matplotlib.pyplot as plt

        fig = plt.figure(figsize=(1, 1), facecolor="black")
        fig.savefig(out_dir / "a.png", dpi=40)
        plt.close(fig)
        return [out_dir / "a.png"]

    monkeypatch.setattr(drawn, "draw_all", otherwise)
    assert drawn.redrawn_faults(entry, root) == ["plots/a.png: not what the rows and the code give"]


def test_the_pinned_version_is_read(tmp_path: Path) -> None:
    import matplotlib

    (tmp_path / "constraints.txt").write_text(f"numpy==1\nmatplotlib=={matplotlib.__version__}\n")
    assert drawn.is_pinned(tmp_path)
    (tmp_path / "constraints.txt").write_text("matplotlib==0.1\n")
    assert not drawn.is_pinned(tmp_path)


# --- this project's own pages -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Places:
    return read_places(ROOT)


@pytest.mark.slow
def test_our_pages_say_what_the_rows_say(own: Places) -> None:
    """`nox -s docs` mends this."""
    assert check_pages(own) == []


def test_our_figures_are_what_the_rows_give(own: Places) -> None:
    """`nox -s docs` mends this."""
    sets = own.entries["figures"].values()
    stamped = [entry for entry in sets if (ROOT / entry["folder"] / drawn.STAMP).is_file()]
    assert [fault for entry in stamped for fault in drawn.faults(entry, ROOT)] == []


def test_every_place_is_used(own: Places) -> None:
    texts = "".join(page.read_text() for page in pages(ROOT))
    unused = [
        f"{kind}.{name}"
        for kind, entries in own.entries.items()
        if kind not in ("files", "conditions", "figures")
        for name in entries
        if f"<!-- {kind} {name} -->" not in texts
    ]
    assert unused == []
