"""Advice: predicted from committed rows, judged by rows that it did not see."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from resa_bench.suites import cli
from resa_bench.suites.advise import answer as answer_module
from resa_bench.suites.advise import command, evidence
from resa_bench.suites.advise.answer import Advisor, Answer
from resa_bench.suites.advise.evidence import Measured, available_gpus, gpu_memory, read_measured
from resa_bench.suites.advise.fit import Curve, fit_nonnegative
from resa_bench.suites.advise.model import PARTS, StepModel, Unpredictable
from resa_bench.suites.advise.validate import judge, level_of, quantile_of
from resa_bench.suites.core.flags import K
from resa_bench.suites.core.report import BreakEven
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.spec import make_spec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.model.config import MODELS

MOST_MEDIAN_ERROR = 0.10


@pytest.fixture(scope="module")
def measured() -> list[Measured]:
    return read_measured("h100")


@pytest.fixture(scope="module")
def advisor(measured: list[Measured]) -> Advisor:
    return Advisor(measured)


def case(batch: int, context_k: int, weights: str = "int4", model: str = "qwen2.5-7b") -> DecodeCase:
    return DecodeCase(model, MODELS[model], batch, context_k * K, weights)


def test_the_median_error_of_unseen_cases_is_under_ten_per_cent(advisor: Advisor) -> None:
    errors = advisor.errors("case")
    assert errors.unpredicted == 0
    assert len(errors.judged) == len(advisor.measured) >= 100
    assert quantile_of(errors.times, 0.5) < MOST_MEDIAN_ERROR
    assert quantile_of(errors.ratios, 0.5) < MOST_MEDIAN_ERROR


@pytest.mark.parametrize("gpu", available_gpus())
def test_every_published_gpu_is_predicted(gpu: str) -> None:
    """Also where some rows are of weights that no run has broken down into stages."""
    measured = read_measured(gpu)
    staged = {m.case.weights for m in measured if m.stages_us}
    if not staged:
        pytest.skip("its rows hold no stages")
    errors = Advisor(measured).errors("case")
    assert errors.unpredicted == sum(m.case.weights not in staged for m in measured)
    assert quantile_of(errors.times, 0.5) < MOST_MEDIAN_ERROR
    assert quantile_of(errors.ratios, 0.5) < MOST_MEDIAN_ERROR


def test_a_case_is_predicted_without_its_own_rows(measured: list[Measured]) -> None:
    measured = [m for m in measured if m.case.weights == "bf16"]
    slug = measured[0].case.slug
    own = [m for m in measured if m.case.slug == slug]
    slowed = [replace(m, row=replace(m.row, mean_us=10 * m.us)) if m in own else m for m in measured]
    judged = [{j.measured.case.slug: j.predicted_us for j in judge(rows).judged} for rows in (measured, slowed)]
    assert judged[0][slug] == judged[1][slug]
    assert any(judged[0][other] != judged[1][other] for other in judged[0])


def test_a_model_is_predicted_without_its_rows(advisor: Advisor) -> None:
    errors = advisor.errors("model")
    assert {j.measured.case.config.name for j in errors.judged} == {"llama-3.1-70b-rank-of-8"}
    assert quantile_of(errors.times, 0.5) < MOST_MEDIAN_ERROR


@pytest.mark.parametrize(
    ("model", "batch", "level"), [("qwen2.5-7b", 4, "case"), ("qwen2.5-7b", 32, "batch"), ("qwen3-8b", 1, "model")]
)
def test_the_band_is_judged_by_what_was_measured(measured: list[Measured], model: str, batch: int, level: str) -> None:
    assert level_of(measured, model, batch) == level


def test_the_band_is_that_of_the_errors(advisor: Advisor) -> None:
    answer = advisor.answer(case(1, 128))
    errors = advisor.errors("case")
    inside = sum(answer.dense.tokens_per_s / answer.dense.low >= pow(2.718281828459045, e) for e in errors.times)
    assert inside / len(errors.times) >= 0.9
    assert answer.low < answer.speedup < answer.high


def test_parts_sum_to_the_step(advisor: Advisor) -> None:
    prediction = advisor.model.predict(case(8, 32), make_spec("resa"))
    assert set(prediction.parts_us) == set(PARTS)
    assert prediction.us == pytest.approx(sum(prediction.parts_us.values()) * prediction.correction)
    assert prediction.support
    assert all(m.source.startswith("results/h100/") and ", commit " in m.source for m in prediction.support)


def test_more_work_takes_longer(advisor: Advisor) -> None:
    def us(batch: int, context_k: int, name: str = "resa") -> float:
        return sum(advisor.model.parts_us(case(batch, context_k), make_spec(name)).values())

    assert us(1, 8) < us(1, 32) < us(1, 256)
    assert us(1, 32) < us(8, 32) < us(64, 32)
    assert us(1, 256, "sdpa-cudnn") > us(1, 256)


@pytest.mark.parametrize(
    ("batch", "context_k", "words"),
    [
        (1, 256, "1 sequence of 256K tokens, int4 weights: yes, resa-fused b16 pays"),
        (1, 2, "1 sequence of 2K tokens, int4 weights: no, stay dense"),
        (64, 256, "64 sequences of 256K tokens, int4 weights: does not fit"),
    ],
)
def test_the_verdict_is_one_sentence(advisor: Advisor, batch: int, context_k: int, words: str) -> None:
    verdict = advisor.answer(case(batch, context_k)).verdict
    assert verdict.startswith(words)
    assert verdict.endswith(".")


@pytest.fixture(scope="module")
def h200() -> list[Measured]:
    return read_measured("h200")


@pytest.mark.parametrize(("batch", "fits"), [(1, True), (32, False)])
def test_an_h200_s_memory_is_its_manifest_s(h200: list[Measured], batch: int, fits: bool) -> None:
    """Its name, unlike an H100's, says no GB."""
    answer = Advisor(h200).answer(case(batch, 128, "bf16"))
    assert answer.memory == 150109880320
    assert answer.fits(answer.dense) is answer.fits(answer.sparse) is fits
    assert ("does not fit" in answer.verdict) is not fits


def test_dense_that_fits_alone_is_the_advice(h200: list[Measured]) -> None:
    answer = Advisor(h200).answer(case(1, 128, "bf16"))
    between = replace(answer, memory=(answer.dense.memory_bytes + answer.sparse.memory_bytes) // 2)
    assert "no, stay dense" in between.verdict
    assert f"it fits, {answer.sparse.spec.label} would need" in between.verdict


def test_memory_that_neither_manifest_nor_name_says_is_not_known(h200: list[Measured], tmp_path: Path) -> None:
    elsewhere = [replace(m, file=tmp_path / "runs" / "decode.jsonl") for m in h200]
    assert gpu_memory(elsewhere) is None
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "manifest.json").write_text('{"name": "of another program"}')
    assert gpu_memory(elsewhere) is None
    (tmp_path / "manifest.json").write_text((evidence.RESULTS / "h200" / "manifest.json").read_text())
    assert gpu_memory(elsewhere) == 150109880320
    of_another = [replace(m, row=replace(m.row, device="NVIDIA H100 80GB HBM3")) for m in elsewhere]
    assert gpu_memory(of_another) == 80 * 2**30


def test_a_fit_that_was_not_checked_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "decode.jsonl.gz"
    path.write_bytes((evidence.RESULTS / "h200" / "decode.jsonl.gz").read_bytes())
    words = ("--model", "qwen2.5-7b", "--context", "128K", "--batch", "32", "--weights", "bf16")
    for results, unchecked in (((), False), (("--results", str(path)), True)):
        status, out, _ = run(capsys, *words, *results)
        assert status == 0
        assert ("whether it fits was not checked" in out) is unchecked
        assert ("does not fit" in out) is not unchecked


def test_weights_that_no_step_with_stages_has_are_left_out_or_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The H200's rows of 8-bit weights have no stages."""
    words = ("--model", "qwen2.5-7b", "--batch", "1", "--context", "8K", "32K")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "int4 weights" in out
    assert "fp8" not in out.partition("fitted to")[0]
    status, out, _ = run(capsys, *words, "--weights", "fp8", "int4")
    assert status == 0
    assert out.count("--weights fp8: no measured step") == 1


def test_a_ratio_whose_band_holds_one_is_too_close_to_tell(advisor: Advisor) -> None:
    answer: Answer = replace(advisor.answer(case(1, 32)), speedup=1.02, low=0.98, high=1.06, break_even=None)
    assert "too close to tell" in answer.verdict
    assert "does not win at any context" in answer.verdict
    near = replace(answer, break_even=BreakEven(21.2 * K, False)).verdict
    assert near.endswith("; break-even near 21K tokens, within the band.")
    slower = replace(answer, speedup=0.9, low=0.86, high=0.94, break_even=BreakEven(40.0 * K, False)).verdict
    assert slower.endswith("; it wins from about 40K tokens.")


@pytest.mark.parametrize(
    ("words", "pays"),
    [
        *(
            (name, False)
            for name in ("oracle", "snapkv", "r-kv", "sink-window", "resa-torch", "resa-lossless", "retro")
        ),
        ("quest", False),  # a list for each query head: the rows have a list for each KV head
        ("quest --gqa-policy group-sum", True),
        ("resa --selector mass", False),
        ("resa --selector shared2", False),
        ("resa-plus", True),
        ("sparse", True),
    ],
)
def test_what_no_row_chooses_like_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, h200: list[Measured], words: str, pays: bool
) -> None:
    monkeypatch.setattr(command, "read_measured", lambda gpu, rows: h200)
    shape = ("--model", "qwen2.5-7b", "--context", "128K", "--batch", "8", "--weights", "bf16")
    status, out, err = run(capsys, *shape, "--method", *words.split())
    assert status == (0 if pays else 2)
    assert (" pays: " in out) is pays
    assert (
        "no measured step chooses its blocks as it does; there are quest b16 group-sum, resa-chain b16" in err
    ) is not pays


def test_a_method_that_wins_at_every_context_tried_breaks_even_at_most_there(
    advisor: Advisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_module, "BREAK_EVEN", [64 * K, 512 * K, 1024 * K])
    start, longest = advisor.break_even(case(8, 8), make_spec("resa-chain", block_size=8))
    assert start is not None
    assert start.words(K, "K") == "<= 64K"
    assert longest == 512 * K  # at 1024K a sequence would have too many blocks


def test_break_even_is_where_the_speed_up_crosses_one(advisor: Advisor) -> None:
    start, longest = advisor.break_even(case(1, 32), make_spec("resa"))
    assert start is not None
    assert longest == 1024 * K
    for factor, wins in ((0.7, False), (1.4, True)):
        at = replace(case(1, 32), context=int(start.tokens * factor))
        dense = min(advisor.model.predict(at, spec).us for spec in advisor.dense_specs())
        assert (dense > advisor.model.predict(at, make_spec("resa")).us) is wins


def test_other_weights_than_were_measured_are_refused(measured: list[Measured]) -> None:
    model = StepModel([m for m in measured if m.case.weights == "int4"])
    with pytest.raises(Unpredictable, match="no measured step with such weights has its stages; there are int4"):
        model.predict(case(1, 32, "bf16"), make_spec("resa"))


def test_rows_without_stages_predict_nothing(measured: list[Measured]) -> None:
    with pytest.raises(Unpredictable, match="without --no-breakdown"):
        StepModel([replace(m, stages_us={}) for m in measured])


def test_fit_takes_no_negative_terms() -> None:
    features = [(1.0, float(x)) for x in (1, 2, 4, 8)]
    assert fit_nonnegative(features, [3.0 + 2 * x for x in (1, 2, 4, 8)]) == pytest.approx((3.0, 2.0))
    slope_only = fit_nonnegative(features, [2 * x - 0.5 for x in (1, 2, 4, 8)])
    assert slope_only[0] == 0.0
    assert slope_only[1] > 0
    with pytest.raises(ValueError, match="all above 0"):
        fit_nonnegative(features, [1, 2, 0, 4])


def test_curve_is_log_log_between_sizes_and_held_beyond() -> None:
    curve = Curve([(1, 2.0), (4, 8.0), (4, 8.0)])
    assert [curve(size) for size in (0.5, 1, 2, 4, 100)] == pytest.approx([2, 2, 4, 8, 8])
    with pytest.raises(ValueError, match="at least one"):
        Curve([])


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch, advisor: Advisor) -> None:
    """The command finds its rows read and fitted already, where it asks for those of the H100."""
    monkeypatch.setattr(
        command, "read_measured", lambda gpu, rows: read_measured(gpu, rows) if rows else advisor.measured
    )
    monkeypatch.setattr(command, "Advisor", lambda measured: advisor)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["advise", *words])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), " ".join(printed.err.split())


def test_a_gpu_without_rows_is_named_with_those_that_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "--gpu", "b300", "--model", "qwen2.5-7b")
    assert status == 2
    assert "no measured decode rows in results/b300; rows are there of: h100" in err


@pytest.mark.usefixtures("ready")
def test_the_command_answers_and_names_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--model", "qwen2.5-7b", "--context", "128K", "--batch", "1", "--weights", "int4")
    assert status == 0
    assert "yes, resa-fused b16 pays" in out
    assert "decode-qwen2.5-7b-int4-b1-128k" in out
    assert "results/h100/" in out
    assert "commit " in out
    assert "predicted with the case itself left out" in out


@pytest.mark.usefixtures("ready")
def test_the_command_validates(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--validate")
    assert status == 0
    assert "the case itself left out" in out
    assert "all of the model left out" in out


def only_failed(tmp_path: Path) -> str:
    """A result file whose rows are of a GPU but carry no time."""
    source = evidence.RESULTS / "h100" / "simulated" / "decode.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
    path = tmp_path / "decode.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["status"] == "skipped"))
    return str(path)


@pytest.mark.usefixtures("ready")
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, expected in (
        (("--results", only_failed(tmp_path), "--model", "qwen2.5-7b"), "no whole decode steps of presets"),
        ((), "--model: is missing"),
        (("--model", "qwen9"), "got 'qwen9'"),
        (("--model", "qwen2.5-7b", "--method", "sdpa"), "--method sdpa"),
        (("--model", "qwen2.5-7b", "--context", "16384K"), "no case can be answered"),
    ):
        status, _, err = run(capsys, *words)
        assert status == 2, words
        assert expected in err, words


def test_rows_of_two_devices_are_refused(tmp_path: Path) -> None:
    """The times of two GPUs fit no model of one, and the answer would name the first alone."""
    rows = read_rows(evidence.RESULTS / "h100" / "fused" / "decode.jsonl.gz")
    path = tmp_path / "decode.jsonl"
    append(path, [rows[0], *(replace(row, device="NVIDIA H200") for row in rows)])
    append(path, rows)
    with pytest.raises(ValueError, match=r"--results: rows of 2 devices \(NVIDIA H100 80GB HBM3, NVIDIA H200\)"):
        read_measured("h100", [path])


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "decode.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: not a result row"):
        read_measured("h100", [path])
