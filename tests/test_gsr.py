"""The GSR suite: candidates on a shared prompt against each alone, ragged ends, times that add up, flags."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from benches import make_bench, recorded
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.suites.cli import main
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.checks import _newest
from resa_bench.suites.engine.costs import second_bytes
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.gsr import run as gsr_run
from resa_bench.suites.gsr import suite
from resa_bench.suites.gsr import table as gsr_table
from resa_bench.suites.gsr.break_even import Predicted
from resa_bench.suites.gsr.cases import (
    INSTRUCTION,
    LENGTHS,
    GsrCase,
    Segment,
    scaled,
    segments,
)
from resa_bench.suites.gsr.phase import Launch, Point, contexts, integrate, run_in_full
from resa_bench.suites.gsr.run import STAGES, GsrRun, memory_bytes, run_case
from resa_bench.suites.gsr.shared import allocate
from resa_bench.suites.gsr.table import case_table, steps_table
from rich.console import Console
from tiny_model import TINY, keep, tiny_decoder

CPU = torch.device("cpu")
GREEDY = Sampling()
SMALL = SparseConfig(min_blocks=2, rectify_every=8)
DENSE, RESA = make_spec("torch-dense", SMALL), make_spec("resa-torch", SMALL)
CASE = GsrCase(
    "tiny", TINY, (20, 44, 31), prompt=203, summary=6, answer=12, weights="fp32", dtype="fp32", run="full",
    page_size=None, sampling=GREEDY,
)  # fmt: skip
PLAN = DecodePlan(seconds=0.0, periods=1)
pytestmark = pytest.mark.usefixtures("one_thread", "inference")


def tiny_bench(layers: int = TINY.layers) -> Bench:
    """With a model whose attention matters, kept as if it had been loaded."""
    bench = make_bench(PLAN)
    keep(bench.held(Loader), tiny_decoder(replace(TINY, layers=layers)), None)
    return bench


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


def started(bench: Bench, case: GsrCase, spec: MethodSpec) -> GsrRun:
    """A case prepared, its candidates told apart by the token that each begins with."""
    run = GsrRun(case, [spec], bench, lambda text: None)
    run.prepare(bench.held(Loader))
    run.pending = torch.arange(7, 7 + case.batch)
    return run


def alone(run: GsrRun, spec: MethodSpec, name: str, candidate: int, tokens: int, sampling: Any) -> torch.Tensor:
    """What one candidate says by itself, from a cache of its own."""
    state = State.allocate(run.decoder, 1, 512, tokens + 8)
    prefill(run.decoder, state, run.problem[None])
    state.start(len(run.problem), run.pending[candidate : candidate + 1])
    kind = get_method(name)
    method = kind(run.case.config.attention(1), spec.config, dtype=torch.float32, device=CPU)
    every = spec.config.rectify_every
    engine = Engine(
        run.decoder, state, bind_layers(state, method, None, 0), rectify_every=None if kind.is_dense else every,
        sampling=sampling(state, candidate),
    )  # fmt: skip
    generate(engine.step, None if kind.is_dense else engine.rectify, every, tokens)
    return state.history[:tokens, 0]


class Noise:
    """Sampling by noise that hangs on the candidate and its token alone, so that batches of any size draw alike."""

    def __init__(self, count: torch.Tensor, first: int = 0) -> None:
        self.count, self.first = count, first
        generator = torch.Generator().manual_seed(4)
        self.gumbel = -torch.log(-torch.log(torch.rand(256, 4, TINY.vocab, generator=generator)))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        noise = self.gumbel[int(self.count), self.first : self.first + len(logits)]
        return (logits / 0.8 + noise).argmax(-1)


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("spec", [DENSE, RESA], ids=["dense", "resa"])
def test_candidates_say_what_each_says_alone(bench: Bench, spec: MethodSpec, sampled: bool) -> None:
    """Rectification, too, has each candidate's own period, whoever ends in between; lengths are the list's."""
    run = started(bench, CASE, spec)
    state = run.candidates(run.layout(spec))
    if sampled:
        object.__setattr__(run, "case", replace(CASE, sampling=cast(Any, Noise(state.count))))
    timed = run.full(spec, "candidates", state, CASE.prompt, run.script)
    ends = sorted(CASE.lengths, reverse=True)
    assert state.lengths.tolist() == [CASE.prompt + n for n in ends]
    assert (timed.steps, timed.tokens) == (44, 95)
    texts = []
    for b, n in enumerate(ends):
        sampling = (lambda s, b: Noise(s.count, b)) if sampled else lambda s, b: GREEDY
        texts.append(alone(run, spec, spec.name, b, n, sampling))
        assert torch.equal(state.history[:n, b], texts[-1])
        assert not state.history[n:, b].any(), "nothing after its end"
    assert len({tuple(text[:20].tolist()) for text in texts}) == 3
    refine = run.refine_prompt(state)
    assert len(refine) == CASE.refine == INSTRUCTION + 203 + 18
    assert torch.equal(refine[-6:], texts[2][-6:])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "portable"), [("triton-dense", "torch-dense"), ("resa", "resa-torch")])
def test_candidates_on_shared_pages_say_what_each_says_alone(
    name: str, portable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels' path: whole pages of the prompt exist once, K, V and summaries, and stay as they were."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("token for token in fp32, which the kernels take under the interpreter alone")
    spec = make_spec(name, SMALL, rectify_every=2, min_blocks=1)
    case = replace(CASE, config=replace(TINY, layers=1), lengths=(1, 3), prompt=70, summary=1, page_size=64)
    run = started(tiny_bench(layers=1), case, spec)
    assert run.layout(spec)
    state = run.candidates(True)
    cache = state.caches[0]
    assert cache.k.shape[0] == 1 + 2 * 1
    table = cache.block_table
    assert table is not None
    assert torch.equal(table[0, :1], table[1, :1])
    assert table[0, 1] != table[1, 1]
    shared = int(table[0, 0])
    before = cache.k[shared].clone(), cache.v[shared].clone()
    assert before[0].any()
    bound: list[Any] = []
    monkeypatch.setattr(run, "bind", recorded(run.bind, bound))
    run.full(spec, "candidates", state, 70, run.script)
    assert state.lengths.tolist() == [73, 71]
    if name == "resa":
        whole, part = (b.engine.layers[0].summaries.data for b in bound)
        assert whole.shape[0] == cache.k.shape[0]
        assert part.data_ptr() == whole.data_ptr()
    assert torch.equal(cache.k[shared], before[0])
    assert torch.equal(cache.v[shared], before[1])
    for b, n in enumerate((3, 1)):
        assert torch.equal(state.history[:n, b], alone(run, spec, portable, b, n, lambda s, b: GREEDY))


@pytest.mark.parametrize("page_size", [None, 64])
def test_the_gate_finds_the_newest_tokens_of_any_cache(page_size: int | None) -> None:
    state = allocate(tiny_decoder(replace(TINY, layers=1)), 2, 100, 150, 8, page_size)
    cache = state.caches[0]
    for b, length in ((0, 130), (1, 140)):
        cache.k[_newest(cache, b, length, 6)] = 1.0 + b
    keys, _ = cache.gather()
    for b, length in ((0, 130), (1, 140)):
        assert (keys[b, :, length - 6 : length] == 1.0 + b).all()
        assert not keys[b, :, : length - 6].any()
        assert not keys[b, :, length:].any()


def test_pages_of_the_prompt_exist_once() -> None:
    decoder = tiny_decoder(replace(TINY, layers=1))
    state = allocate(decoder, 4, 200, 500, 8, 64)
    cache = state.caches[0]
    assert cache.k.shape[0] == 3 + 4 * 5  # 192 of 200 tokens shared; 8 pages a candidate
    assert cache.capacity == 512
    table = cache.block_table
    assert table is not None
    assert len(table.unique()) == 23
    assert all(torch.equal(table[0, :3], table[b, :3]) for b in range(4))
    part = state.part(slice(2))
    part.lengths.fill_(5)
    assert state.lengths.tolist() == [5, 5, 0, 0]
    assert part.caches[0].k is cache.k
    assert part.history.shape == (8, 2)
    contiguous = allocate(decoder, 4, 200, 500, 8, None)
    contiguous.part(slice(3)).caches[0].k.fill_(1.0)
    assert contiguous.caches[0].k[:3].all()
    assert not contiguous.caches[0].k[3:].any()


# --- scripts and times ------------------------------------------------------------------------------------------------


def test_segments() -> None:
    assert segments((9, 11, 14, 18)) == [Segment(4, 0, 9), Segment(3, 9, 11), Segment(2, 11, 14), Segment(1, 14, 18)]
    assert segments((5, 9, 5)) == [Segment(3, 0, 5), Segment(1, 5, 9)]
    assert segments((7,)) == [Segment(1, 0, 7)]
    assert sum(s.active * s.steps for s in segments(LENGTHS)) == sum(LENGTHS) == 4 * 13_000
    assert scaled((9000, 3), 0.01) == (90, 1)


def test_a_full_run_steps_as_the_script_says() -> None:
    calls: list[str] = []

    def launch(n: int) -> Launch:
        return Launch(lambda: calls.append(f"s{n}"), lambda: calls.append(f"r{n}"), 4)

    ticks = iter(range(0, 100, 5))
    seconds = run_in_full({2: launch(2), 1: launch(1)}, segments((3, 9)), CPU, clock=lambda: float(next(ticks)))
    assert seconds == [5.0, 5.0]
    assert calls == ["s2"] * 3 + ["s1", "r1"] + ["s1"] * 4 + ["r1", "s1"]


def test_integration_is_exact_where_steps_are_linear() -> None:
    part = Segment(3, 100, 300)
    at = contexts(part, 50, 3)
    assert at == [151, 251, 350]
    step = lambda c: 10.0 + 0.5 * c  # noqa: E731
    exact = sum(step(c) for c in range(151, 351)) * 1e-6
    assert integrate(part, [Point(3, c, step(c)) for c in at]) == pytest.approx(exact, rel=1e-3)
    assert contexts(part, 50, 1) == [250]
    assert integrate(part, [Point(3, 250, 7.0)]) == pytest.approx(200 * 7e-6)
    assert contexts(Segment(1, 4, 5), 50, 3) == [55]
    bent = [Point(3, 151, 1.0), Point(3, 251, 3.0), Point(3, 351, 3.0)]
    assert integrate(part, bent) == pytest.approx(200 * 2.5e-6)


def row_of(rows: list[Row], method: str, stage: str) -> Row:
    [row] = [r for r in rows if (r.method, r.stage) == (method, stage)]
    return row


@pytest.mark.parametrize("how", ["full", "sampled"])
@pytest.mark.slow
def test_rows_whose_times_add_up(bench: Bench, how: str) -> None:
    case = replace(CASE, run=how, points=2)
    rows = run_case(case, [DENSE, RESA], bench)
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    for method in ("torch-dense", "resa-torch"):
        first, second, answer = (row_of(rows, method, stage) for stage in STAGES)
        prefills = [r.value or 0.0 for r in rows if (r.method, r.stage) == (method, "prefill")]
        assert len(prefills) == 2
        assert answer.value == pytest.approx(sum(prefills) + (first.value or 0) + (second.value or 0), rel=1e-4)
        assert first.tokens_per_s == pytest.approx(95 / (first.value or 0), rel=1e-4)
        assert second.mean_us == pytest.approx((second.value or 0) / 12 * 1e6, rel=1e-4)
        assert (first.batch, second.batch, first.context, second.context) == (3, 1, 247, CASE.refine + 12)
        assert 0 < (first.error_budget_used or 0) <= 1
        steps = [r for r in rows if (r.method, r.stage) == (method, "candidates_step")]
        assert [r.batch for r in steps] == ([3, 2, 1] if how == "full" else [3, 3, 2, 2, 1, 1])
        if how == "full":  # the mean steps of the segments are the phase
            took = sum((r.mean_us or 0) * s.steps for r, s in zip(steps, segments(CASE.lengths), strict=True))
            assert took * 1e-6 == pytest.approx(first.value, rel=1e-4)
    for stage in STAGES:
        dense, resa = row_of(rows, "torch-dense", stage), row_of(rows, "resa-torch", stage)
        assert resa.best_dense == "torch-dense"
        assert dense.speedup_vs_best_dense == 1
        assert resa.speedup_vs_best_dense == pytest.approx((dense.value or 0) / (resa.value or 1), rel=1e-3)
    assert row_of(rows, "resa-torch", "answer").selection_pattern == ("prompt" if how == "full" else "synthetic")
    console = Console(width=200, record=True)
    console.print(case_table(case.slug, rows))
    console.print(steps_table(case.slug, rows))
    text = console.export_text()
    assert re.search(r"torch-dense( \(others ran\))? \(best dense\)", text)
    assert "copied" in text


def test_a_wrong_kernel_gets_no_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = get_method("resa-torch")
    original = kind.prepare

    def prepare(self: Any, cache: Any) -> Any:
        layer = original(self, cache)
        vars(layer)["output"] = lambda cells: cells.out * 1.01
        return layer

    monkeypatch.setattr(kind, "prepare", prepare)
    rows = run_case(replace(CASE, lengths=(8, 9), answer=4), [DENSE, RESA], bench)
    assert [(r.status, r.mean_us) for r in rows if r.method == "resa-torch"] == [("failed", None)]
    assert row_of(rows, "torch-dense", "answer").status == "ok"


@pytest.mark.slow
def test_what_fixes_its_length_is_not_run_in_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_method("torch-dense"), "fixes_length", True)
    [row] = run_case(CASE, [DENSE], bench)
    assert (row.status, row.final) == ("skipped", True)
    assert "--run sampled times it" in (row.reason or "")
    rows = run_case(replace(CASE, run="sampled", points=2, lengths=(40,)), [DENSE], bench)
    assert row_of(rows, "torch-dense", "answer").status == "ok"


@pytest.mark.parametrize(
    ("ratios", "always", "ways"),
    [
        pytest.param((0.97, 1.5), False, ("dense", None), id="candidates-dense"),
        pytest.param((1.5, 1.01), False, (None, "dense"), id="answer-dense"),
        pytest.param((0.9, 0.9), True, (None, None), id="forced"),
    ],
)
def test_a_phase_below_its_break_even_runs_dense_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ratios: tuple[float, float], always: bool,
    ways: tuple[str | None, str | None],
) -> None:  # fmt: skip
    """The rows say so and why; the engine has no rectification then."""
    case = replace(CASE, lengths=(8, 9), answer=9, run="sampled", points=1, always_sparse=always)
    monkeypatch.setattr(gsr_run, "CHOOSES", "resa-torch")
    monkeypatch.setattr(gsr_run, "model_of", lambda device: device)
    of_prompt = {case.prompt: ratios[0], case.refine: ratios[1]}
    monkeypatch.setattr(gsr_run, "predict", lambda *given: Predicted(of_prompt[given[4]], "a row"))
    bound: list[Any] = []
    monkeypatch.setattr(GsrRun, "bind", recorded(GsrRun.bind, bound))
    rows = run_case(case, [RESA], bench)
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    phases = [row_of(rows, "resa-torch", stage) for stage in STAGES[:2]]
    assert tuple(row.way for row in phases) == ways
    for row in phases:
        assert ("dense below break-even" in (row.reason or "")) is (row.way == "dense")
    assert all((b.engine.rectify_every is None) == b.spec.is_dense for b in bound)
    assert row_of(rows, "resa-torch", "answer").way == ("dense" if "dense" in ways else None)
    assert ("sparse" in case.further_words) is always
    console = Console(width=300, record=True)
    gsr_table.print_report(rows, console)
    text = console.export_text()
    assert text.count("dense below break-even: sparse steps are predicted") == ways.count("dense")


def test_sixteen_candidates() -> None:
    given = {"candidates": 16, "model": "qwen2.5-7b", "size": 1.0, "run": "sampled", "page_size": 256, "dtype": "bf16"}
    case = suite.choose_case(options(suite.FLAGS, given), CPU)
    assert sorted(case.lengths) == sorted(LENGTHS * 4)
    assert [part.active for part in segments(case.lengths)] == [16, 12, 8, 4]
    assert case.refine == 6144
    assert case.slug == "gsr-qwen2.5-7b-bf16-n16-p256-a208000-m18000-r6144-b8192-sampled"
    best = replace(case, weights="int4", products="best", always_sparse=True)
    assert best.slug.endswith("-sampled-best-sparse")
    assert best.columns()["products"] == "best"
    assert memory_bytes(best) - memory_bytes(replace(best, products="ours")) == second_bytes(best) > 3e9
    assert memory_bytes(best) < 60e9
    with pytest.raises(ValueError, match="products: best is of int4 or fp8 weights, got bf16"):
        replace(case, products="best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "6"], "--candidates 6: default lengths are of a multiple of 4 candidates; give --lengths"),
        (["--products", "best"], "--products best: is of 4-bit and 8-bit weights; give --weights int4 or fp8"),
        (["--lengths", "100", "9000"], "lengths: 9256 tokens, over the 8192"),
        (["--lengths", "100", "-5"], "--lengths: got -5, must be 1 to"),
        (["--lengths", "100", "200", "--candidates", "3"], "2 lengths for 3 candidates"),
        (["--lengths", "100", "200", "--summary-tokens", "150"], "the shortest candidate has 100"),
        (["--lengths", *["3000"] * 4, "--summary-tokens", "2000"], "at most 6144; take shorter summaries"),
        (["--answer", "9K"], "over the 8192 that smollm2-135m handles"),
        (["--scale", "0"], "--scale: got 0, must be above 0"),
        (["--points", "9"], "--points 9: a full run decodes every token; points need --run sampled"),
        (["--points", "3", "--run", "full"], "points need --run sampled"),
        (["--page-size", "48"], "must be a multiple of 64"),
        (["--method", "nonsense"], "unknown; known are"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # argparse's own way out, with the same status
        assert main(["gsr", "--plan", "--device", "cpu", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gsr", "--plan", "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "candidates of 70, 86, 109, 141 tokens after 256 an answer of 64 tokens after 352" in text
    assert main(["gsr", "--plan", "--device", "cpu", "--model", "qwen2.5-14b", "--scale", "1", "--run", "sampled"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "gsr-qwen2.5-14b-fp32-n4-p256-a52000-m18000-r4160-b8192-sampled" in text


def test_points_are_of_a_sampled_run() -> None:
    def points(**given: Any) -> int:
        return suite.choose_case(options(suite.FLAGS, given), CPU).points

    assert points(run="sampled", points=9) == 9
    assert points(run="sampled") == points() == suite.POINTS


def test_a_name_means_the_same_as_everywhere() -> None:
    """Quest per head with two dense layers, RetroAttention by the group's sum, whatever the command."""
    given = {"method": ("quest", "retro"), "block_size": (16, 32)}
    specs = suite.choose_specs(options(suite.FLAGS, given), CPU)
    assert specs == [make_spec(name, block_size=b) for name in ("quest", "retro") for b in (16, 32)]
    assert [spec.config.gqa_policy for spec in specs] == ["per-head"] * 2 + ["group-sum"] * 2
    assert [spec.dense_layers for spec in specs] == [2, 2, None, None]


def test_candidates_of_equal_lengths_are_candidates_each() -> None:
    case = suite.choose_case(options(suite.FLAGS, {"lengths": [100, 100, 90]}), CPU)
    assert case.lengths == (100, 100, 90)


@pytest.mark.slow
def test_quest_keeps_its_first_layers_dense(bench: Bench) -> None:
    spec = make_spec("quest", SMALL, dense_layers=1)
    run = started(bench, CASE, spec)
    bound = run.bind(spec, run.candidates(False).part(slice(1)), CASE.prompt)
    first, *rest = (layer.selection() for layer in bound.engine.layers)
    assert first is None
    assert all(selection is not None for selection in rest)
