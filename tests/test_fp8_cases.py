"""Cases with K and V in fp8: names, identity, bytes, what fills and steps their caches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import DEVICE
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, Unsupported, get_method
from resa_bench.kernels.method import layer_of
from resa_bench.kernels.portable import write_tokens_torch
from resa_bench.suites.core.rows import IDENTITY
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.engine.costs import kv_bytes, memory_bytes, summary_bytes
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.prompt import NOISE_MOST, fill_synthetic
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.inputs import make_inputs
from resa_bench.suites.model.config import MODELS

TINY = Case("tiny", ModelShape(4, 2, 16), 1, 100, dtype="fp32")


def test_names_of_other_cases_stay_and_rows_tell_them_apart() -> None:
    whole = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 1, 4096)
    for case, name in ((TINY, "tiny-b1-100"), (whole, "decode-qwen2.5-7b-bf16-b1-4k")):
        fp8 = replace(case, kv_dtype="fp8")
        assert (case.slug, fp8.slug) == (name, f"{name}-fp8kv")
        assert (case.columns()["kv_dtype"], fp8.columns()["kv_dtype"]) == (None, "fp8")
        with pytest.raises(ValueError, match="kv_dtype: got 'int3', allowed are fp8"):
            replace(case, kv_dtype="int3")
    assert "kv_dtype" in IDENTITY


def test_memory_and_floors_count_a_byte_an_element() -> None:
    """Summaries keep the type of the queries."""
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 1, 4096)
    fp8 = replace(case, kv_dtype="fp8")
    assert 2 * kv_bytes(fp8, 4096) == kv_bytes(case, 4096)
    assert summary_bytes(fp8, SparseConfig(), 4096) == summary_bytes(case, SparseConfig(), 4096)
    assert memory_bytes(case, []) - memory_bytes(fp8, []) == case.config.layers * kv_bytes(fp8, 4096)
    assert replace(TINY, kv_dtype="fp8").kv_bytes * 4 == TINY.kv_bytes


def test_a_step_writes_what_the_cache_holds_already() -> None:
    inputs = make_inputs(replace(TINY, kv_dtype="fp8"), torch.device("cpu"), 8)
    held = inputs.cache.gather()[0][:, :, 92:100].clone()

    write_tokens_torch(inputs.cache, inputs.chunk.k, inputs.chunk.v)
    assert torch.equal(inputs.cache.gather()[0][:, :, 92:100], held)


def test_noise_of_a_whole_model_fits_its_scales() -> None:
    cache = KVCache.allocate(1, 2, 256, 16, dtype=torch.float32, device="cpu", kv_dtype="fp8")
    fill_synthetic(State.over((cache,), 1))
    keys, values = cache.gather()
    for x in (keys, values):
        assert 0.9 < float(x.std()) < 1.1
        assert float(x.abs().max()) < NOISE_MOST


def test_a_method_that_knows_no_scales_is_refused_by_name() -> None:
    import resa_bench.baselines  # noqa: F401  registers the rivals

    cache = KVCache.allocate(1, 2, 64, 64, dtype=torch.float16, device=DEVICE, kv_dtype="fp8")
    for name in ("snapkv", "sdpa-cudnn", "retro"):
        method = get_method(name)(AttentionShape(1, 4, 2, 64), SparseConfig(), dtype=torch.float16, device=DEVICE)
        with pytest.raises(Unsupported, match=f"cache: {name} reads no keys and values in fp8"):
            layer_of(method, cache)
