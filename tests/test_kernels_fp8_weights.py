"""8-bit weights in models: the fused kernel of few rows, reading weights back, dispatch, whole decoders."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import DEVICE, random
from linear_cases import check_linear, make_linear
from model_files import Dense, some_tokens
from resa_bench.kernels.linear.dispatch import linear, linear_reference
from resa_bench.kernels.linear.fp8 import E4M3, Fp8Weight, dequantise_fp8, quantise_fp8
from resa_bench.kernels.linear.fp8_linear import fp8_linear
from resa_bench.kernels.linear.fp8_rows import MOST_IN_REGISTERS, fp8_many_linear, widen_fp8
from resa_bench.kernels.linear.fp8_small import fp8_small_linear
from resa_bench.kernels.linear.weights import DenseWeight, Norm
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.engine.case import check_types
from resa_bench.suites.engine.checks import check_linears
from resa_bench.suites.engine.costs import weight_bytes
from resa_bench.suites.model.config import MODELS, ModelConfig
from resa_bench.suites.model.weights import random_decoder
from tiny_model import read_back

CPU = torch.device("cpu")
TINY = ModelConfig("tiny-in-fp8", 2, 64, 4, 2, 16, 96, 100, qkv_bias=True)
FUSED = ("", "bias", "residual", "norm", "swiglu", "norm+bias+swiglu+residual")


@pytest.mark.sanitizer
@pytest.mark.parametrize("fused", FUSED, ids=lambda f: f or "plain")
@pytest.mark.parametrize(("rows", "total", "depth"), [(1, 64, 512), (16, 90, 75), (33, 50, 200)])
def test_few_rows(rows: int, total: int, depth: int, fused: str, dtype: torch.dtype) -> None:
    case = make_linear(rows, total, depth, dtype, fp8=True, fused=fused)
    assert isinstance(case.weight, Fp8Weight)
    out = case.poisoned()
    assert fp8_small_linear(case.x, case.weight, **case.fused, out=out) is out
    check_linear(case, out)


@pytest.mark.sanitizer
def test_every_code_is_read_back_exactly(dtype: torch.dtype) -> None:
    """All values of e4m3, subnormal ones and both zeros included, but NaN, of which weights hold none."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    values = codes[(codes & 0x7F) != 0x7F].view(E4M3)
    weight = Fp8Weight(values.repeat(3, 1), torch.tensor([1.0, 0.5, 2.0], device=DEVICE))
    assert torch.equal(widen_fp8(weight, dtype), dequantise_fp8(weight, dtype))


def test_many_rows_by_the_library(dtype: torch.dtype) -> None:
    weight = quantise_fp8(random(40, 96, dtype=torch.float32, seed=1))
    x = random(MOST_IN_REGISTERS + 1, 96, dtype=dtype, seed=2)
    assert torch.equal(fp8_many_linear(x, weight), x @ dequantise_fp8(weight, dtype).T)
    few = x[:MOST_IN_REGISTERS]
    assert torch.equal(fp8_many_linear(few, weight), fp8_linear(few, weight))


def test_what_does_not_fit_is_named() -> None:
    case = make_linear(2, 32, 64, torch.float16, fp8=True)
    assert isinstance(case.weight, Fp8Weight)
    with pytest.raises(ValueError, match="got 65 rows, allowed are 1 to 64"):
        fp8_small_linear(torch.zeros(65, 64, dtype=torch.float16, device=DEVICE), case.weight)
    with pytest.raises(TypeError, match=r"dtype: got torch\.float64"):
        widen_fp8(case.weight, torch.float64)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 64, 65, 200])
def test_dispatch_on_a_gpu(rows: int, dtype: torch.dtype) -> None:
    case = make_linear(rows, 96, 256, dtype, fp8=True, fused="norm+bias+swiglu+residual")
    out, reference = (run(case.x, case.weight, **case.fused) for run in (linear, linear_reference))
    assert (out - reference).float().norm() <= 1e-2 * reference.float().norm()


def test_on_a_cpu_it_is_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(3, 64, generator=generator), torch.randn(48, 64, generator=generator)
    weight = quantise_fp8(matrix, torch.randn(48, generator=generator))
    plain = DenseWeight(dequantise_fp8(weight), weight.bias)
    norm, residual = Norm(torch.ones(64), 1e-6), torch.randn(3, 24, generator=generator)
    options = {"norm": norm, "residual": residual, "swiglu": True}
    assert torch.equal(linear(x, weight, **options), linear_reference(x, plain, **options))  # type: ignore[arg-type]


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_decoder_has_the_bytes_and_logits_of_its_8_bits() -> None:
    decoder = random_decoder(TINY, dtype=torch.float32, device=CPU, weight_dtype="fp8")
    assert all(isinstance(weight, Fp8Weight) for layer in decoder.layers for weight in layer.linears)
    assert isinstance(decoder.head, DenseWeight)
    scales = TINY.qkv_width + 2 * TINY.hidden + 2 * TINY.ffn
    layer_bytes = TINY.linear_parameters // TINY.layers + 4 * scales + 4 * TINY.qkv_width
    assert decoder.weight_bytes == TINY.layers * layer_bytes + 4 * TINY.head_parameters

    plain = read_back(decoder, dequantise_fp8)
    tokens = some_tokens(TINY.vocab, 20)
    torch.testing.assert_close(Dense(decoder)(tokens), Dense(plain)(tokens))
    full = random_decoder(TINY, dtype=torch.float32, device=CPU)
    assert isinstance(full.layers[0].o, DenseWeight)
    assert isinstance(plain.layers[0].o, DenseWeight)
    off = plain.layers[0].o.weight - full.layers[0].o.weight
    assert (off.abs() <= full.layers[0].o.weight.abs() * 2.0**-4 + 1e-5).all()
    check_linears(decoder, {1, 3})


def test_floors_and_types() -> None:
    config = MODELS["qwen2.5-7b"]
    case = DecodeCase("qwen2.5-7b", config, 1, 8192, "fp8")
    assert weight_bytes(case) == config.linear_parameters + 2 * config.head_parameters
    assert case.slug == "decode-qwen2.5-7b-fp8-b1-8k"
    check_types("fp8", "bf16")
    with pytest.raises(ValueError, match="allowed are int4, fp8, bf16"):
        check_types("fp16", "bf16")
