"""The quality suite: metrics against plain formulas, teacher forcing on a small model, rows, tables, figures, flags."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.kernels.config import GQA_POLICIES
from resa_bench.plots.figures import draw_all
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import make_timer
from resa_bench.suites.cli import main
from resa_bench.suites.core import metrics
from resa_bench.suites.core.analysis import excess_of, mean_of
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.metrics import Metric, Steps, register_metric, step_metrics
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.loader import Loader, prompt_ids
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.forced import relative_error
from resa_bench.suites.quality.run import InHand, QualityRun, run_case
from resa_bench.suites.quality.suite import FLAGS, choose_cases, choose_specs
from resa_bench.suites.quality.table import case_table
from rich.console import Console
from tiny_model import TINY, keep, tiny_decoder

CPU = torch.device("cpu")
CASE = QualityCase("tiny", TINY, prompt=300, steps=72)
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2)


KINDS = ("bytes", "drift", "methods", "recall")  # of figures
NEVER = 1000  # a period that is over no run here: sparse steps alone, on the portable path under the interpreter, too


def resa(every: int, **columns: Any) -> MethodSpec:
    return make_spec("resa-torch", SPARSE, rectify_every=every, **columns)


def test_metrics_against_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, method = torch.randn(2, 3, 11, generator=generator)
    following, errors = torch.tensor([1, 7, 10]), torch.rand(2, 3, generator=generator)

    def compare(method: torch.Tensor) -> dict[str, torch.Tensor]:
        steps = Steps(dense.log_softmax(-1), method.log_softmax(-1), following, errors)
        return {metric.name: metric.values(steps) for metric in step_metrics()}

    values = compare(method)
    p, q = dense.softmax(-1), method.softmax(-1)
    loss, dense_loss = (torch.nn.functional.cross_entropy(x, following, reduction="none") for x in (method, dense))
    torch.testing.assert_close(values["kl"], torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1))
    torch.testing.assert_close(values["loss"], loss)
    torch.testing.assert_close(values["extra_loss"], loss - dense_loss)
    torch.testing.assert_close(values["kv_error"], (errors[0] + errors[1]) / 2)
    assert values["top1"].tolist() == [float(a == b) for a, b in zip(p.argmax(-1), q.argmax(-1), strict=True)]
    same = compare(dense)
    assert same["kl"].max() == 0
    assert same["top1"].min() == 1
    exact = dense[:, :10].view(3, 2, 5)  # of three tokens, two heads
    torch.testing.assert_close(relative_error(1.5 * exact, exact), torch.full((3,), 0.5))


@pytest.fixture(scope="module")
def models() -> Loader:
    """A model whose attention matters, kept as if it had been loaded."""
    return keep(Loader(), tiny_decoder())


def make_bench(models: Loader) -> Bench:
    bench = Bench(CPU, describe(CPU), "test", None, make_timer(CPU), Ceilings(10.0, 10.0, 0.1))
    bench._held[Loader] = models
    return bench


def measure(models: Loader, specs: list[MethodSpec], case: QualityCase = CASE) -> list[Row]:
    return run_case(case, specs, make_bench(models))


def of(rows: list[Row], spec: MethodSpec) -> list[Row]:
    return [row for row in rows if row.variant == spec.variant]


@pytest.fixture(scope="module")
def rows(models: Loader) -> list[Row]:
    return measure(models, [resa(NEVER), resa(1), resa(8), resa(32), resa(8, active_ratio=1.0)])


@pytest.mark.slow
def test_reading_everything_is_dense(rows: list[Row]) -> None:
    whole = of(rows, resa(8, active_ratio=1.0))
    assert mean_of(whole, "kl") == pytest.approx(0, abs=1e-6)
    assert mean_of(whole, "top1") == 1
    assert mean_of(whole, "kv_error") == pytest.approx(0, abs=1e-5)


def test_rectification_bounds_the_drift(rows: list[Row]) -> None:
    """The shorter the period, the smaller KL and the error of keys and values; without it they are largest."""
    order = [of(rows, resa(1)), of(rows, resa(8)), of(rows, resa(32)), of(rows, resa(NEVER))]
    for metric in ("kl", "kv_error"):
        values = [mean_of(own, metric) or 0.0 for own in order]
        assert values == sorted(values), metric
        assert values[0] < values[-1]
    first = [r.value for r in order[0] if r.metric == "kv_error" and r.layer == 0]
    assert first == [pytest.approx(0, abs=1e-6)]  # a first layer's keys depend on the token alone
    assert excess_of(rows, order[0], 0) == 0


def test_one_kernel_decodes_step_by_step_and_not_on_a_cpu(models: Loader) -> None:
    fused = make_spec("resa-fused")
    assert QualityRun(CASE, make_bench(models)).is_stepwise(fused)
    assert [(r.status, r.reason) for r in measure(models, [fused])] == [("skipped", "needs a CUDA device, got cpu")]


@pytest.mark.slow
def test_rows_say_what_they_are(rows: list[Row]) -> None:
    own = [r for r in of(rows, resa(8)) if r.layer is None]
    names = {metric.name for metric in step_metrics()}
    assert {r.metric for r in own if r.stretch is None} == names | {"read_share"}
    of_texts = [r for r in own if r.metric == "kl_of_text"]
    assert [(r.stretch, r.n_samples) for r in of_texts] == [(0, CASE.steps), (1, CASE.steps)]
    assert mean_of(of_texts, "kl_of_text") == pytest.approx(mean_of(own, "kl"), rel=1e-4)
    assert {r.metric for r in own if r.stretch is not None} == {f"{name}_of_text" for name in names}
    assert all(r.value_error is not None and r.n_texts == 2 for r in own if r.metric == "kl")
    assert [r.step for r in own if r.metric == "kl"] == [32, 64, 72]
    assert [r.n_samples for r in own if r.metric == "kl"] == [64, 64, 16]
    by_layer = [r for r in of(rows, resa(8)) if r.layer is not None]
    assert [r.layer for r in by_layer if r.metric == "kv_error"] == list(range(TINY.layers))
    heads = [(r.layer, r.head) for r in by_layer if r.metric == "recall"]
    assert heads == [(i, head) for i in range(TINY.layers) for head in range(TINY.q_heads)]
    assert {r.launch for r in rows} == {"parallel"}
    assert len({identity(r) for r in rows}) == len(rows)
    dense = [r for r in rows if r.method == "torch-dense"]
    loss, extra = mean_of(own, "loss"), mean_of(own, "extra_loss")
    assert loss is not None
    assert extra is not None
    assert mean_of(dense, "loss") == pytest.approx(loss - extra, abs=1e-4)


@pytest.mark.parametrize("stepwise", [False, True], ids=["parallel", "stepwise"])
def test_forced_logits_are_those_of_one_pass(models: Loader, stepwise: bool) -> None:
    """The dense run against the model on the whole text at once: same loss."""
    case = QualityCase("tiny", TINY, prompt=40, steps=8)
    run = QualityRun(case, make_bench(models))
    run.specs = [resa(8)]
    with torch.inference_mode():
        run.prepare(models)
        reference = run.reference(stepwise)
        loaded = models.model(case, {2}, CPU)
        tokens, prompt = reference.tokens, prompt_ids(loaded, 2 * 49).view(2, 49)
        assert torch.equal(tokens, prompt[:, 40:])
        state = State.allocate(loaded.decoder, 2, 64, 1)
        for steps in (1, 8):
            logits = prefill(loaded.decoder, state, prompt[:, : 40 + steps])
            torch.testing.assert_close(reference.logits[steps - 1], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_stepwise_measures_the_same(models: Loader) -> None:
    """The engine's own path, and the parallel one: rows alike, but that only the second knows the recall."""
    steps: dict[str, Any] = {"prompt": 40, "steps": 40}
    both = [
        measure(models, [resa(8)], QualityCase("tiny", TINY, **steps, source=source, stepwise=stepwise))
        for source in ("text", "own")
        for stepwise in (False, True)
    ]
    for together, stepping in (both[:2], both[2:]):
        assert [r.case for r in stepping if r.case != f"{together[0].case}-stepwise"] == []
        assert {r.launch for r in of(stepping, resa(8))} == {"eager"}
        parallel = [r for r in together if r.metric != "recall"]
        assert [(r.method, r.metric, r.step, r.layer) for r in parallel] == [
            (r.method, r.metric, r.step, r.layer) for r in stepping
        ]
        assert [r.value for r in parallel] == pytest.approx([r.value for r in stepping], rel=1e-3, abs=1e-5)


def test_methods_without_a_parallel_form_decode_step_by_step(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    case = QualityCase("tiny", TINY, prompt=40, steps=4)
    monkeypatch.setattr(get_method("resa-torch"), "ranks_by", None)
    rows = measure(models, [resa(8)], case)
    assert {r.launch for r in of(rows, resa(8))} == {"eager"}
    assert not [r for r in rows if r.metric == "recall"]


@pytest.mark.slow
def test_own_continuation_is_the_models(models: Loader) -> None:
    case = QualityCase("tiny", TINY, prompt=40, steps=40, source="own")
    continued = measure(models, [resa(8, active_ratio=1.0)], case)
    text = measure(models, [resa(8, active_ratio=1.0)], QualityCase("tiny", TINY, prompt=40, steps=40))
    assert mean_of(of(continued, resa(8, active_ratio=1.0)), "kl") == pytest.approx(0, abs=1e-6)
    own, other = (mean_of([r for r in part if r.method == "torch-dense"], "loss") for part in (continued, text))
    assert own is not None
    assert other is not None
    assert own < other  # a model is surer of what it says itself


def test_a_method_that_fails_costs_its_own_rows(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    real = QualityRun.measure
    monkeypatch.setattr(QualityRun, "measure", lambda run, spec: broken() if spec.name == "sparse" else real(run, spec))
    specs = [make_spec("sparse", SPARSE), resa(8)]
    rows = measure(models, specs, QualityCase("tiny", TINY, prompt=40, steps=4))
    assert [(r.status, r.reason) for r in rows if r.method == "sparse"] == [("oom", "none left")]
    assert all(r.status == "ok" for r in of(rows, resa(8)))


@pytest.mark.slow
def test_further_methods_find_the_case_prepared(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill and references are those of the first group, the numbers those of one run of all methods."""
    prefilled: list[int] = []

    def count(decoder: Any, state: Any, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        prefilled.append(tokens.shape[1])
        return prefill(decoder, state, tokens, **more)

    monkeypatch.setattr("resa_bench.suites.engine.methods.prefill", count)
    case, other = (QualityCase("tiny", TINY, prompt=n, steps=8) for n in (40, 44))
    bench = make_bench(models)
    parts = [run_case(case, [spec], bench) for spec in (resa(8), resa(4))]
    whole = measure(models, [resa(8), resa(4)], case)
    for spec in (resa(8), resa(4), make_spec("torch-dense")):
        values = {identity(r): r.value for part in parts for r in of(part, spec)}
        assert values == {identity(r): r.value for r in of(whole, spec)}
    run_case(other, [resa(8)], bench)
    assert prefilled == [40, 40, 44]
    run = bench.held(InHand).run
    assert run is not None
    assert run.case == other


def table_text(rows: list[Row]) -> str:
    console = Console(width=160, record=True)
    console.print(case_table(rows[0].case, rows))
    return console.export_text()


@pytest.mark.slow
def test_table_and_figure(rows: list[Row], tmp_path: Path) -> None:
    text = table_text(rows)
    assert "resa-torch b16 r0.1 f8" in text
    assert f"{math.exp(mean_of([r for r in rows if r.method == 'torch-dense'], 'loss') or 0):.3f}" in text
    lines = [line for line in text.splitlines() if "│" in line]
    assert "torch-dense" in lines[0]
    path = tmp_path / "quality.jsonl"
    append(path, rows)
    assert table_text(read_rows(path)) == text
    drawn = draw_all([path], tmp_path)
    names = [f"quality-{kind}-tiny-b2-300-72-text.{e}" for kind in KINDS for e in ("png", "svg")]
    assert sorted(p.name for p in drawn) == sorted(names)
    words = next(p for p in drawn if p.name == "quality-drift-tiny-b2-300-72-text.svg").read_text()
    for name in (
        "drift from dense decoding",
        "ReSA (torch)",
        "ReSA, f = 1",
        "steps since prefill",
    ):
        assert name in words


@pytest.mark.slow
def test_a_metric_from_outside_is_in_rows_and_in_the_table(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry: by each step's rank of the token that follows, the largest of a stretch."""
    monkeypatch.setattr(metrics, "_metrics", dict(metrics._metrics))

    def rank(steps: Steps) -> torch.Tensor:
        return (steps.method > steps.method.gather(1, steps.following[:, None])).sum(1)

    register_metric(Metric(name="worst_rank", of=rank, average=torch.amax, heading="worst rank", form=".1f"))
    with pytest.raises(ValueError, match="is there already"):
        register_metric(Metric(name="kl"))
    rows = measure(models, [resa(8)], QualityCase("tiny", TINY, prompt=40, steps=40))
    ranks = [(r.step, r.value, r.n_samples) for r in rows if r.metric == "worst_rank"]
    assert [(step, count) for step, _, count in ranks] == [(32, 64), (40, 16)]
    assert all(value is not None and value == int(value) and value > 1 for _, value, _ in ranks)
    text = table_text(rows)
    assert "worst rank" in text
    assert f"{mean_of(rows, 'worst_rank'):.1f}" in text
    assert "worst rank" not in table_text([r for r in rows if r.metric != "worst_rank"])
    register_metric(Metric(name="scalar", of=lambda steps: rank(steps).sum()))
    rows = measure(models, [resa(8)], QualityCase("tiny", TINY, prompt=40, steps=4))
    assert ["metric scalar: gives [], expected a value a step" in (r.reason or "") for r in of(rows, resa(8))] == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen2.5-7b"], "random weights say nothing about quality"),
        (["--prompt-tokens", "8K"], "over the 8192 that smollm2-135m handles"),
        (["--method", "torch-dense"], "is what the others are compared with"),
        (["--method", "nonsense"], "unknown; known are"),
        (["--batch", "0"], "must be 1 to"),
        (["--dense-layers", "-1"], "must be 0 to"),
        (["--steps", "4", "--window", "8"], "windows of 8 tokens need as many steps"),
        (["--model", "."], "config.json"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["quality", "--plan", *arguments])
    except SystemExit as error:  # argparse, of values out of range
        status = error.code  # type: ignore[assignment]
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", "--plan", "--device", "cpu", "--source", "text", "own", "--ratio", "0.1", "0.05"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "quality-smollm2-135m-b8-4k-192-text-4texts quality-smollm2-135m-b8-4k-192-own-4texts" in text
    for name in (
        "sparse b16", "resa-torch b16 f1", "resa-torch b64,", "quest b16 per-head", "quest b16 group-sum,",
        "sparse b16 meanstd", "oracle b16",
    ):  # fmt: skip
        assert name in text


def test_sweeps() -> None:
    """The grid of --full, and what flags put in place of a list's settings."""

    def specs(**given: Any) -> list[MethodSpec]:
        return choose_specs(options(FLAGS, given), CPU)

    full = specs(scale="full")
    assert {s.config.active_ratio for s in full if s.name != "resa-plus"} == {0.05, 0.1, 0.2}
    assert {s.config.gqa_policy for s in full if s.name == "quest"} == set(GQA_POLICIES)
    assert {s.config.rectify_every for s in full if s.name == "resa-torch"} == {1, 16, 32, 64, 128}
    assert len({s.config.spread_weight for s in full if s.config.summary_kind == "meanstd"}) > 2
    assert len({s.variant for s in full}) == len(full)
    swept = specs(method=("sparse", "resa-torch"), summary=("meanstd",), spread_weight=(0.5, 2.0), rectify_every=(1,))
    assert [s.label for s in swept] == [
        "sparse b16 meanstd c0.5", "sparse b16 meanstd c2", "resa-torch b16 f1 meanstd c0.5",
        "resa-torch b16 f1 meanstd c2",
    ]  # fmt: skip
    listed = specs(summary=("meanstd",), spread_weight=(0.5, 2.0), scale="quick", rectify_every=(1,))
    assert {s.variant for s in listed} == {s.variant for s in swept}
    assert [s.label for s in specs(scale="quick")] == ["sparse b16", "resa-torch b16 f1", "resa-torch b16"]


def test_a_name_means_here_what_it_means_everywhere() -> None:
    named = choose_specs(options(FLAGS, {"method": ("quest", "retro", "sparse", "resa-torch")}), CPU)
    assert [s.variant for s in named] == [
        make_spec(name).variant for name in ("quest", "retro", "sparse", "resa-torch")
    ]


def test_a_budget_is_only_of_methods_that_have_one() -> None:
    """ReSA reads its ratio, as its row says, beside a Quest of so many tokens."""
    specs = choose_specs(options(FLAGS, {"budget_tokens": (1024,)}), CPU)
    for s in specs:
        assert s.config.budget_tokens == (1024 if "budget_tokens" in s.kind.uses else None), s.label
    assert {s.name for s in specs if s.config.budget_tokens} >= {"quest"}
    assert {s.name for s in specs if s.config.budget_tokens is None} >= {"sparse", "resa-torch"}


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config |= {"vocab_size": 9, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        choose_cases(options(FLAGS, {"model": str(tmp_path)}), CPU, [])


def test_a_text_too_short_says_so(models: Loader) -> None:
    rows = measure(models, [resa(8)], QualityCase("tiny", TINY, prompt=4000, steps=4, batch=200))
    assert [r.status for r in rows] == ["failed"]
    assert "take fewer sequences" in (rows[0].reason or "")
