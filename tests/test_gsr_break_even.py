"""Which phases of GSR run dense steps: predicted before a run, and chosen from its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import Names, make_spec
from resa_bench.suites.gsr import suite
from resa_bench.suites.gsr.break_even import model_of, predict
from resa_bench.suites.gsr.cases import LENGTHS, GsrCase, Segment, script, segments, summary_tokens
from resa_bench.suites.gsr.table import choice_line, choose
from resa_bench.suites.model.config import MODELS

H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"


@pytest.mark.parametrize(
    ("candidates", "weights", "sparse"), [(4, "bf16", False), (16, "bf16", True), (16, "int4", True)]
)
@pytest.mark.parametrize(("device", "folder"), [(H100, "results/h100/"), (H200, "results/h200/")])
def test_committed_rows_choose_dense_steps_below_break_even(
    device: str, folder: str, candidates: int, weights: str, sparse: bool
) -> None:
    """On an H100 four candidates were 0.99x by sparse steps. An answer alone was 0.98x there, and 0.97x on an H200."""
    model, lengths = model_of(device), script(candidates)
    assert model is not None
    summary = min(960, summary_tokens(candidates, 256))
    case = GsrCase("qwen2.5-7b", MODELS["qwen2.5-7b"], lengths, summary=summary, weights=weights)
    resa, dense = make_spec("resa"), make_spec("triton-dense")
    first = predict(model, case, resa, dense, case.prompt, segments(lengths))
    second = predict(model, case, resa, dense, case.refine, [Segment(1, 0, case.answer)])
    assert first is not None
    assert second is not None
    assert (first.pays, second.pays) == (sparse, False)
    assert f"predicted {second.ratio:.2f}x" in second.reason
    assert folder in second.reason


def test_the_plan_says_how_each_phase_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "device_name", lambda device: H100)
    case = GsrCase("qwen2.5-7b", MODELS["qwen2.5-7b"], script(16), summary=360)
    first, second = suite.planned_steps(case, [make_spec("resa")], torch.device("cuda"))
    assert first.startswith("resa b16, candidates: sparse steps, since sparse ones are predicted 1.")
    assert second.startswith("resa b16, answer: dense steps, since sparse ones are predicted 0.")
    assert not suite.planned_steps(replace(case, always_sparse=True), [make_spec("resa")], torch.device("cuda"))
    assert not suite.planned_steps(case, [make_spec("resa-fused")], torch.device("cuda"))


def test_what_has_no_committed_rows_has_no_break_even() -> None:
    assert model_of("a GPU that nobody measured") is None
    model, case = model_of(H100), GsrCase("qwen2.5-7b", MODELS["qwen2.5-7b"], LENGTHS, weights="fp8")
    assert model is not None
    assert predict(model, case, make_spec("resa"), make_spec("triton-dense"), 256, segments(LENGTHS)) is None


def gsr_rows(sparse_candidates_s: float, sparse_refine_s: float) -> list[Row]:
    """Of one case: dense takes 100 s and 50 s, and 10 s of prefills."""
    shape: dict[str, Any] = {"context": 4096, "batch": 4, "q_heads": 4, "kv_heads": 1, "head_dim": 64}
    rows = []
    for method, times in (("sdpa-cudnn", (100.0, 50.0)), ("resa", (sparse_candidates_s, sparse_refine_s))):
        for stage, seconds in zip(("candidates", "refine", "answer"), (*times, sum(times) + 10), strict=True):
            rows.append(
                Row(
                    suite="gsr",
                    model="m",
                    case="c",
                    method=method,
                    stage=stage,
                    value=seconds,
                    median_us=1.0,
                    mean_us=1.0,
                    status="ok",
                    **shape,
                )
            )
    return rows


@pytest.mark.parametrize(
    ("times", "sparse", "seconds", "words"),
    [
        ((101.0, 40.0), ("refine",), 150.0, "1.07x as early as all dense"),
        ((80.0, 40.0), ("candidates", "refine"), 130.0, "1.23x as early as all dense"),
        ((99.0, 50.0), (), 160.0, "all dense"),
    ],
)
def test_a_phase_is_dense_where_sparse_does_not_pay(
    times: tuple[float, float], sparse: tuple[str, ...], seconds: float, words: str
) -> None:
    rows = gsr_rows(*times)
    chosen = choose(rows)
    assert chosen is not None
    assert chosen.sparse == sparse
    assert chosen.seconds == seconds
    line = choice_line(rows, Names(rows))
    assert line is not None
    assert words in line
    assert ("for the candidates sdpa-cudnn" in line) is ("candidates" not in sparse)
    assert choose(rows[:3]) is None


def test_the_committed_candidates_stay_dense_where_sparse_is_slower() -> None:
    rows = read_rows(Path(__file__).resolve().parents[1] / "results" / "h200" / "gsr.jsonl.gz")
    cases = {row.case: [r for r in rows if r.case == row.case] for row in rows}
    chosen = [choose(own) for own in cases.values()]
    assert any(chosen)
    for choice in filter(None, chosen):
        for phase, ratio in choice.ratios.items():
            assert (phase in choice.sparse) is (ratio >= 1.02)
