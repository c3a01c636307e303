"""The maths suite's tables and rows against numbers computed by hand."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from maths_cases import CPU, record
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.spec import Names, make_spec
from resa_bench.suites.maths import suite
from resa_bench.suites.maths.run import MathsCase
from resa_bench.suites.maths.table import average, figure, print_report, result_rows, scores
from rich.console import Console
from tiny_model import TINY


def test_errors_against_hand_computed_ones() -> None:
    binary = figure([1, 0, 0, 1, 1])
    assert (binary.mean, binary.error) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.6 * 0.4 / 5)))  # binomial
    several = figure([1.0, 0.5, 0.0, 0.5])
    assert several.error == pytest.approx(math.sqrt(0.25 + 0 + 0.25 + 0) / 4)
    both = average([binary, several])
    assert both.mean == pytest.approx(0.55)
    assert both.error == pytest.approx(math.hypot(binary.error, several.error) / 2)


def test_table_and_rows() -> None:
    records = [
        *(record(p, "right" if p in "12" else "wrong", tokens=10) for p in "1234"),
        *(record(p, "right" if p in "1" else "wrong", method="sparse", tokens=30, finished=False) for p in "1234"),
        *(record("1", o, sample=i, set="t") for i, o in enumerate(("right", "timeout"))),
        *(record("1", "right", sample=i, set="t", method="sparse") for i in range(2)),
        record("5", "refused"),
    ]
    by_variant = scores(records)
    names = Names(records)
    assert [names.of(variant) for variant in by_variant] == ["torch-dense", "sparse b16"]
    dense, sparse = by_variant.values()
    assert (dense["s"].accuracy.mean, sparse["s"].accuracy.mean, dense["t"].accuracy.mean) == (0.5, 0.25, 0.5)
    gain = sparse["s"].over(dense["s"])
    assert gain is not None
    assert (gain.mean, gain.error) == (-0.25, pytest.approx(math.sqrt(0.75**2 + 3 * 0.25**2) / 4))
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(records, console)
    printed = " ".join(console.export_text().split())
    assert "4 problems" in printed
    assert "50.0 ± 25.0" in printed
    assert "25.0 ± 21.7" in printed
    assert "1 judging took too long, 1 prompt over the context" in printed
    case = MathsCase("tiny", TINY, 2, 64, dtype="fp32", weights="fp32")
    rows = result_rows(records, case.columns())
    wanted = {("torch-dense", "s", "accuracy"): 0.5, ("sparse", "s", "length"): 30, ("sparse", "s", "finished"): 0}
    values = {(r.method, r.selection_pattern, r.metric): r.value for r in rows}
    assert {key: values[key] for key in wanted} == wanted
    assert {r.n_samples for r in rows if r.selection_pattern == "t"} == {2}


def test_a_name_means_the_same_as_everywhere() -> None:
    """Quest per head with two dense layers, RetroAttention by the group's sum, whatever the command."""
    specs = suite.choose_specs(options(suite.FLAGS, {"method": ("quest", "retro")}), CPU)
    assert specs == [make_spec("quest"), make_spec("retro")]
    assert [spec.config.gqa_policy for spec in specs] == ["per-head", "group-sum"]
    plain = suite.choose_specs(options(suite.FLAGS, {"block_size": (32,)}), CPU)
    assert [spec.label for spec in plain] == ["torch-dense", "sparse b32", "resa-torch b32"]


def test_variants_of_a_method_are_told_apart() -> None:
    both = [replace(record("1"), method="sparse", columns=make_spec("sparse", min_blocks=n).columns()) for n in (8, 16)]
    names = Names(both)
    assert [names[r] for r in both] == ["sparse b16 min8", "sparse b16 min16"]
    assert len({r.key for r in both}) == 2


def test_answers_of_other_code_claim_no_commit() -> None:
    common = MathsCase("tiny", TINY, 2, 12).columns() | {"source": "now", "commit": "c", "dirty": False, "version": "1"}
    sources = {("now", "now"): ("now", "c"), ("now", "then"): ("now+then", None), ("then", "then"): ("then", None)}
    for pair, expected in sources.items():
        rows = result_rows([record(str(i), source=source) for i, source in enumerate(pair)], common)
        assert {(row.source, row.commit) for row in rows} == {expected}


def test_rows_of_another_model_of_the_name_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = MathsCase("tiny", TINY, 2, 12)
    for fingerprint in ("one", "two", "two"):
        monkeypatch.setattr("resa_bench.suites.engine.case.fingerprint_of", lambda model, word=fingerprint: word)
        suite.write_rows(tmp_path / "maths.jsonl", [record("1")], case, CPU, "command")
    rows = read_rows(tmp_path / "maths.jsonl")
    assert sorted({row.model_fingerprint or "" for row in rows}) == ["one", "two"]
    assert len({(row.model_fingerprint, row.case, row.metric) for row in rows}) == len(rows)
