"""The tasks suite: contenders that rewind, scores, rows, tables and flags, on a small model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import make_bench, recorded
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import Unsupported
from resa_bench.plots.figures import draw_all
from resa_bench.suites.cli import main
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.looks import looks
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.engine.texts import text_tokenizer
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.tasks.cases import TaskCase, dense_spec
from resa_bench.suites.tasks.contender import Contender
from resa_bench.suites.tasks.copy import copy_prompt
from resa_bench.suites.tasks.divergence import CommonNoise
from resa_bench.suites.tasks.kinds.copy import CopyCase
from resa_bench.suites.tasks.kinds.divergence import DivergenceCase
from resa_bench.suites.tasks.kinds.needle import NeedleCase
from resa_bench.suites.tasks.needle import needle_prompts
from resa_bench.suites.tasks.prompt import prefill_rows
from resa_bench.suites.tasks.run import run_case
from resa_bench.suites.tasks.suite import FLAGS, choose_specs
from resa_bench.suites.tasks.table import case_table, pick
from resa_bench.suites.tasks.text import stretches
from rich.console import Console
from tiny_model import LETTERS, TINY, keep, tiny_decoder

CPU = torch.device("cpu")
NEVER = 1000  # a period over every run here: sparse steps alone, in plain torch under the interpreter, too


def resa(every: int, ratio: float = 0.1) -> MethodSpec:
    return make_spec("resa-torch", rectify_every=every, active_ratio=ratio, min_blocks=2)


EVERYTHING, SPARSE = resa(8, 1.0), resa(NEVER)


def divergence(**settings: Any) -> DivergenceCase:
    return DivergenceCase(**({"model": "tiny", "config": TINY, "prompt": 200, "steps": 32, "together": 3} | settings))


def needles(**settings: Any) -> NeedleCase:
    return NeedleCase(**({"model": "tiny", "config": TINY, "prompt": 400, "depths": 3} | settings))


def copies(**settings: Any) -> CopyCase:
    return CopyCase(**({"model": "tiny", "config": TINY, "prompt": 400, "pairs": 4, "series": 2} | settings))


@pytest.fixture(scope="module")
def models(tiny: LoadedModel) -> Loader:
    """A model whose attention matters, kept as if it had been loaded."""
    return keep(Loader(), tiny.decoder)


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return LoadedModel(tiny_decoder(), LETTERS, "tiny")


@pytest.fixture(autouse=True)
def _room_for_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter a token makes questions long."""
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.needle.QUESTION_ROOM", 200)
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.copy.PAIR_ROOM", 48)


def measure(models: Loader, case: TaskCase, specs: list[MethodSpec]) -> list[Row]:
    bench = make_bench()
    bench._held[Loader] = models
    return run_case(case, specs, bench)


@pytest.fixture(scope="module")
def kept() -> dict[str, list[Row]]:
    """Rows of a case, by its name, for the tests that look at the same ones (of one group: in one process)."""
    return {}


def measure_once(kept: dict[str, list[Row]], models: Loader, case: TaskCase) -> list[Row]:
    if case.slug not in kept:
        kept[case.slug] = measure(models, case, [EVERYTHING, SPARSE])
    return kept[case.slug]


def of(rows: list[Row], spec: MethodSpec, stage: str = "free") -> list[Row]:
    return [row for row in rows if row.variant == spec.variant and row.stage == stage]


def value(rows: list[Row], metric: str, **which: Any) -> float:
    row = pick(rows, metric, **which)
    assert row is not None
    assert row.value is not None
    return row.value


def test_prompts_that_begin_alike_are_prefilled_as_if_alone(tiny: LoadedModel) -> None:
    decoder = tiny.decoder
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, TINY.vocab, (3, 90), generator=generator)
    tokens[1, :60] = tokens[2, :60]
    tokens[0] = tokens[1]
    with torch.inference_mode():
        shared, alone = (State.allocate(decoder, 3, 128, 1) for _ in range(2))
        logits = prefill_rows(decoder, shared, tokens)
        torch.testing.assert_close(logits, prefill(decoder, alone, tokens), atol=1e-4, rtol=1e-4)
        for a, b in zip(shared.caches, alone.caches, strict=True):
            torch.testing.assert_close(a.k[:, :, :90], b.k[:, :, :90], atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="do not fit the capacity"):
            prefill_rows(decoder, shared, torch.zeros(3, 129, dtype=torch.int64))


@pytest.mark.parametrize("spec", [dense_spec(CPU), SPARSE, resa(8)], ids=lambda s: s.label)
def test_a_contender_starts_and_rewinds_as_if_it_were_new(tiny: LoadedModel, spec: MethodSpec) -> None:
    """70 is no whole number of blocks: summaries must forget what was written and taken back."""
    decoder = tiny.decoder
    tokens = torch.tensor([stretches(LETTERS, 1, 110)[0]])
    quiet = CommonNoise(1, TINY.vocab, 0.0, 0, CPU)
    with torch.inference_mode():
        state = State.allocate(decoder, 1, 192, 60)
        prefill_rows(decoder, state, tokens[:, :70])
        fed = tokens[:, 70:90]

        def answer(contender: Contender, tries: int) -> torch.Tensor:
            contender.start(fed[:, 0])
            contender.feed(fed)
            for _ in range(tries):
                contender.try_answer(torch.randint(0, TINY.vocab, (1, 9), generator=generator))
            contender.state.pending.copy_(contender.engine.logits.argmax(-1))
            contender.say(12)
            return contender.engine.logits.clone()

        generator = torch.Generator().manual_seed(0)
        contender = Contender(decoder, state, spec, 70, 60, quiet)
        first = answer(contender, 0)
        torch.testing.assert_close(answer(contender, 0), first)
        torch.testing.assert_close(answer(contender, 2), first)


def test_summaries_forget_what_is_taken_back(tiny: LoadedModel) -> None:
    decoder = tiny.decoder
    tokens = torch.tensor([stretches(LETTERS, 1, 80)[0]])
    with torch.inference_mode():
        state = State.allocate(decoder, 1, 128, 20)
        prefill_rows(decoder, state, tokens[:, :70])
        contender = Contender(decoder, state, resa(8), 70, 20, CommonNoise(1, TINY.vocab, 0.0, 0, CPU))
        contender.start(tokens[:, 70])
        layers: list[Any] = contender._layers

        def newest() -> torch.Tensor:
            return torch.stack([layer.summaries.data[0, :, 4] for layer in layers])

        keys = torch.stack([layer.cache.k[0, :, 64:70] for layer in layers])
        exact = torch.stack([keys.amin(2), keys.amax(2)], 2)
        assert torch.equal(newest(), exact)
        contender.feed(tokens[:, 70:72])
        before = newest().clone()
        contender.try_answer(tokens[:, 76:79])
        assert torch.equal(newest(), before)
        contender.start(tokens[:, 70])
        assert torch.equal(newest(), exact)


def test_what_is_fed_is_judged_by_the_step_before(tiny: LoadedModel) -> None:
    decoder = tiny.decoder
    tokens = torch.tensor(stretches(LETTERS, 2, 60))
    with torch.inference_mode():
        state, other = (State.allocate(decoder, 2, 64, 40) for _ in range(2))
        prefill_rows(decoder, state, tokens[:, :40])
        contender = Contender(decoder, state, dense_spec(CPU), 40, 20, CommonNoise(2, TINY.vocab, 0.0, 0, CPU))
        contender.start(tokens[:, 40])
        judged = contender.feed(tokens[:, 40:])
        assert judged.logp[:, 0].isnan().all()
        for t in (1, 19):
            logits = prefill(decoder, other, tokens[:, : 40 + t])
            exact = logits.log_softmax(-1).gather(1, tokens[:, 40 + t, None])[:, 0]
            torch.testing.assert_close(judged.logp[:, t], exact, atol=1e-4, rtol=1e-4)
            assert torch.equal(judged.top[:, t], logits.argmax(-1) == tokens[:, 40 + t])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.slow
@pytest.mark.xdist_group("rows of tasks")
def test_a_method_equal_to_dense_never_diverges(models: Loader, kept: dict[str, list[Row]], temperature: float) -> None:
    rows = measure_once(kept, models, divergence(temperature=temperature))
    dense, whole, sparse = dense_spec(CPU), of(rows, EVERYTHING), of(rows, SPARSE)
    for same in (whole, of(rows, dense), of(rows, dense, "chunk")):
        assert value(same, "divergence") == value(same, "divergence_median") == 32
        assert value(same, "survival", step=32) == 1
    assert 0 <= value(sparse, "divergence") < 32
    curve = [r.value or 0.0 for r in sparse if r.metric == "survival"]
    assert curve == sorted(curve, reverse=True)
    assert {r.n_samples for r in sparse} == {3}
    assert len({identity(row) for row in rows}) == len(rows)


@pytest.mark.slow
@pytest.mark.xdist_group("rows of tasks")
def test_needles_by_depth(models: Loader, kept: dict[str, list[Row]]) -> None:
    rows = measure_once(kept, models, needles(groups=2))
    dense, whole, sparse = of(rows, dense_spec(CPU)), of(rows, EVERYTHING), of(rows, SPARSE)
    assert [r.depth for r in whole if r.metric == "needle"] == [0.1, 0.5, 0.9, None]
    assert [r.n_samples for r in whole if r.metric == "needle"] == [2, 2, 2, 6]
    for depth in (0.1, 0.5, 0.9, None):
        assert value(whole, "needle", depth=depth) == value(dense, "needle", depth=depth)
        exact = value(dense, "needle_logp", depth=depth)
        assert value(whole, "needle_logp", depth=depth) == pytest.approx(exact, abs=1e-3)
    assert value(sparse, "needle_logp") != pytest.approx(value(dense, "needle_logp"), abs=1e-3)
    assert pick(whole, "needle_kept") is None  # a random model finds nothing that could be kept


@pytest.mark.slow
def test_an_oracle_of_answers_scores_everything(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model says the right thing it is counted as right: the answer is taken from the prompts."""

    def say(contender: Contender, count: int, reference: Any = None) -> torch.Tensor:
        answers = [LETTERS.encode(f" {n}") for n in made[0].numbers]
        decoded = [[*a, *[0] * count][:count] for a in answers]
        decoded[1] = [0] * count
        return torch.tensor(decoded)

    made: list[Any] = []
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.needle.needle_prompts", recorded(needle_prompts, made))
    monkeypatch.setattr(Contender, "say", say)
    rows = measure(models, needles(), [EVERYTHING])
    whole = of(rows, EVERYTHING)
    assert [r.value for r in whole if r.metric == "needle"] == pytest.approx([1, 0, 1, 2 / 3], abs=1e-5)
    assert value(whole, "needle_kept") == 1
    assert pick(whole, "needle_kept", depth=0.5) is None


@pytest.mark.slow
@pytest.mark.xdist_group("rows of tasks")
def test_copies(models: Loader, tiny: LoadedModel, kept: dict[str, list[Row]]) -> None:
    rows = measure_once(kept, models, copies(groups=2))
    dense, whole = of(rows, dense_spec(CPU)), of(rows, EVERYTHING)
    assert [r.n_samples for r in whole if r.metric == "copy"] == [8]
    assert value(whole, "copy") == value(dense, "copy")
    assert value(whole, "copy_logp") == pytest.approx(value(dense, "copy_logp"), abs=1e-3)
    made = [
        copy_prompt(LETTERS, text, 400, 4, 2, random.Random(i)) for i, text in enumerate(stretches(LETTERS, 2, 400))
    ]
    exact = []
    with torch.inference_mode():
        state = State.allocate(tiny.decoder, 1, 512, 1)
        for asked in made:
            for script in asked.script:
                for span in asked.answers:
                    for t in range(span.start, span.stop):
                        ids = torch.tensor([asked.prompt + script[:t]])
                        exact.append(float(prefill(tiny.decoder, state, ids).log_softmax(-1)[0, script[t]]))
    assert value(dense, "copy_logp") == pytest.approx(sum(exact) / len(exact), abs=1e-3)


@pytest.mark.slow
def test_a_method_that_fails_costs_its_own_rows(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Contender.__init__

    def init(self: Any, decoder: Any, state: Any, spec: MethodSpec, *rest: Any) -> None:
        if spec == broken:
            raise torch.OutOfMemoryError("none left")
        real(self, decoder, state, spec, *rest)

    monkeypatch.setattr(Contender, "__init__", init)
    broken = SPARSE
    rows = measure(models, divergence(groups=2, steps=8), [SPARSE, EVERYTHING])
    assert [(r.status, r.reason) for r in of(rows, SPARSE)] == [("oom", "none left")]
    assert value(of(rows, EVERYTHING), "divergence") == 8
    broken = dense_spec(CPU)
    rows = measure(models, divergence(steps=8), [SPARSE, EVERYTHING])
    assert {r.status for r in rows} == {"oom"}
    assert "torch-dense, which all are compared with: none left" in (rows[1].reason or "")


@pytest.mark.slow
def test_one_kernel_on_a_cpu_is_skipped_with_its_reason(models: Loader) -> None:
    fused = make_spec("resa-fused")
    rows = of(measure(models, divergence(steps=8), [fused]), fused)
    assert [(r.status, r.reason) for r in rows] == [("skipped", "needs a CUDA device, got cpu")]


def test_no_tokenizer_no_tasks(tiny: LoadedModel) -> None:
    rows = measure(keep(Loader(), tiny.decoder, None), copies(), [EVERYTHING])
    assert {r.status for r in rows} == {"skipped"}
    assert "need a model with a tokenizer" in (rows[0].reason or "")
    with pytest.raises(Unsupported, match="written in words"):
        text_tokenizer(LoadedModel(tiny.decoder, None, "tiny"))


def test_questions_that_take_too_long_are_refused(models: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resa_bench.suites.tasks.kinds.needle.QUESTION_ROOM", 50)
    rows = measure(models, needles(), [EVERYTHING])
    assert "50 are allowed" in (rows[0].reason or "")


@pytest.mark.slow
@pytest.mark.xdist_group("rows of tasks")
def test_tables(models: Loader, tmp_path: Path, kept: dict[str, list[Row]]) -> None:
    rows: list[Row] = []
    for case in (divergence(temperature=0.0), needles(groups=2), copies(groups=2)):
        of_case = measure_once(kept, models, case)
        append(tmp_path / "tasks.jsonl", of_case)
        rows += of_case
    assert [r.variant for r in read_rows(tmp_path / "tasks.jsonl")] == [r.variant for r in rows]
    console = Console(width=160, record=True)
    for case_name in dict.fromkeys(r.case for r in rows):
        console.print(case_table(case_name, rows))
    text = console.export_text()
    for words in ("torch-dense in chunks", "never in 32", "at 0.5", "exactly", "resa-torch b16 r1 f8", "its own"):
        assert words in text
    lines = [line for line in text.splitlines() if "│" in line]
    assert "torch-dense" in lines[0]
    last = sorted(of_case, key=lambda row: row.method == "torch-dense")  # as after a rerun of dense decoding alone
    again = Console(width=160, record=True)
    again.print(case_table(case_name, last))
    assert again.export_text() in text
    drawn = draw_all([tmp_path / "tasks.jsonl"], tmp_path)
    assert [p.name for p in drawn] == ["tasks-tiny.png", "tasks-tiny.svg"]
    words = drawn[1].read_text()
    for name in ("still equal to dense", "values copied exactly", "needles found", "ReSA (torch) b16 r1 f8"):
        assert name in words


def test_one_kernel_is_told_from_the_chain_of_its_period() -> None:
    chain, fused = looks(make_spec(name).variant for name in ("resa-chain", "resa-fused")).values()
    assert chain.colour != fused.colour
    assert chain.marker != fused.marker


# Flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen2.5-7b"], "random weights find no needle"),
        (["--context", "8K"], "over the 8192 that smollm2-135m handles"),
        (["--method", "torch-dense"], "is measured anyway"),
        (["--method", "nonsense"], "unknown; known are"),
        (["--samples", "0"], "must be 1 to"),
        (["--temperature", "-1"], "must be 0 to"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["tasks", "--plan", "--device", "cpu", *arguments])
    except SystemExit as error:  # argparse, of values out of range
        status = error.code  # type: ignore[assignment]
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "needle", "divergence", "--context", "2K", "--temperature", "0", "0.6"]
    assert main(["tasks", "--plan", "--device", "cpu", *arguments]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("divergence-2k-128-8x1 ", "divergence-2k-128-8x1-t0.6", "needle-2k-3x2"):
        assert f"tasks-smollm2-135m-{name}" in text
    for name in ("torch-dense", "sparse b16", "resa-torch b16 f16", "quest b16 per-head", "sink-window", "oracle b16"):
        assert name in text


def test_a_name_means_here_what_it_means_everywhere() -> None:
    dense, *named = choose_specs(options(FLAGS, {"method": ("quest", "retro", "resa-torch")}), CPU)
    assert dense == dense_spec(CPU)
    assert [s.variant for s in named] == [make_spec(name).variant for name in ("quest", "retro", "resa-torch")]
    swept = choose_specs(options(FLAGS, {"block_size": (16, 32), "dense_layers": (0, 2)}), CPU)
    assert {(s.config.block_size, s.dense_layers) for s in swept if s.name == "quest"} == {
        (16, 0), (16, 2), (32, 0), (32, 2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"pairs": 5}, "must be a multiple of series"), ({"prompt": 0}, "must be at least 1"), ({"dtype": "x"}, "dtype")],
)
def test_cases_check_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        copies(**settings)
