"""Keys and values in e4m3 in the quality suite: rounded as a cache rounds them; dense and ReSA against 16-bit dense."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import make_bench
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import ChunkTensors, KVCache, SparseConfig, get_method
from resa_bench.suites.core.analysis import error_over_texts, mean_of
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.metrics import step_metrics
from resa_bench.suites.core.rows import Row, identity
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.forced import held, run_forced, written
from resa_bench.suites.quality.parallel import dense_parallel, round_as, run_parallel
from resa_bench.suites.quality.run import run_case
from resa_bench.suites.quality.suite import FLAGS, choose_cases, choose_specs
from tiny_model import TINY, keep, tiny_decoder

CPU, FP32 = torch.device("cpu"), torch.float32
PROMPT, STEPS, BATCH = 45, 14, 2  # multiples of no block size or period
CASE = QualityCase("tiny", TINY, prompt=300, steps=40)
FP8 = QualityCase("tiny", TINY, prompt=300, steps=40, kv_dtype="fp8")
SPARSE = SparseConfig(block_size=8, active_ratio=0.15, min_blocks=2)
RESA = make_spec("resa-torch", SPARSE, rectify_every=8)
WHOLE = make_spec("resa-torch", SPARSE, rectify_every=8, active_ratio=1.0)


@pytest.fixture(scope="module")
def models() -> Loader:
    return keep(Loader(), tiny_decoder())


def measure(models: Loader, case: QualityCase, *specs: MethodSpec) -> list[Row]:
    bench = make_bench()
    bench._held[Loader] = models
    return run_case(case, specs or (RESA, WHOLE), bench)


@pytest.fixture(scope="module")
def rows(models: Loader) -> dict[str | None, list[Row]]:
    return {case.kv_dtype: measure(models, case) for case in (CASE, FP8)}


def value(rows: list[Row], method: str, metric: str, ratio: float | None = None) -> float:
    own = [r for r in rows if r.method == method and ratio in (None, r.active_ratio)]
    mean = mean_of(own, metric)
    assert mean is not None
    return mean


def test_keys_and_values_are_rounded_as_a_cache_rounds_them() -> None:
    """By scales of the cache's first tokens; later and larger values saturate, as in the cache."""
    generator = torch.Generator().manual_seed(0)
    first, q, k, v, out = torch.randn(5, 2, 9, 3, 32, generator=generator)
    k[0, 1, 2, 3] = 1e4
    cache = KVCache.allocate(2, 3, 32, 32, dtype=FP32, device=CPU, kv_dtype="fp8")
    cache.calibrate(first.transpose(1, 2), 3 * first.transpose(1, 2))
    cells = ChunkTensors(q, k.clone(), v.clone(), out)
    round_as(cache, cells)
    assert cells.k[0, 1, 2, 3] == 448 * cache.scales_or_any[2, 0]

    same = KVCache.allocate(2, 3, 32, 32, dtype=FP32, device=CPU, kv_dtype="fp8")
    same.store(k.transpose(1, 2), v.transpose(1, 2))
    cache.calibrate(k.transpose(1, 2), v.transpose(1, 2))
    again = ChunkTensors(q, k.clone(), v.clone(), out)
    round_as(cache, again)
    for rounded, stored, part in zip((again.k, again.v), same.gather(), held(same, slice(2, 9)), strict=True):
        assert torch.equal(rounded.transpose(1, 2), stored[:, :, :9])
        assert torch.equal(rounded.transpose(1, 2)[:, :, 2:], part)
    assert 0 < float((again.v - v).norm() / v.norm()) < 0.05


def test_caches_of_16_bits_change_nothing() -> None:
    cells = ChunkTensors(*torch.randn(4, 2, 9, 3, 32))
    kept = cells.k.clone()
    round_as(KVCache.allocate(2, 3, 32, 32, dtype=FP32, device=CPU), cells)
    assert torch.equal(cells.k, kept)


@pytest.mark.slow
def test_dense_at_once_is_the_model_on_caches_in_fp8() -> None:
    """A prefill of everything on such a cache: keys and values as it holds them, logits after its last token."""
    decoder = tiny_decoder()
    text = torch.randint(0, TINY.vocab, (BATCH, PROMPT + STEPS + 1), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        state, whole = (State.allocate(decoder, BATCH, 64, STEPS, kv_dtype="fp8") for _ in range(2))
        prefill(decoder, state, text[:, :PROMPT], chunk_tokens=PROMPT)
        dense = dense_parallel(decoder, state, PROMPT, text[:, PROMPT:])
        logits = prefill(decoder, whole, text[:, :-1], chunk_tokens=PROMPT)
        exact = State.allocate(decoder, BATCH, 64, STEPS)
        unlike = prefill(decoder, exact, text[:, :-1])
    torch.testing.assert_close(dense.kv, written(whole, slice(PROMPT, PROMPT + STEPS)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dense.logits[-1], logits, atol=1e-4, rtol=1e-4)
    assert float((logits - unlike).abs().max()) > 0.01


@pytest.mark.slow
def test_resa_at_once_is_the_chain_on_caches_in_fp8() -> None:
    """The kernels' steps and rectifications on e4m3 itself, under the interpreter."""
    decoder, steps = tiny_decoder(), 5
    text = torch.randint(0, TINY.vocab, (1, PROMPT + steps + 1), generator=torch.Generator().manual_seed(2))
    spec = make_spec("resa-chain", replace(SPARSE, chunk_kernel="triton"), rectify_every=2)
    with torch.inference_mode():
        state, exact = (State.allocate(decoder, 1, 64, steps + 1, kv_dtype=kind) for kind in ("fp8", None))
        for each in (state, exact):
            prefill(decoder, each, text[:, :PROMPT])
        reference = dense_parallel(decoder, exact, PROMPT, text[:, PROMPT:])
        restored = dense_parallel(decoder, state, PROMPT, text[:, PROMPT:]).kv
        at_once = run_parallel(decoder, state, spec, PROMPT, reference, restored=restored)
        unlike = run_parallel(decoder, state, spec, PROMPT, reference)
        method = get_method("resa-chain")(TINY.attention(1), spec.config, dtype=FP32, device=CPU)
        state.start(PROMPT, text[:, PROMPT])
        engine = Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=2)
        stepwise = run_forced(engine, engine.step, engine.rectify, PROMPT, reference)
    torch.testing.assert_close(at_once.kv_error, stepwise.kv_error, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(at_once.values["kl"], stepwise.values["kl"], atol=1e-5, rtol=1e-3)
    assert float((unlike.kv_error - stepwise.kv_error).abs().max()) > 5e-4  # where what 16 bits hold is restored


def test_dense_in_fp8_has_every_metric(rows: dict[str | None, list[Row]]) -> None:
    dense = [r for r in rows["fp8"] if r.method == "torch-dense"]
    names = {metric.name for metric in step_metrics()}
    assert {r.metric for r in dense} == names | {f"{name}_of_text" for name in names}
    assert {(r.case, r.kv_dtype, r.dtype, r.block_size, r.status) for r in dense} == {
        ("quality-tiny-b2-300-40-text-fp8kv", "fp8", "fp32", None, "ok")
    }
    assert error_over_texts(dense, "kl") is not None
    assert len({identity(r) for r in rows["fp8"]}) == len(rows["fp8"])
    assert 1e-7 < value(dense, "torch-dense", "kl") < 0.1
    loss = value(dense, "torch-dense", "loss") - value(dense, "torch-dense", "extra_loss")
    assert loss == pytest.approx(value(rows[None], "torch-dense", "loss"), abs=1e-4)  # of 16 bits


def test_methods_in_fp8_are_compared_with_16_bits(rows: dict[str | None, list[Row]]) -> None:
    """Reading everything is dense decoding in fp8; ReSA loses about as much as in 16 bits."""
    for metric in ("kl", "loss", "kv_error", "top1"):
        whole, dense = value(rows["fp8"], "resa-torch", metric, 1.0), value(rows["fp8"], "torch-dense", metric)
        assert whole == pytest.approx(dense, rel=0.02, abs=1e-3), metric
    assert value(rows[None], "resa-torch", "kl", 1.0) == pytest.approx(0, abs=1e-6)
    rounded, exact = (value(rows[kind], "resa-torch", "kl", 0.15) for kind in ("fp8", None))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.5)


def test_step_by_step_a_method_must_read_fp8(models: Loader) -> None:
    """In plain torch ReSA does not; dense decoding's rows are there all the same."""
    case = QualityCase("tiny", TINY, prompt=40, steps=4, stepwise=True, kv_dtype="fp8")
    stepping = measure(models, case, RESA)
    assert [(r.status, r.reason) for r in stepping if r.method == "resa-torch"] == [
        ("skipped", "cache: resa-torch reads no keys and values in fp8")
    ]
    assert value(stepping, "torch-dense", "kl") > 0
    assert {r.case for r in stepping} == {"quality-tiny-b2-40-4-text-fp8kv-stepwise"}


def test_names_and_flags() -> None:
    assert (CASE.slug, FP8.slug) == ("quality-tiny-b2-300-40-text", "quality-tiny-b2-300-40-text-fp8kv")
    assert (CASE.columns()["kv_dtype"], FP8.columns()["kv_dtype"]) == (None, "fp8")
    with pytest.raises(ValueError, match="kv_dtype: got 'int3', allowed are fp8"):
        QualityCase("tiny", TINY, prompt=300, steps=40, kv_dtype="int3")
    given = options(FLAGS, {"kv_dtype": "fp8", "method": ("resa-torch",)})
    (case,) = choose_cases(given, CPU, choose_specs(given, CPU))
    assert case.slug == "quality-smollm2-135m-b8-4k-192-text-4texts-fp8kv"
