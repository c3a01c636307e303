"""The report's page: its payload from rows, its size and escaping, the command, and the page after a bench."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_rows
from report_rows import HARM, kernels, model, timed, value
from resa_bench.plots.report import page
from resa_bench.plots.report.page import ASSETS, SCRIPTS, as_data, render, write_report
from resa_bench.plots.report.payload import payload
from resa_bench.plots.report.runs import read_runs
from resa_bench.plots.report.timed import bar_parts, own_rival, ratio_interval, setting_of
from resa_bench.plots.report.values import summary
from resa_bench.suites import cli
from resa_bench.suites.cli import main
from resa_bench.suites.core.results import append
from resa_bench.suites.core.rows import Row, to_record

ROOT = Path(__file__).parent.parent
MEGABYTE = 1_000_000


class Elements(HTMLParser):
    """Tags of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag in self.inner:
            self.inner[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in self.inner:
            self.inner[self.inside][-1] += data


def made(tmp_path: Path, *rows: Row) -> dict[str, Any]:
    """The payload of one run of these rows."""
    append(tmp_path / "run" / "rows.jsonl", rows)
    return payload([tmp_path / "run"])


def column(data: dict[str, Any], name: str) -> list[float | None]:
    return [float(word) if word else None for word in data["rows"][name].split(",")]


@pytest.mark.slow
def test_the_committed_results_make_a_page_under_a_megabyte(tmp_path: Path) -> None:
    output = write_report([ROOT / "results/h200", ROOT / "results/cpu"], tmp_path / "report.html")
    text = output.read_text(encoding="ascii")
    assert 200_000 < len(text) < MEGABYTE
    data = json.loads(Elements(text).inner["script"][0])
    assert {"micro", "decode", "quality", "tasks"} <= set(data["suites"])
    assert data["trades"]
    assert data["timelines"]
    assert set(re.findall(r"https?://[^\s\"'`<>]*", text.replace("\\u003c", "<"))) <= {"http://www.w3.org/2000/svg"}


def test_harmful_rows_stay_data(tmp_path: Path) -> None:
    text = render(payload(report_rows.write(tmp_path)))
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in elements.tags}
    assert "<img" not in text
    data = json.loads(elements.inner["script"][0])
    assert HARM in data["cases"]
    assert HARM in {entry["reason"] for entry in data["untimed"]}


def test_data_ends_no_element_and_keeps_its_words() -> None:
    words = ["</script>", "<!--", "]]>", "&amp;", "\u2028", "\ud800", "{{script}}"]
    text = as_data(words)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == words


def test_a_row_cannot_name_a_slot(tmp_path: Path) -> None:
    text = render(made(tmp_path, timed("micro", "resa", "total", 4096, 20.0, case="{{script}}{{policy}}")))
    assert json.loads(Elements(text).inner["script"][0])["cases"] == ["{{script}}{{policy}}"]


def test_the_policy_allows_this_script_and_no_request(tmp_path: Path) -> None:
    elements = Elements(render(payload(report_rows.write(tmp_path))))
    (policy,) = [a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == "'none'"
    for name, text in (("script-src", elements.inner["script"][1]), ("style-src", elements.inner["style"][0])):
        assert rules[name] == "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
    outside = {name for _, attributes in elements.tags for name in attributes} & {"src", "srcset", "action", "style"}
    assert not outside
    assert all(str(a["href"]).startswith("#") for _, a in elements.tags if "href" in a)


def test_the_script_makes_no_markup_of_text() -> None:
    names = {file.name for file in ASSETS.glob("*.js")}
    assert names == set(SCRIPTS)
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|fetch\(|XMLHttp|import\("
    assert not [name for name in names if re.search(unsafe, (ASSETS / name).read_text())]


def test_assets_are_packaged() -> None:
    (declared,) = re.findall(r"^DATA = (\[.*\])$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert "assets/*" in json.loads(declared)


@pytest.mark.parametrize(
    "columns", [pytest.param({"schema": 99, "later_column": 5}, id="later"), pytest.param({}, id="first")]
)
def test_rows_of_other_versions(tmp_path: Path, columns: dict[str, Any]) -> None:
    """Version 1 had no `schema`; a later one may have columns that this one does not know."""
    records = [{k: v for k, v in to_record(row).items() if k != "schema"} | columns for row in kernels()]
    file = tmp_path / "old.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    data = payload([file])
    assert data["runs"][0]["schemas"] == [columns.get("schema", 1)]
    assert len(column(data, "time")) == len(kernels()) - 1
    assert render(data)


def test_ratios_are_the_rows_own_with_what_both_intervals_leave(tmp_path: Path) -> None:
    data = made(tmp_path, *kernels())
    names = [data["variants"][int(v or 0)]["name"] for v in column(data, "variant")]
    stages = [data["stages"][int(s or 0)]["name"] for s in column(data, "stage")]
    (row,) = [
        i
        for i, (name, stage) in enumerate(zip(names, stages, strict=True))
        if name.startswith("ReSA") and stage == "total_amortised" and column(data, "context")[i] == 262144
    ]
    assert column(data, "ratio")[row] == pytest.approx(3.0)
    assert column(data, "least")[row] == pytest.approx(3.0 * 0.995 / 1.005, rel=1e-3)
    assert column(data, "most")[row] == pytest.approx(3.0 * 1.005 / 0.995, rel=1e-3)
    assert data["variants"][int(column(data, "rival")[row] or 0)]["name"] == "cuDNN (SDPA)"


def test_a_ratio_to_another_runs_time_has_no_interval() -> None:
    """The best dense row was measured again since: its interval says nothing of the ratio that the row has."""
    own = timed("micro", "resa", "total", 4096, 20.0, speedup_vs_best_dense=1.25, best_dense="sdpa-cudnn")
    rival = timed("micro", "sdpa-cudnn", "total", 4096, 25.0)
    assert own_rival(own, [rival]) is rival
    later = timed("micro", "sdpa-cudnn", "total", 4096, 26.0)
    assert own_rival(own, [later]) is None
    assert ratio_interval(own, None) == (None, None)
    assert ratio_interval(replace(own, ci_low_us=None), rival) == (None, None)


def test_a_step_counts_once_with_its_rectification(tmp_path: Path) -> None:
    data = made(tmp_path, *kernels())
    stages = [data["stages"][int(s or 0)]["name"] for s in column(data, "stage")]
    whole = list(zip(stages, column(data, "whole"), column(data, "usual"), strict=True))
    assert {kind for stage, kind, _ in whole if stage == "total_amortised"} == {2.0}
    assert sum(kind == 1.0 for stage, kind, shown in whole if stage == "total" and shown) == len(report_rows.CONTEXTS)
    assert {shown for stage, _, shown in whole if stage == "select"} == {1.0}


def test_a_matrix_product_is_no_step(tmp_path: Path) -> None:
    product = timed("linear", "torch", "total", 0, 9.0, selection_pattern=None)
    data = made(tmp_path, product, timed("micro", "sdpa-cudnn", "total", 4096, 25.0))
    assert column(data, "whole") == [0.0, 2.0]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        pytest.param({}, "int4 weights", id="usual"),
        pytest.param({"client": "transformers"}, "int4 weights, inside transformers", id="client"),
        pytest.param({"products": "best"}, "int4 weights, best products", id="products"),
        pytest.param({"kv_dtype": "fp8"}, "int4 weights, fp8 K/V", id="kv-dtype"),
        pytest.param({"dtype": "fp16"}, "int4 weights, fp16", id="dtype"),
        pytest.param({"shared_kv": True}, "int4 weights, shared K/V", id="shared"),
        pytest.param({"selection_pattern": "ragged"}, "int4 weights, ragged", id="ragged"),
        pytest.param({"case": "decode-m-t0.6-p0.95"}, "int4 weights, t 0.6, p 0.95", id="sampled"),
    ],
)
def test_rows_of_different_cases_share_no_line(columns: dict[str, Any], words: str) -> None:
    row = timed("decode", "resa", "total", 4096, 20.0, **{"weight_dtype": "int4", **columns})
    assert setting_of(row, with_heads=False) == words


def test_bars_take_fused_parts_before_single_ones() -> None:
    step = [row for row in kernels() if row.method == "resa" and row.context == 4096 and row.launch == "graph"]
    assert {row.stage for row in bar_parts(step)} == {"append+score", "select", "attend"}
    whole = [row for row in model() if row.method == "resa" and row.context == 4096]
    assert {row.stage for row in bar_parts(whole)} == {"project", "attend", "ffn", "gap"}


def test_means_are_weighted_and_curves_kept() -> None:
    steps = [value("resa", "kl", 32, 0.1, n_samples=30), value("resa", "kl", 64, 0.4, n_samples=10)]
    assert summary(steps) == {"mean": 0.175, "samples": 40, "curve": [[32, 0.1], [64, 0.4]], "over": "step"}
    by_head = [value("resa", "recall", 512, share, layer=0, head=head) for head, share in enumerate((0.5, 0.7))]
    assert summary(by_head)["mean"] == 0.6
    accepted = [value("resa", "acceptance", step, 0.5, suite="lossless") for step in (0, 1)]
    assert summary(accepted)["mean"] is None, "a histogram has no mean"
    needle = [value("resa", "needle", None, 0.5, suite="tasks")]
    needle += [value("resa", "needle", None, depth, suite="tasks", depth=depth) for depth in (0.1, 0.9)]
    assert summary(needle)["mean"] == 0.5
    assert summary(needle)["over"] == "depth"


def test_files_of_a_folder_are_one_run_unless_they_hold_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    append(folder / "micro.jsonl", kernels())
    append(folder / "decode.jsonl", model())
    assert [run.label for run in read_runs([folder])] == ["folder"]
    append(folder / "again.jsonl", kernels(21.0))
    runs = {run.label: run.files for run in read_runs([folder])}
    assert runs == {"folder": ("again.jsonl", "decode.jsonl"), "micro": ("micro.jsonl",)}
    other = tmp_path / "there" / "folder"
    append(other / "decode.jsonl", model())
    labels = [run.label for run in read_runs([folder / "decode.jsonl", other])]
    assert len(set(labels)) == 2
    assert not any(str(tmp_path) in label for label in labels), "a label names no more of a path than it must"


def test_two_runs_are_compared_in_the_order_given(tmp_path: Path) -> None:
    paths = report_rows.write(tmp_path)
    (there,) = payload(paths)["comparisons"]
    (back,) = payload(paths[::-1])["comparisons"]
    assert {verdict for _, _, verdict, _ in there["pairs"]} == {0, 3}
    slower = [ratio for _, _, verdict, ratio in there["pairs"] if verdict == 0]
    assert slower == pytest.approx([1.2] * len(slower))
    assert [there["exit_code"], back["exit_code"]] == [1, 0]
    assert {verdict for _, _, verdict, _ in back["pairs"]} == {1, 3}


def test_traces_beside_the_rows_become_timelines(tmp_path: Path) -> None:
    (trace,) = payload(report_rows.write(tmp_path))["timelines"]
    (step,) = trace["passes"]
    assert (step["kind"], step["graph"], step["stages"]) == ("step", True, ["score", "attend"])
    assert step["bars"][1] == [1, 1, 4.0, 7.0]


def test_the_command_says_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path / "a" / "micro.jsonl", kernels())
    assert main(["report", str(tmp_path / "a" / "micro.jsonl")]) == 0
    assert (tmp_path / "a" / "report.html").is_file()
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").is_file()
    assert "report " in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no result file at", id="no-file"),
        pytest.param("", "no rows in", id="empty"),
        pytest.param('{"a": 1}\n', "not a result row", id="no-row"),
    ],
)
def test_what_is_no_result_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["report", str(file), "-o", str(tmp_path / "report.html")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "report.html").exists()


def bench(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> int:
    """The main job, whose halves only write their rows."""

    def act(suite: Any, given: dict[str, Any], console: Any) -> int:
        append(folder / f"{suite.name}.jsonl", kernels() if suite.name == "micro" else model())
        return 0

    monkeypatch.setattr(cli, "act_suite", act)
    return main(["bench", "--device", "cpu", "--output", str(folder), *more])


def test_a_bench_ends_with_the_page_of_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(monkeypatch, tmp_path) == 0
    data = json.loads(Elements((tmp_path / "report.html").read_text()).inner["script"][0])
    assert sorted(data["suites"]) == ["decode", "micro"]


@pytest.mark.parametrize("flag", ["--no-plots", "--plan"])
def test_a_bench_without_figures_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    assert bench(monkeypatch, tmp_path, flag) == 0
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(data: dict[str, Any]) -> str:
        raise RuntimeError("no room\non this disk")

    monkeypatch.setattr(page, "render", broken)
    assert bench(monkeypatch, tmp_path) == 0
    assert "no report: RuntimeError: no room on this disk" in capsys.readouterr().out
    assert (tmp_path / "micro.jsonl").stat().st_size > 0
