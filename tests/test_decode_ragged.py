"""Sequences of many lengths: where they stand, what their steps read, which methods serve them, which rows compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import make_bench
from resa_bench.kernels import SparseConfig, Unsupported, get_method
from resa_bench.suites.cli import main
from resa_bench.suites.core.flags import K
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode.cases import DecodeCase, beside_ragged, default_specs, following_specs
from resa_bench.suites.decode.run import CaseRun
from resa_bench.suites.decode.table import crossings
from resa_bench.suites.engine.case import RAGGED
from resa_bench.suites.engine.costs import plan_costs, weight_bytes
from resa_bench.suites.engine.drift import DriftMeter
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.prompt import fill_synthetic
from resa_bench.suites.explain.command import kernel_of
from resa_bench.suites.model.decoder import Decoder
from tiny_model import TINY, keep, tiny_decoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2, rectify_every=4)
CASE = DecodeCase("tiny", TINY, 3, 400, "fp32", "fp32", pattern=RAGGED)  # of 25, 212 and 400 tokens

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def started(decoder: Decoder, spec: MethodSpec) -> CaseRun:
    """The case with its model and caches in hand."""
    run = CaseRun(CASE, [spec], make_bench(), lambda _: None)
    run.prepare(keep(Loader(), decoder))
    return run


@pytest.mark.parametrize("name", ["torch-dense", "resa-torch"])
def test_work_is_counted_as_planned(decoder: Decoder, name: str) -> None:
    """At the lists of the last step: of each sequence's tokens, not of the longest's."""
    spec = make_spec(name, SPARSE)
    run = started(decoder, spec)
    counted, planned = run.work(run.contend(spec)), plan_costs(CASE, spec)
    weights = run.decoder.weight_bytes - weight_bytes(CASE)  # norms, biases
    longest = plan_costs(replace(CASE, pattern=None), spec)
    assert counted.step.bytes - weights == pytest.approx(planned.step.bytes, rel=0.02)
    assert counted.rectification == planned.rectification
    assert planned.total.bytes < 0.9 * longest.total.bytes


def test_a_method_of_one_length_is_refused_with_the_reason(decoder: Decoder) -> None:
    spec = make_spec("sdpa-flash", SPARSE)
    with pytest.raises(Unsupported, match="SDPA takes one contiguous length; this cache is paged or ragged"):
        started(decoder, spec).contend(spec)


def test_drift_is_of_each_sequence_at_its_place(decoder: Decoder) -> None:
    """With every block on the lists sparse steps are dense: nothing is off, wherever a sequence ends."""
    state = State.allocate(decoder, 3, 448, 16)
    fill_synthetic(state)
    state.start(torch.tensor(CASE.sequence_tokens, dtype=torch.int32), torch.tensor([5, 9, 11]))
    config = replace(SPARSE, active_ratio=1.0)
    method = get_method("resa-torch")(decoder.config.attention(3), config, dtype=torch.float32, device=CPU)
    layers = bind_layers(state, method, None, 0)
    meter = DriftMeter(Engine(decoder, state, layers, rectify_every=config.rectify_every))
    for _ in range(config.rectify_every):
        meter.step()
    meter.rectify()
    assert meter.readings[0].kl == pytest.approx(0.0, abs=1e-6)
    assert max(meter.readings[0].change) < 1e-4


def test_dense_methods_beside_a_ragged_batch_follow_its_lengths() -> None:
    specs = default_specs(CUDA, SPARSE, [16])
    more = following_specs(specs, SPARSE, CUDA)
    able = [spec.name for spec in (*specs, *more) if spec.is_dense and not spec.kind.fixes_length]
    assert able == ["triton-dense", "flash-attn-3", "flash-attn-2"]
    assert not following_specs([*specs, *more], SPARSE, CUDA)


def test_the_uniform_batch_has_no_fewer_tokens() -> None:
    assert CASE.sequence_tokens == [25, 212, 400]
    assert beside_ragged(CASE).context == 213


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1"], "two sequences at least; give --batch"),
        (["--batch", "4", "--context", "256"], "--context 16 for the shortest sequence of 256: periods of 32 tokens"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--device", "cpu", "--model", "qwen2.5-7b", "--pattern", "ragged", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def step_row(context: int, ratio: float, pattern: str, **columns: Any) -> Row:
    common: dict[str, Any] = {
        "suite": "decode", "case": f"c-{context}-{pattern}", "method": "resa", "model": "m", "weight_dtype": "int4",
        "q_heads": 28, "kv_heads": 4, "head_dim": 128, "batch": 16, "context": context, "block_size": 16,
        "stage": "total", "launch": "graph", "status": "ok", "median_us": 1.0, "mean_us": 1.0, "tokens_per_s": 1.0,
        "speedup_vs_best_dense": ratio, "selection_pattern": pattern,
    }  # fmt: skip
    return Row(**(common | columns))


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
