"""Models of 8-bit weights: bytes widened in kernels, fused products of few rows, whole decoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE
from linear_cases import check_linear, make_linear
from resa_bench.kernels.launch import INTERPRET
from resa_bench.kernels.linear.dispatch import linear, linear_reference
from resa_bench.kernels.linear.fp8 import Fp8Weight, dequantise_fp8, quantise_fp8
from resa_bench.kernels.linear.fp8_small import fp8_small_linear
from resa_bench.kernels.linear.fp8_widen import widen
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.engine.case import check_types
from resa_bench.suites.engine.costs import weight_bytes
from resa_bench.suites.model.config import MODELS
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.parallel.shard import Shard
from resa_bench.suites.model.weights import random_decoder
from test_model import FP32, TINY, Dense, assert_close, some_tokens


@triton.jit
def _widen_kernel(values, out, BF16: tl.constexpr, INTERPRETED: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(out + at, widen(tl.load(values + at), BF16, INTERPRETED))


def test_every_byte_but_nan_is_widened_exactly(dtype: torch.dtype) -> None:
    if dtype == torch.float32 and not INTERPRET:
        pytest.skip("kernels widen to 16 bits")
    values = torch.arange(256, dtype=torch.int32, device=DEVICE).to(torch.uint8)
    out = torch.empty(256, dtype=dtype, device=DEVICE)
    _widen_kernel[(1,)](values, out, dtype == torch.bfloat16, INTERPRET)
    wanted = values.view(torch.float8_e4m3fn).to(dtype)
    known = ~wanted.isnan()
    assert int(known.sum()) == 254
    assert torch.equal(out[known], wanted[known])


@pytest.mark.parametrize("fused", ["", "norm+bias", "residual", "norm+bias+swiglu+residual"])
@pytest.mark.parametrize(
    ("rows", "total", "depth"), [(1, 48, 256), (7, 40, 200), (16, 48, 512), (33, 34, 256), (64, 32, 320)]
)
def test_few_rows(rows: int, total: int, depth: int, fused: str, dtype: torch.dtype) -> None:
    case = make_linear(rows, total, depth, dtype, fused=fused)
    assert isinstance(case.weight, DenseWeight)
    case = replace(case, weight=quantise_fp8(case.weight.weight, case.weight.bias))
    out = case.poisoned()
    assert isinstance(case.weight, Fp8Weight)
    assert fp8_small_linear(case.x, case.weight, out=out, **case.fused) is out
    check_linear(case, out)


@pytest.mark.gpu
def test_linear_on_a_gpu(dtype: torch.dtype) -> None:
    """Up to 64 rows in one launch, more by their own kernel between torch's norm and addition."""
    for rows in (64, 65):
        case = make_linear(rows, 48, 256, dtype, fused="norm+bias+residual")
        assert isinstance(case.weight, DenseWeight)
        weight = quantise_fp8(case.weight.weight, case.weight.bias)
        out = linear(case.x, weight, **case.fused)
        plain = DenseWeight(dequantise_fp8(weight), weight.bias)
        norm = replace(case.norm, weight=case.norm.weight.float()) if case.norm else None
        wanted = linear_reference(case.x.float(), plain, norm=norm, residual=case.residual.float())
        assert float((out.float() - wanted).norm() / wanted.norm()) < 2e-2


def test_linear_on_a_cpu_is_the_reference() -> None:
    weight = quantise_fp8(torch.randn(24, 128), torch.randn(24))
    x, plain = torch.randn(3, 128), DenseWeight(dequantise_fp8(weight), weight.bias)
    assert torch.equal(linear(x, weight, swiglu=True), linear_reference(x, plain, swiglu=True))


def test_a_decoder_has_the_bytes_and_logits_of_its_8_bits() -> None:
    decoder = random_decoder(TINY, weight_dtype="fp8", **FP32)
    assert all(isinstance(weight, Fp8Weight) for layer in decoder.layers for weight in layer.linears)
    assert isinstance(decoder.head, DenseWeight)

    def dense(weight: Fp8Weight) -> DenseWeight:
        return DenseWeight(dequantise_fp8(weight), weight.bias)

    names = ("qkv", "o", "gate_up", "down")
    layers = [replace(x, **{name: dense(getattr(x, name)) for name in names}) for x in decoder.layers]
    plain = Decoder(TINY, decoder.embedding, layers, decoder.norm, decoder.head)
    tokens = some_tokens(TINY.vocab, 20)
    assert_close(Dense(decoder)(tokens), Dense(plain)(tokens))


def test_ranks_have_the_8_bits_of_the_whole_model() -> None:
    """Matrices cut by columns keep the scales of their whole rows, so that the ranks' sum is the model's product."""
    whole = random_decoder(TINY, weight_dtype="fp8", **FP32)
    shares = [random_decoder(TINY, weight_dtype="fp8", shard=Shard(r, 2, simulated=True), **FP32) for r in range(2)]
    for name in ("o", "down"):
        expected, parts = getattr(whole.layers[1], name), [getattr(share.layers[1], name) for share in shares]
        assert torch.equal(torch.cat([part.values.float() for part in parts], 1), expected.values.float())
        assert all(torch.equal(part.scales, expected.scales) for part in parts)
    scales = [share.layers[1].gate_up.scales.chunk(2) for share in shares]
    rows = torch.cat([gate for gate, _ in scales] + [up for _, up in scales])
    assert torch.equal(rows, whole.layers[1].gate_up.scales)


def test_cases_count_a_byte_a_weight() -> None:
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 1, 4096)
    small = replace(case, weights="fp8")
    assert small.slug == "decode-qwen2.5-7b-fp8-b1-4k"
    assert weight_bytes(case) - weight_bytes(small) == case.config.linear_parameters
    with pytest.raises(ValueError, match=r"got .fp8x., allowed are .*fp8"):
        check_types("fp8x", "bf16")
