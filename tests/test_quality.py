"""The quality suite: metrics against plain formulas, teacher forcing on a small model, rows, tables, figures, flags."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig
from resa_bench.kernels.config import GQA_POLICIES
from resa_bench.plots.figures import draw_all
from resa_bench.profiling.device import describe
from resa_bench.suites.cli import build_parser, main
from resa_bench.suites.core.rows import Row, append_case, identity, read_rows
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.micro.cases import MethodSpec
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.quality import suite
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.cli import choose_cases, choose_specs
from resa_bench.suites.quality.metrics import compare_logits, relative_error
from resa_bench.suites.quality.suite import QualityBench, run_case
from resa_bench.suites.quality.table import case_table, excess, label, mean
from rich.console import Console
from tiny_model import TINY, Letters, tiny_decoder

CPU = torch.device("cpu")
CASE = QualityCase("tiny", TINY, prompt=300, steps=72)
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2)


KINDS = ("drift", "recall", "methods")  # of figures
NEVER = 1000  # a period that is over no run here: sparse steps alone, on the portable path under the interpreter, too


def resa(every: int, **columns: Any) -> MethodSpec:
    settings: dict[str, Any] = {"active_ratio": 0.1, "min_blocks": 2} | columns
    return MethodSpec("resa-torch", SparseConfig(rectify_every=every, **settings))


def test_metrics_against_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, method = torch.randn(2, 3, 11, generator=generator)
    following = torch.tensor([1, 7, 10])
    kl, top1, loss, extra = compare_logits(dense, method, following)
    p, q = dense.softmax(-1), method.softmax(-1)
    torch.testing.assert_close(kl, torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(method, following, reduction="none"))
    torch.testing.assert_close(extra, loss - torch.nn.functional.cross_entropy(dense, following, reduction="none"))
    assert top1.tolist() == [float(a == b) for a, b in zip(p.argmax(-1), q.argmax(-1), strict=True)]
    same = compare_logits(dense, dense, following)
    assert same[0].max() == 0
    assert same[1].min() == 1
    torch.testing.assert_close(relative_error(1.5 * dense, dense), torch.full((3,), 0.5))


@pytest.fixture(scope="module")
def models() -> Loader:
    """A model whose attention matters, kept as if it had been loaded."""
    decoder = tiny_decoder()
    found = Loader()
    found._key, found._model = ("tiny", "fp32", "fp32", 0), LoadedModel(decoder, Letters(), "tiny")  # type: ignore[arg-type]
    return found


def measure(models: Loader, specs: list[MethodSpec], case: QualityCase = CASE) -> list[Row]:
    return run_case(case, specs, QualityBench(CPU, describe(CPU), "test"), models)


def of(rows: list[Row], spec: MethodSpec) -> list[Row]:
    return [r for r in rows if r.method == spec.name and all(getattr(r, k) == v for k, v in spec.columns().items())]


@pytest.fixture(scope="module")
def rows(models: Loader) -> list[Row]:
    return measure(models, [resa(NEVER), resa(1), resa(8), resa(32), resa(8, active_ratio=1.0)])


def test_reading_everything_is_dense(rows: list[Row]) -> None:
    whole = of(rows, resa(8, active_ratio=1.0))
    assert mean(whole, "kl") == pytest.approx(0, abs=1e-6)
    assert mean(whole, "top1") == 1
    assert mean(whole, "kv_error") == pytest.approx(0, abs=1e-5)


def test_rectification_bounds_the_drift(rows: list[Row]) -> None:
    """The shorter the period, the smaller KL and the error of keys and values; without it they are largest."""
    order = [of(rows, resa(1)), of(rows, resa(8)), of(rows, resa(32)), of(rows, resa(NEVER))]
    for metric in ("kl", "kv_error"):
        values = [mean(found, metric) for found in order]
        assert values == sorted(values), metric
        assert values[0] < values[-1]
    first = [r.value for r in order[0] if r.metric == "kv_error" and r.layer == 0]
    assert first == [pytest.approx(0, abs=1e-6)]  # a first layer's keys depend on the token alone
    assert excess(rows, order[0], 0) == 0


def test_one_kernel_decodes_step_by_step_and_not_on_a_cpu(models: Loader) -> None:
    fused = MethodSpec("resa-fused")
    assert suite.QualityRun(CASE, QualityBench(CPU, describe(CPU), "test"), lambda _: None).is_stepwise(fused)
    assert [(r.status, r.reason) for r in measure(models, [fused])] == [("skipped", "needs a CUDA device, got cpu")]


def test_rows_say_what_they_are(rows: list[Row]) -> None:
    found = [r for r in of(rows, resa(8)) if r.layer is None]
    assert {r.metric for r in found} == set(suite.METRICS)
    assert [r.step for r in found if r.metric == "kl"] == [32, 64, 72]
    assert [r.n_samples for r in found if r.metric == "kl"] == [64, 64, 16]
    by_layer = [r for r in of(rows, resa(8)) if r.layer is not None]
    assert [r.layer for r in by_layer if r.metric == "kv_error"] == list(range(TINY.layers))
    heads = [(r.layer, r.head) for r in by_layer if r.metric == "recall"]
    assert heads == [(i, head) for i in range(TINY.layers) for head in range(TINY.q_heads)]
    assert {r.launch for r in rows} == {"parallel"}
    assert len({identity(r) for r in rows}) == len(rows)
    dense = [r for r in rows if r.method == "torch-dense"]
    loss, extra = mean(found, "loss"), mean(found, "extra_loss")
    assert loss is not None
    assert extra is not None
    assert mean(dense, "loss") == pytest.approx(loss - extra, abs=1e-4)


@pytest.mark.parametrize("stepwise", [False, True], ids=["parallel", "stepwise"])
def test_forced_logits_are_those_of_one_pass(models: Loader, stepwise: bool) -> None:
    """The dense run against the model on the whole text at once: same loss."""
    case = QualityCase("tiny", TINY, prompt=40, steps=8)
    run = suite.QualityRun(case, QualityBench(CPU, describe(CPU), "test"), lambda text: None)
    loaded = models.model(case, {2}, CPU)
    with torch.inference_mode():
        run.prepare(loaded)
        reference = run.reference(stepwise)
        tokens, prompt = reference.tokens, suite.prompt_ids(loaded, 2 * 49).view(2, 49)
        assert torch.equal(tokens, prompt[:, 40:])
        state = suite.State.allocate(loaded.decoder, 2, 64, 1)
        for steps in (1, 8):
            logits = suite.prefill(loaded.decoder, state, prompt[:, : 40 + steps])
            torch.testing.assert_close(reference.logits[steps - 1], logits, atol=1e-4, rtol=1e-4)


def test_stepwise_measures_the_same(models: Loader) -> None:
    """The engine's own path, and the parallel one: rows alike, but that only the second knows the recall."""
    steps = {"prompt": 40, "steps": 40}
    both = [
        measure(models, [resa(8)], QualityCase("tiny", TINY, **steps, source=source, stepwise=stepwise))
        for source in ("text", "own")
        for stepwise in (False, True)
    ]
    for together, stepping in (both[:2], both[2:]):
        assert [r.case for r in stepping if r.case != f"{together[0].case}-stepwise"] == []
        assert {r.launch for r in of(stepping, resa(8))} == {"eager"}
        mine, theirs = ([r for r in part if r.metric != "recall"] for part in (together, stepping))
        assert [(r.method, r.metric, r.step, r.layer) for r in mine] == [
            (r.method, r.metric, r.step, r.layer) for r in theirs
        ]
        assert [r.value for r in mine] == pytest.approx([r.value for r in theirs], rel=1e-3, abs=1e-5)


def test_methods_without_a_parallel_form_decode_step_by_step(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    case = QualityCase("tiny", TINY, prompt=40, steps=4)
    monkeypatch.delitem(suite.SELECTORS, "resa-torch")
    found = measure(models, [resa(8)], case)
    assert {r.launch for r in of(found, resa(8))} == {"eager"}
    assert not [r for r in found if r.metric == "recall"]


def test_own_continuation_is_the_models(models: Loader) -> None:
    case = QualityCase("tiny", TINY, prompt=40, steps=40, source="own")
    found = measure(models, [resa(8, active_ratio=1.0)], case)
    text = measure(models, [resa(8, active_ratio=1.0)], QualityCase("tiny", TINY, prompt=40, steps=40))
    assert mean(of(found, resa(8, active_ratio=1.0)), "kl") == pytest.approx(0, abs=1e-6)
    own, other = (mean([r for r in part if r.method == "torch-dense"], "loss") for part in (found, text))
    assert own is not None
    assert other is not None
    assert own < other  # a model is surer of what it says itself


def test_a_method_that_fails_costs_its_own_rows(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise suite.torch.OutOfMemoryError("none left")

    real = suite.QualityRun.measure
    monkeypatch.setattr(
        suite.QualityRun, "measure", lambda run, spec: broken() if spec.name == "sparse" else real(run, spec)
    )
    found = measure(models, [MethodSpec("sparse", SPARSE), resa(8)], QualityCase("tiny", TINY, prompt=40, steps=4))
    assert [(r.status, r.reason) for r in found if r.method == "sparse"] == [("oom", "none left")]
    assert all(r.status == "ok" for r in of(found, resa(8)))


def test_further_methods_find_the_case_prepared(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill and references are those of the first group, the numbers those of one run of all methods."""
    prefills: list[str] = []
    real = suite.QualityRun.prepare
    monkeypatch.setattr(
        suite.QualityRun, "prepare", lambda run, loaded: (prefills.append(run.case.slug), real(run, loaded))
    )
    case = QualityCase("tiny", TINY, prompt=40, steps=8)
    other, bench = QualityCase("tiny", TINY, prompt=44, steps=8), QualityBench(CPU, describe(CPU), "test")
    parts = [run_case(case, [spec], bench, models) for spec in (resa(8), resa(4))]
    whole = measure(models, [resa(8), resa(4)], case)
    for spec in (resa(8), resa(4), MethodSpec("torch-dense")):
        found = {identity(r): r.value for part in parts for r in part if r in of(part, spec)}
        assert found == {identity(r): r.value for r in of(whole, spec)}
    run_case(other, [resa(8)], bench, models)
    assert prefills == [case.slug, case.slug, other.slug]
    assert list(bench.prepared) == [other]


def test_table_and_figure(rows: list[Row], tmp_path: Path) -> None:
    console = Console(width=140, record=True)
    console.print(case_table(CASE.slug, rows))
    text = console.export_text()
    assert "resa-torch b16 f8 r0.1" in text
    assert f"{math.exp(mean([r for r in rows if r.method == 'torch-dense'], 'loss') or 0):.3f}" in text
    path = tmp_path / "quality.jsonl"
    append_case(path, rows)
    assert [label(r) for r in read_rows(path)] == [label(r) for r in rows]
    drawn = draw_all([path], tmp_path)
    names = [f"quality-{kind}-tiny-b2-300-72-text.{e}" for kind in KINDS for e in ("png", "svg")]
    assert [p.name for p in drawn] == names
    words = drawn[1].read_text()
    for name in (
        "drift from dense decoding",
        "resa-torch b16 f1000 r0.1",
        "resa-torch b16 f1 r0.1",
        "steps since prefill",
    ):
        assert name in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen2.5-7b"], "random weights say nothing about quality"),
        (["--prompt-tokens", "8K"], "are over the 8192 that smollm2-135m handles"),
        (["--method", "torch-dense"], "is what the others are compared with"),
        (["--method", "nonsense"], "unknown; known are"),
        (["--batch", "0"], "must be at least 1"),
        (["--dense-layers", "-1"], "must be 0 or more"),
        (["--model", "."], "config.json"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--plan", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--plan", "--device", "cpu", "--source", "text", "own", "--ratio", "0.1", "0.05"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "quality-smollm2-135m-b2-4k-512-text quality-smollm2-135m-b2-4k-512-own" in text
    for name in (
        "sparse b16", "resa-torch b16 f1", "resa-torch b64,", "quest b16 per-head", "quest b16 group-sum,",
        "sparse b16 meanstd", "oracle b16",
    ):  # fmt: skip
        assert name in text


def test_sweeps() -> None:
    """The grid of --full, and what flags put in place of a list's settings."""

    def specs(*arguments: str) -> list[MethodSpec]:
        options = build_parser().parse_args(["quality", *arguments])
        return choose_specs(options, CPU)

    full = specs("--full")
    assert {s.config.active_ratio for s in full} == {0.05, 0.1, 0.2}
    assert {s.config.gqa_policy for s in full if s.name == "quest"} == set(GQA_POLICIES)
    assert {s.config.rectify_every for s in full if s.name == "resa-torch"} == {1, 16, 32, 64, 128}
    assert len({s.config.spread_weight for s in full if s.config.summary_kind == "meanstd"}) > 2
    assert len({(s.name, *s.columns().items()) for s in full}) == len(full)
    swept = specs("--method", "sparse", "resa-torch", "--summary", "meanstd", "--spread-weight", "0.5", "2",
                  "--rectify-every", "1")  # fmt: skip
    assert [s.label for s in swept] == [
        "sparse b16 meanstd c0.5", "resa-torch b16 meanstd c0.5 f1", "sparse b16 meanstd c2",
        "resa-torch b16 meanstd c2 f1",
    ]  # fmt: skip
    assert [s.label for s in specs("--quick")] == ["sparse b16", "resa-torch b16 f1", "resa-torch b16"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    config |= {"vocab_size": 9, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    options = build_parser().parse_args(["quality", "--model", str(tmp_path)])
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        choose_cases(options, CPU)


def test_a_text_too_short_says_so(models: Loader) -> None:
    found = measure(models, [resa(8)], QualityCase("tiny", TINY, prompt=40, steps=4, batch=20_000))
    assert [r.status for r in found] == ["failed"]
    assert "take fewer sequences" in (found[0].reason or "")
