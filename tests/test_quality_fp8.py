"""The quality suite with keys and values in fp8: rounded as the kernels round them, compared with 16-bit decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import recorded
from kernel_cases import DEVICE, make_cache, random
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method, write_tokens
from resa_bench.kernels.checks import kernel_dtypes
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import make_timer
from resa_bench.suites.core.analysis import mean_of
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine import methods
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.forced import run_forced
from resa_bench.suites.quality.parallel import dense_parallel, run_parallel
from resa_bench.suites.quality.run import run_case
from resa_bench.suites.quality.suite import FLAGS, plan
from tiny_model import TINY, keep, tiny_decoder

CPU = torch.device("cpu")
BATCH, PROMPT, STEPS = 1, 43, 4
CASE = QualityCase("tiny", TINY, prompt=60, steps=40, kv_dtype="fp8")
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2)
DENSE = make_spec("torch-dense")
RESA = make_spec("resa-torch", SPARSE, rectify_every=4)


def test_what_a_cache_would_hold_is_what_kernels_write() -> None:
    """Bit by bit, saturation and numbers below the least normal one included."""
    dtype = kernel_dtypes()[-1]
    cache = make_cache([64, 33], capacity=96, dtype=dtype, kv_dtype="fp8")
    k, v = random(2, 2, 5, 2, 64, dtype=dtype, seed=5)
    k[0, 0], v[1, 2] = k[0, 0] * 1e-3, v[1, 2] * 1e4
    wanted = cache.as_held(k.transpose(1, 2), v.transpose(1, 2))
    assert not torch.equal(wanted[0], k.transpose(1, 2))
    write_tokens(cache, k, v)
    for b, length in enumerate((64, 33)):
        held = cache.held(slice(length - 5, length))
        for x, y in zip(held, wanted, strict=True):
            assert torch.equal(x[b], y[b])
    plain = make_cache([8], dtype=dtype)
    k, v = random(2, 1, 2, 1, 64, dtype=dtype, seed=0)
    assert all(x is y for x, y in zip(plain.as_held(k, v), (k, v), strict=True))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter multiplies in fp32")
@pytest.mark.parametrize("name", ["triton-dense", "resa-chain"])
@pytest.mark.slow
def test_equals_the_kernels_step_by_step(name: str) -> None:
    """Logits, keys and values that the kernels' steps leave in caches in fp8, rectified on the way."""
    spec = make_spec(name, SPARSE, rectify_every=3, block_size=8) if name == "resa-chain" else make_spec(name)
    config = replace(TINY, layers=2)
    decoder = tiny_decoder(config)
    text = torch.randint(0, TINY.vocab, (BATCH, PROMPT + STEPS + 1), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, fp8 = (
            State.allocate(decoder, BATCH, 64, STEPS + 1, kv_dtype=kv_dtype) for kv_dtype in (None, "fp8")
        )  # fmt: skip
        for state in (exact, fp8):
            prefill(decoder, state, text[:, :PROMPT])
        reference = dense_parallel(decoder, exact, PROMPT, text[:, PROMPT:])
        restored = dense_parallel(decoder, fp8, PROMPT, text[:, PROMPT:]).kv
        at_once = run_parallel(decoder, fp8, spec, PROMPT, reference, restored=restored)
        fp8.start(PROMPT, text[:, PROMPT])
        settings = replace(spec.config, chunk_kernel="triton")
        method = get_method(name)(config.attention(BATCH), settings, dtype=torch.float32, device=CPU)
        every = spec.config.rectify_every if spec.rectifies else None
        engine = Engine(decoder, fp8, bind_layers(fp8, method, None, 0), rectify_every=every)
        stepwise = run_forced(engine, engine.step, engine.rectify if every else None, PROMPT, reference)
    for metric in ("kl", "loss", "kv_error"):
        torch.testing.assert_close(at_once.values[metric], stepwise.values[metric], atol=1e-6, rtol=5e-3)
    assert 0.01 < float(at_once.kv_error[0]) < 0.06  # of the first layer, rounding alone
    assert float(stepwise.values["kl"].mean()) > 2e-6


def make_bench() -> Bench:
    bench = Bench(CPU, describe(CPU), "test", None, make_timer(CPU), Ceilings(10.0, 10.0, 0.1))
    bench._held[Loader] = keep(Loader(), tiny_decoder())
    return bench


def of(rows: list[Row], spec: MethodSpec) -> list[Row]:
    return [row for row in rows if row.variant == spec.variant]


@pytest.mark.slow
def test_dense_decoding_from_fp8_is_a_method_and_16_bits_what_it_is_compared_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A case in fp8 takes its texts and its reference from the same case in 16 bits."""
    states: list[Any] = []
    monkeypatch.setattr(methods, "prefill", recorded(prefill, states))
    bench, plain = make_bench(), replace(CASE, kv_dtype=None)
    usual = run_case(plain, [RESA], bench)
    fp8 = run_case(CASE, [RESA, DENSE], bench)
    alone = run_case(CASE, [RESA, DENSE], make_bench())
    assert len(states) == 4  # two, then two
    assert {identity(r): r.value for r in fp8} == {identity(r): r.value for r in alone}
    assert {r.kv_dtype for r in fp8} == {"fp8"}
    assert len({identity(r) for r in fp8}) == len(fp8)
    assert mean_of(of(usual, DENSE), "kl") is None
    dense, sparse = (of(fp8, spec) for spec in (DENSE, RESA))
    assert 1e-6 < (mean_of(dense, "kl") or 0) < 0.1
    assert mean_of(dense, "read_share") == 1
    assert (mean_of(sparse, "kl") or 0) != mean_of(of(usual, RESA), "kl")
    whole = (mean_of(of(usual, DENSE), "loss") or 0) + (mean_of(dense, "extra_loss") or 0)
    assert mean_of(dense, "loss") == pytest.approx(whole, abs=1e-5)


def test_the_flag_adds_a_case_and_shortens_the_list() -> None:
    planned = plan(options(FLAGS, {"kv_dtype": "fp8"}), CPU)
    slugs = [case.slug for case in planned.cases]
    assert slugs == [(name := "quality-smollm2-135m-b8-4k-192-text-4texts"), f"{name}-fp8kv"]
    assert [spec.label for spec in planned.specs] == ["sparse b16", "resa-torch b16 f1", "resa-torch b16"]
    assert {slug: [spec.name for spec in specs] for slug, specs in planned.further.items()} == {
        slugs[1]: ["torch-dense"]
    }
    assert not plan(options(FLAGS, {}), CPU).further


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="kv_dtype: got 'int8', allowed are fp8"):
        replace(CASE, kv_dtype="int8")
