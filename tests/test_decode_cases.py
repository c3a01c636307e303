"""The decode suite before it measures: floors and memory by hand, periods, cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from resa_bench.kernels import SparseConfig
from resa_bench.kernels.config import ceil_div
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.core.flags import K
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode.cases import (
    DecodeCase,
    default_list,
    default_specs,
    is_study,
    prompt_tokens,
    ragged_pair,
    study_specs,
)
from resa_bench.suites.engine.case import capacity
from resa_bench.suites.engine.costs import memory_bytes, plan_costs
from resa_bench.suites.engine.measure import Timing, time_decoding, time_period
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.model.config import MODELS
from tiny_model import TINY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# --- floors -----------------------------------------------------------------------------------------------------------

H100 = Ceilings(3068.0, 3020.0, 790.0)


@pytest.mark.parametrize(
    ("batch", "weights", "shared", "dense_ms", "resa_ms"),
    [
        pytest.param(1, "bf16", False, 9.5, 5.7, id="b1-bf16"),
        pytest.param(1, "int4", False, 6.4, 2.5, id="b1-int4"),
        pytest.param(4, "int4", False, 21.1, 5.3, id="b4-int4"),
        pytest.param(8, "bf16", True, 43.8, 12.35, id="b8-bf16-shared"),
        pytest.param(8, "int4", True, 40.7, 9.1, id="b8-int4-shared"),
    ],
)
def test_floors_of_a_known_model(batch: int, weights: str, shared: bool, dense_ms: float, resa_ms: float) -> None:
    """The floors worked out by hand for Qwen2.5-7B at 256K, rectification by bytes there, by FLOPs too here."""
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], batch, 256 * K, weights, shared_kv=shared)
    dense = plan_costs(case, MethodSpec("triton-dense")).floor_us(H100) / 1e3
    resa = plan_costs(case, MethodSpec("resa"))
    by_bytes = Ceilings(3068.0, 3020.0, 1e9)
    assert dense == pytest.approx(dense_ms, rel=0.02)
    assert resa.floor_us(by_bytes) / 1e3 == pytest.approx(resa_ms, rel=0.03)
    assert resa.floor_us(H100) >= resa.floor_us(by_bytes)


def test_memory_of_known_cases() -> None:
    config, specs = MODELS["qwen2.5-7b"], [MethodSpec("resa"), MethodSpec("triton-dense")]
    single_gb = memory_bytes(DecodeCase("qwen2.5-7b", config, 1, 256 * K), specs) / 1e9
    assert single_gb == pytest.approx(15.2 + 15.03 + 0.94 + 4, rel=0.01)
    eight = DecodeCase("qwen2.5-7b", config, 8, 256 * K)
    assert memory_bytes(eight, specs) > 130e9
    shared = DecodeCase("qwen2.5-7b", config, 8, 256 * K, shared_kv=True)
    assert memory_bytes(shared, specs) / 1e9 == pytest.approx(15.2 + 8 * 0.57 + 4, rel=0.02)


def test_memory_that_clusters_exchange_through() -> None:
    """At a million tokens a word for each block of each row: 2 MB a layer, and what results take."""
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 1, 1024 * K, shared_kv=False)
    fused, chain = (memory_bytes(case, [MethodSpec(name)]) for name in ("resa", "resa-chain"))
    assert 58e6 < fused - chain < 70e6
    with_dense_layers = memory_bytes(case, [MethodSpec("resa", dense_layers=14)])
    assert fused - with_dense_layers > (fused - chain) / 2, "of sparse layers alone, beside their summaries"
    shared = replace(case, shared_kv=True)
    of_one_layer = memory_bytes(shared, [MethodSpec("resa")]) - memory_bytes(shared, [MethodSpec("resa-chain")])
    assert 28 * of_one_layer == fused - chain


def test_batch_64_of_8k_fits_a_gpu_of_80_gb() -> None:
    """30 GB of K and V, 4-bit weights that are held twice, and work space."""
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 64, 8 * K, "int4", products="best")
    need = memory_bytes(case, [MethodSpec("resa"), MethodSpec("triton-dense")])
    assert 64 * 8 * K * 57344 < need < 50e9


def test_a_ragged_batch_is_planned_by_its_tokens() -> None:
    """Its floors are those of as many tokens; its memory is that of rows as long as the longest."""
    config, methods = MODELS["qwen2.5-7b"], [MethodSpec("triton-dense"), make_spec("resa")]
    ragged, uniform = ragged_pair(DecodeCase("qwen2.5-7b", config, 16, 32 * K, "int4"))
    assert ragged.sequence_tokens == [2 * K * i for i in range(1, 17)]
    assert (uniform.context, uniform.pattern) == (17 * K, None)
    longest = replace(uniform, context=32 * K)
    dense, resa = ([plan_costs(case, spec) for case in (ragged, uniform, longest)] for spec in methods)
    assert dense[0] == dense[1]
    assert dense[0].step.bytes < 0.8 * dense[2].step.bytes
    assert resa[0].step.bytes == pytest.approx(resa[1].step.bytes, rel=0.01)
    assert memory_bytes(ragged, methods) == memory_bytes(longest, methods)
    full = default_list(CUDA, "full", "qwen2.5-7b", config, dtype="bf16", prompt="synthetic", seed=0)
    assert {ragged, uniform} <= set(full)


def test_layers_that_follow_rank_nothing_and_keep_nothing() -> None:
    """Half of 28 layers: of their codes a step reads none, and memory holds none."""
    config = MODELS["qwen2.5-7b"]
    every, half = (make_spec("resa-plus", selector=name) for name in ("pairs", "pairs-shared2"))
    codes = 256 * K // 2 * 4 * 128 // 2  # of a layer: pairs, heads, 4 bits a channel
    for batch in (1, 4):
        case = DecodeCase("qwen2.5-7b", config, batch, 256 * K)
        whole, less = (plan_costs(case, spec).step.bytes for spec in (every, half))
        assert whole - less == batch * 14 * codes
        room = batch * 14 * config.attention(1).kv_heads * ceil_div(capacity(case), 8) * 4 * 128 // 2
        assert memory_bytes(case, [every]) - memory_bytes(case, [half]) == room
    shared = DecodeCase("qwen2.5-7b", config, 1, 256 * K, shared_kv=True)
    assert memory_bytes(shared, [every]) == memory_bytes(shared, [half]), "the layers that choose share their codes"


# --- periods ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


def test_the_last_interval_of_a_period_holds_its_rectification() -> None:
    clock = Clock()
    intervals, wall = time_period(clock.takes(0.001), clock.takes(0.005), 4, CPU, clock)
    assert intervals == pytest.approx([1000, 1000, 1000, 6000])
    assert wall == pytest.approx(9000)


def test_whole_periods_until_both_bounds_are_met() -> None:
    clock = Clock()
    restarts: list[float] = []
    timing = time_decoding(
        clock.takes(0.001), clock.takes(0.004), 4, CPU,
        restart=lambda: restarts.append(clock.now), periods=2, seconds=0.02, clock=clock,
    )  # fmt: skip
    assert len(restarts) == 3
    assert len(timing.token_us) == 12
    assert timing.mean_us == pytest.approx(2000)  # (4 + 4) ms over 4 tokens
    assert timing.wall_mean_us == pytest.approx(2000)
    assert timing.quantile_us(0.5) == pytest.approx(1000)
    assert timing.quantile_us(0.99) == pytest.approx(5000, rel=0.05)


def test_a_rectification_timed_apart_is_in_the_mean_alone() -> None:
    timing = Timing([100.0, 200.0], 320.0, apart_us=50.0)
    assert (timing.mean_us, timing.wall_mean_us, timing.quantile_us(1.0)) == (200.0, 210.0, 200.0)


# --- cases ------------------------------------------------------------------------------------------------------------


def test_slugs() -> None:
    config = MODELS["qwen2.5-7b"]
    assert DecodeCase("qwen2.5-7b", config, 1, 256 * K, "int4").slug == "decode-qwen2.5-7b-int4-b1-256k"
    assert DecodeCase("x", config, 8, 1000, shared_kv=True).slug == "decode-qwen2.5-7b-bf16-b8-1000-shared"
    sampled = DecodeCase("x", config, 1, K, prompt="text", sampling=Sampling(0.6, 0.9))
    assert sampled.slug == "decode-qwen2.5-7b-bf16-b1-1k-text-t0.6-p0.9"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "context, batch: got 4096, 0"),
        ({"weights": "int3"}, "weights: got 'int3', allowed are bf16, fp16, fp32, int4, fp8"),
        ({"dtype": "fp8"}, "dtype: got 'fp8'"),
        ({"weights": "fp16"}, "weights: got fp16 beside bf16 activations"),
        ({"pattern": "ragged"}, "ragged batches have two sequences at least; give --batch"),
        ({"pattern": "ragged", "batch": 2, "prompt": "text"}, "pattern: ragged batches hold noise"),
        ({"pattern": "clustered"}, "pattern: got 'clustered', allowed is ragged"),
        ({"prompt": "zeros"}, "prompt: got 'zeros', allowed are synthetic, text"),
    ],
)
def test_wrong_cases(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeCase(**(dict[str, Any](model="tiny", config=TINY, batch=1, context=4096) | change))


def test_default_list_on_a_gpu_holds_every_case_of_the_readme() -> None:
    cases = default_list(CUDA, "default", "qwen2.5-7b", MODELS["qwen2.5-7b"], dtype="bf16", prompt="synthetic", seed=0)
    asked = {(c.weights, c.batch, c.context // K, c.shared_kv) for c in cases}
    assert {("bf16", 1, 256, False), ("int4", 1, 256, False), ("int4", 4, 256, False)} <= asked
    assert {("bf16", 8, 256, True), ("bf16", 8, 16, True), ("int4", 8, 256, True)} <= asked
    assert {("int4", 32, 8, False), ("int4", 32, 32, False)} <= asked
    assert len(cases) == 15  # nine minutes on an H100: exchange cases rather than add
    assert [c.slug for c in cases if is_study(c)] == ["decode-qwen2.5-7b-int4-b1-256k"]
    specs = default_specs(CUDA, SparseConfig(), [16])
    assert [s.label for s in specs] == [
        "sdpa-cudnn",
        "triton-dense",
        "resa b16",
        "quest b16 group-sum",
    ]
    assert next(s for s in specs if s.name == "quest").dense_layers == 2
    assert {s.config.rectify_every for s in study_specs(cases[2], specs, CUDA)} == {16, 32, 64, 128}


def test_capacity() -> None:
    assert capacity(DecodeCase("m", TINY, 1, 256 * K)) == 256 * K
    assert capacity(DecodeCase("m", TINY, 1, 1000)) == 1024


def test_a_text_ends_at_the_context() -> None:
    spec = MethodSpec("resa", SparseConfig(rectify_every=32))
    assert prompt_tokens(DecodeCase("m", TINY, 1, 1000, prompt="text"), [spec]) == 1000 - 3 * 32
