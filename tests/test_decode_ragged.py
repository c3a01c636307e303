"""Whole steps of sequences of many lengths: each as alone, the work of their tokens, cases and rows that say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import make_bench
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.cli import main
from resa_bench.suites.core.flags import K
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode.cases import (
    DecodeCase,
    beside_ragged,
    default_list,
    default_specs,
    following_specs,
    ragged_pair,
)
from resa_bench.suites.decode.run import CaseRun, run_case
from resa_bench.suites.decode.table import case_table, crossings
from resa_bench.suites.engine.bind import Place
from resa_bench.suites.engine.case import RAGGED, capacity
from resa_bench.suites.engine.costs import kv_bytes, memory_bytes, plan_costs, weight_bytes
from resa_bench.suites.engine.drift import DriftMeter
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.prompt import fill_synthetic
from resa_bench.suites.explain.command import kernel_of
from resa_bench.suites.model import config as model_config
from resa_bench.suites.model.config import MODELS
from resa_bench.suites.model.decoder import Decoder
from tiny_model import TINY, keep, tiny_decoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2, rectify_every=4)
LENGTHS, PERIODS = (70, 301, 133), 2
QWEN = MODELS["qwen2.5-7b"]

pytestmark = pytest.mark.usefixtures("inference")


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def engine_of(decoder: Decoder, state: State, name: str) -> Engine:
    kind = get_method(name)
    method = kind(decoder.config.attention(state.batch), SPARSE, dtype=torch.float32, device=CPU)
    every = SPARSE.rectify_every if "rectify_every" in kind.uses else None
    return Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=every)


def whole_state(decoder: Decoder) -> State:
    state = State.allocate(decoder, len(LENGTHS), 320, 64)
    fill_synthetic(state, seed=5)
    return state


def decoded(engine: Engine) -> tuple[torch.Tensor, torch.Tensor]:
    """Some periods, and a step after the last rectification: what was fed `[steps, B]`, the last logits."""
    steps = PERIODS * SPARSE.rectify_every
    generate(engine.step, engine.rectify if engine.rectify_every else None, SPARSE.rectify_every, steps)
    engine.step()
    return engine.state.history[: steps + 1].clone(), engine.logits.clone()


@pytest.mark.parametrize("name", ["torch-dense", "resa-torch"])
def test_each_sequence_decodes_as_alone(decoder: Decoder, name: str) -> None:
    """Tokens, logits, and the keys and values that steps and rectifications wrote, each at its own position."""
    steps = PERIODS * SPARSE.rectify_every + 1
    pending = torch.tensor([5, 9, 11])
    together = whole_state(decoder)
    together.start(torch.tensor(LENGTHS, dtype=torch.int32), pending)
    fed, logits = decoded(engine_of(decoder, together, name))
    assert together.lengths.tolist() == [length + steps for length in LENGTHS]
    for b, length in enumerate(LENGTHS):
        alone = whole_state(decoder).part(slice(b, b + 1))
        alone.start(length, pending[b : b + 1])
        own_fed, own_logits = decoded(engine_of(decoder, alone, name))
        assert torch.equal(fed[:, b : b + 1], own_fed)
        torch.testing.assert_close(logits[b : b + 1], own_logits, atol=2e-4, rtol=1e-4)
        written = slice(length, length + steps)
        for ours, own in zip(together.caches, alone.caches, strict=True):
            for x, y in ((ours.k[b], own.k[0]), (ours.v[b], own.v[0])):
                torch.testing.assert_close(x[:, written], y[:, written], atol=2e-4, rtol=1e-4)


def test_a_place_stands_where_each_sequence_does(decoder: Decoder) -> None:
    state = whole_state(decoder)
    place = Place(state, torch.tensor(LENGTHS, dtype=torch.int32), torch.tensor([5, 9, 11]))
    place.before(8)
    assert state.lengths.tolist() == [length - 8 for length in LENGTHS]
    place.after(8)
    assert (state.lengths.tolist(), int(state.count)) == (list(LENGTHS), 8)


def test_drift_is_of_each_sequence_at_its_place(decoder: Decoder) -> None:
    """With every block on the lists sparse steps are dense: nothing is off, wherever a sequence ends."""
    state = whole_state(decoder)
    state.start(torch.tensor(LENGTHS, dtype=torch.int32), torch.tensor([5, 9, 11]))
    every = replace(SPARSE, active_ratio=1.0)
    method = get_method("resa-torch")(decoder.config.attention(3), every, dtype=torch.float32, device=CPU)
    meter = DriftMeter(Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=4))
    for _ in range(4):
        meter.step()
    meter.rectify()
    assert meter.readings[0].kl == pytest.approx(0.0, abs=1e-6)
    assert max(meter.readings[0].change) < 1e-4


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["triton-dense", "resa"])
def test_floors_count_tokens(method: str) -> None:
    """16 of 2K to 32K read what 16 of 17K read; not what 16 of 32K do."""
    ragged, uniform = ragged_pair(DecodeCase("qwen2.5-7b", QWEN, 16, 32 * K, "int4"))
    assert ragged.sequence_tokens == [2 * K * i for i in range(1, 17)]
    assert (uniform.context, uniform.pattern) == (17 * K, None)
    longest = replace(ragged, pattern=None)
    ours, beside, most = (plan_costs(case, make_spec(method)) for case in (ragged, uniform, longest))
    assert ours.total.bytes == pytest.approx(beside.total.bytes, rel=0.01)  # lists are of whole blocks
    assert ours.total.flops == pytest.approx(beside.total.flops, rel=0.01)
    assert ours.total.bytes < 0.75 * most.total.bytes
    if method == "triton-dense":
        assert most.step.bytes - ours.step.bytes == QWEN.layers * kv_bytes(longest, 15 * K)


def test_memory_holds_the_longest_for_each() -> None:
    """Caches are contiguous: each sequence has room for the longest."""
    ragged, uniform = ragged_pair(DecodeCase("qwen2.5-7b", QWEN, 16, 32 * K, "int4"))
    assert (capacity(ragged), capacity(uniform)) == (32 * K, 17 * K)
    specs = [make_spec("triton-dense")]
    assert memory_bytes(ragged, specs) - memory_bytes(uniform, specs) == QWEN.layers * kv_bytes(ragged, 15 * K)


# --- cases ------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    ragged, uniform = ragged_pair(DecodeCase("qwen2.5-7b", QWEN, 16, 32 * K, "int4", products="best"))
    assert ragged.slug == "decode-qwen2.5-7b-int4-b16-32k-ragged-best"
    assert uniform.slug == "decode-qwen2.5-7b-int4-b16-17k-best"
    assert beside_ragged(replace(ragged, batch=3, context=100)).context == 54  # 7, 53, 100: rounded up
    assert ragged.columns()["selection_pattern"] == RAGGED
    assert uniform.columns()["selection_pattern"] == "synthetic"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 1}, "two sequences at least; give --batch"),
        ({"pattern": "recent"}, "pattern: got 'recent', allowed is ragged"),
        ({"prompt": "text"}, "ragged batches hold noise; take the prompt synthetic, not text"),
    ],
)
def test_wrong_cases(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeCase(**(dict[str, Any](model="x", config=TINY, batch=4, context=K, pattern=RAGGED) | change))


def test_the_full_list_alone_holds_a_ragged_batch_and_the_uniform_one_beside() -> None:
    def patterns(scale: str) -> list[tuple[int, int]]:
        listed = default_list(CUDA, scale, "qwen2.5-7b", QWEN, dtype="bf16", prompt="synthetic", seed=0)
        return [(c.batch, c.context) for c in listed if c.pattern]

    assert (patterns("default"), patterns("full")) == ([], [(16, 32 * K)])


def test_dense_methods_of_a_ragged_batch_follow_its_lengths() -> None:
    base = SparseConfig()
    specs = default_specs(CUDA, base, [16])
    more = following_specs(specs, base, CUDA)
    assert {spec.name for spec in more} == {"flash-attn-2", "flash-attn-3"}
    able = [spec.name for spec in (*specs, *more) if spec.is_dense and not spec.kind.fixes_length]
    assert able == ["triton-dense", "flash-attn-3", "flash-attn-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1"], "two sequences at least; give --batch"),
        (["--batch", "4", "--context", "256"], "--context 256: the shortest sequence has 16 tokens; periods of 32"),
        pytest.param(
            ["--client", "transformers"],
            "--pattern: is the engine's alone; leave it out beside --client transformers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--device", "cpu", "--model", "qwen2.5-7b", "--pattern", "ragged", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# --- rows -------------------------------------------------------------------------------------------------------------


def ragged_case(**change: Any) -> DecodeCase:
    return replace(DecodeCase("tiny", TINY, 3, 400, "fp32", "fp32", pattern=RAGGED), **change)


def started(decoder: Decoder, specs: list[MethodSpec]) -> CaseRun:
    """The ragged case with its model and caches in hand."""
    run = CaseRun(ragged_case(), specs, bench_on_cpu(), lambda _: None)
    run.prepare(keep(Loader(), decoder))
    return run


SPECS = [make_spec(name, SPARSE) for name in ("torch-dense", "resa-torch")]


def bench_on_cpu() -> Any:
    return make_bench(DecodePlan(seconds=0.0, periods=1, breakdown=False), Ceilings(1e5, 1e5, 1e3), "resa-bench decode")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model_config.MODELS, TINY.name, TINY)


@pytest.mark.usefixtures("model")
def test_rows_say_the_work_of_each_sequence() -> None:
    case = ragged_case()
    rows = [row for row in run_case(case, SPECS, bench_on_cpu()) if row.stage == "total"]
    assert {row.status for row in rows} == {"ok"}, [row.reason for row in rows]
    assert {row.case for row in rows} == {"decode-tiny-fp32-b3-400-ragged"}
    dense = rows[0]
    assert dense.tokens_per_s == pytest.approx(3e6 / (dense.mean_us or 1.0), rel=1e-4)
    assert "synthetic contexts of a 16th" in str(case_table(dense.case, rows).title)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_step_s_work_is_that_of_each_sequence(decoder: Decoder, spec: MethodSpec) -> None:
    """Counted at the lists of the last step, as planned before it: each sequence's tokens, not the longest's."""
    run = started(decoder, [spec])
    counted, planned = run.work(run.contend(spec)), plan_costs(run.case, spec)
    weights = run.decoder.weight_bytes - weight_bytes(run.case)
    assert run.state.lengths.tolist() == [25, 212, 400]
    assert counted.step.bytes - weights == pytest.approx(planned.step.bytes, rel=0.02)
    assert counted.rectification == planned.rectification


def test_a_method_of_one_length_is_skipped_with_the_reason(decoder: Decoder) -> None:
    run = started(decoder, [make_spec("sdpa-flash", SPARSE)])
    assert run.state.lengths.tolist() != [400] * 3
    with pytest.raises(Exception, match="SDPA takes one contiguous length; this cache is paged or ragged"):
        run.contend(make_spec("sdpa-flash", SPARSE))


def step_row(context: int, ratio: float, pattern: str) -> Row:
    return Row(
        suite="decode", case=f"c-{context}-{pattern}", method="resa", model="m", weight_dtype="int4", batch=16,
        q_heads=28, kv_heads=4, head_dim=128,
        context=context, block_size=16, stage="total", launch="graph", status="ok", median_us=1.0, mean_us=1.0,
        tokens_per_s=1.0, speedup_vs_best_dense=ratio, selection_pattern=pattern,
    )  # fmt: skip


def test_a_ragged_batch_is_no_point_of_a_curve() -> None:
    curve = [step_row(4 * K, 0.8, "synthetic"), step_row(16 * K, 1.2, "synthetic")]
    assert crossings(curve)
    assert crossings([*curve, step_row(32 * K, 0.5, RAGGED)]) == crossings(curve)


def test_the_kernel_beside_a_ragged_step_is_a_ragged_one() -> None:
    step = step_row(32 * K, 1.5, RAGGED)
    layer = replace(step, suite="micro", cache_state="cold")
    uniform = replace(layer, selection_pattern="random")
    assert kernel_of(step, [uniform, layer]) is layer
    assert kernel_of(replace(step, selection_pattern="synthetic"), [layer, uniform]) is uniform
