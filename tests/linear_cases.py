"""Inputs of the linear layers' tests, exact results, and how far a kernel may stray from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from kernel_cases import DEVICE, NAN, U32, random
from resa_bench.kernels.exact import CONFIDENCE, UNIT_ROUNDOFF
from resa_bench.kernels.launch import INTERPRET
from resa_bench.kernels.linear.finish import finish
from resa_bench.kernels.linear.fp8 import Fp8Weight, dequantise_fp8, quantise_fp8
from resa_bench.kernels.linear.fp8_linear import fp8_linear
from resa_bench.kernels.linear.fp8_rows import widen_fp8
from resa_bench.kernels.linear.fp8_small import fp8_small_linear
from resa_bench.kernels.linear.int4 import Int4Weight, count_blocks, dequantise, quantise
from resa_bench.kernels.linear.int4_linear import int4_small_linear
from resa_bench.kernels.linear.int4_rows import dequantise_kernel, int4_linear
from resa_bench.kernels.linear.rope import rope_kernel
from resa_bench.kernels.linear.small_linear import small_linear
from resa_bench.kernels.linear.weights import DenseWeight, Norm
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Inputs of one layer. What lies between and after the rows of x and of the residual is NaN."""

    x: Tensor
    weight: DenseWeight | Int4Weight | Fp8Weight
    norm: Norm | None
    residual: Tensor | None
    swiglu: bool

    @property
    def fused(self) -> dict:
        return dict(norm=self.norm, residual=self.residual, swiglu=self.swiglu)

    def poisoned(self) -> Tensor:
        total = self.weight.shape[0]
        shape = (self.x.shape[0], total // 2 if self.swiglu else total)
        return torch.full(shape, NAN, dtype=self.x.dtype, device=DEVICE)


def framed(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Random rows inside a NaN tensor."""
    frame = torch.full((rows + 2, columns + 16), NAN, dtype=dtype, device=DEVICE)
    frame[:rows, :columns] = random(rows, columns, dtype=dtype, seed=seed)
    return frame[:rows, :columns]


def make_linear(
    rows: int, total: int, depth: int, dtype: torch.dtype, *, group: int = 0, fp8: bool = False, fused: str = "",
    seed: int = 0,
) -> Linear:  # fmt: skip
    """`total` weight rows; `group` 0 is a 16-bit weight, or with `fp8` one of 8 bits.

    `fused` names any of norm, bias, swiglu, residual.
    """
    swiglu = "swiglu" in fused
    weight = random(total, depth, dtype=torch.float32, seed=seed + 1) / depth**0.5
    bias = random(total, dtype=dtype, seed=seed + 2) if "bias" in fused else None
    norm = Norm(1 + 0.2 * random(depth, dtype=dtype, seed=seed + 3), 1e-5) if "norm" in fused else None
    residual = framed(rows, total // 2 if swiglu else total, dtype, seed + 4) if "residual" in fused else None
    packed: DenseWeight | Int4Weight | Fp8Weight = DenseWeight(weight.to(dtype), bias)
    if group:
        packed = quantise(weight, bias, group=group, dtype=dtype)
    elif fp8:
        packed = quantise_fp8(weight, bias)
    return Linear(framed(rows, depth, dtype, seed), packed, norm, residual, swiglu)


def check_linear(case: Linear, out: Tensor, *, rounds_weights: bool = False) -> None:
    """Assert that `out` is within the rounding errors of the exact result, element by element.

    Independent roundings of terms t_k add up to CONFIDENCE u sqrt(sum t_k^2); a sum of K terms in fp32 is off by
    CONFIDENCE sqrt(K) u32 sum |t_k| (see `exact`), twice that since tensor cores truncate. Terms:

    - with a norm, x times its weight is rounded to the dtype; its squares to bf16, which moves 1 / rms by half as much;
    - 4-bit terms are summed as (c + q) x s, c = 128 in bf16 and 1024 in fp16, and corrected afterwards, so that the
      terms of the fp32 sum are as large; or (`rounds_weights`) the weights are rounded to the dtype first.
    """
    x, depth, dtype = case.x.double(), case.x.shape[1], out.dtype
    u = UNIT_ROUNDOFF[dtype]
    sums = 2 * (CONFIDENCE * depth**0.5 + 16) * U32
    weight = case.weight
    if isinstance(weight, Fp8Weight):
        exact = dequantise_fp8(weight, torch.float64)
    else:
        exact = dequantise(weight, torch.float64) if isinstance(weight, Int4Weight) else weight.weight.double()
    summed = exact.abs()
    if isinstance(weight, Int4Weight) and not rounds_weights:
        offset = 0.0 if INTERPRET else {torch.bfloat16: 128.0, torch.float16: 1024.0}[dtype]
        parts = weight.scales.double()[: depth // weight.group].abs().permute(1, 0, 2)
        parts = parts.repeat_interleave(weight.group, dim=1)
        summed = parts[..., 0] * (2 * offset + 23) + parts[..., 1]
    relative = 0.0
    if case.norm is not None:
        mean = x.square().mean(-1, keepdim=True)
        x = x * (mean + case.norm.eps).rsqrt() * case.norm.weight.double()
        squares = 0.0 if INTERPRET else CONFIDENCE * 2.0**-9
        raw = case.x.double().square()
        relative = (
            squares * raw.square().sum(-1, keepdim=True).sqrt() / raw.sum(-1, keepdim=True) + sums
        ) / 2 + 4 * U32
    y = x @ exact.T
    roundings = (case.norm is not None) + rounds_weights
    error = roundings * CONFIDENCE * u * (x.square() @ exact.square().T).sqrt()
    error = error + sums * (x.abs() @ summed.T) + relative * y.abs()
    if case.weight.bias is not None:
        y = y + case.weight.bias.double()
    if case.swiglu:
        gate, up = y.chunk(2, dim=-1)
        gate_error, up_error = error.chunk(2, dim=-1)
        silu = torch.nn.functional.silu(gate)
        y = silu * up
        error = 1.1 * gate_error * (up.abs() + up_error) + silu.abs() * up_error  # |silu'| < 1.1
    if case.residual is not None:
        y = y + case.residual.double()
    floor = 2.0**-25 if dtype == torch.float16 else 0.0  # half the spacing of its subnormal numbers
    budget = (1 + u) * error + (u + 16 * U32) * y.abs() + 16 * U32 + floor
    assert bool(out.isfinite().all()), f"{int((~out.isfinite()).sum())} of {out.numel()} elements not finite"
    used = float(((out.double() - y).abs() / budget).max())
    assert used <= 1, f"off by {used:.2f} times the error budget"


def empty_int4(total: int, depth: int, group: int, device: torch.device, bias: bool = False) -> Int4Weight:
    """An uninitialised 4-bit weight for bf16."""
    blocks, half = count_blocks(depth, group), dict[str, Any](dtype=torch.bfloat16, device=device)
    words = torch.empty(total, blocks * group, dtype=torch.int16, device=device)
    scales = torch.empty(4 * blocks, total, 2, **half)
    return Int4Weight(words, scales, depth, group, torch.empty(total, **half) if bias else None)


def empty_fp8(total: int, depth: int, device: torch.device, bias: bool = False) -> Fp8Weight:
    """An uninitialised 8-bit weight for bf16."""
    values = torch.empty(total, depth, dtype=torch.float8_e4m3fn, device=device)
    added = torch.empty(total, dtype=torch.bfloat16, device=device) if bias else None
    return Fp8Weight(values, torch.empty(total, dtype=torch.float32, device=device), added)


def run_fp8(rows: int, total: int, depth: int, device: torch.device) -> None:
    """Both forms of the e4m3 product, over uninitialised data."""
    weight = empty_fp8(total, depth, device)
    fp8_linear(torch.empty(rows, depth, dtype=torch.bfloat16, device=device), weight)
    fp8_linear(empty_fp8(rows, depth, device), weight)
    if rows == 256:
        widen_fp8(weight, torch.bfloat16)


def run_fp8_small(rows: int, device: torch.device) -> None:
    """The four projections of Qwen2.5-7B with 8-bit weights, as a layer has them, over uninitialised data."""
    x, wide = (torch.empty(rows, depth, dtype=torch.bfloat16, device=device) for depth in (3584, 18944))
    norm = Norm(torch.empty(3584, dtype=torch.bfloat16, device=device), 1e-6)
    fp8_small_linear(x, empty_fp8(4608, 3584, device, bias=True), norm=norm)
    fp8_small_linear(x, empty_fp8(3584, 3584, device), residual=x)
    fp8_small_linear(x, empty_fp8(37888, 3584, device), norm=norm, swiglu=True)
    fp8_small_linear(wide, empty_fp8(3584, 18944, device), residual=x)


def run_linears(device: torch.device) -> None:
    """Every linear kernel on Qwen2.5-7B's shapes (the widest on a GPU is the head), over uninitialised data."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.bfloat16, device=device)

    hidden, feed = 3584, 18944
    norm = Norm(empty(hidden), 1e-6)
    for rows in (1, 16):
        x, wide = empty(rows, hidden), empty(rows, feed)
        for run, make in ((small_linear, None), (int4_small_linear, empty_int4)):

            def weight(total: int, depth: int, bias: bool = False, make=make) -> Any:
                if make is not None:
                    return make(total, depth, 128, device, bias)
                return DenseWeight(empty(total, depth), empty(total) if bias else None)

            run(x, weight(4608, hidden, True), norm=norm)
            run(x, weight(hidden, hidden), residual=x)
            run(x, weight(2 * feed, hidden), norm=norm, swiglu=True)
            run(wide, weight(hidden, feed), residual=x)
            run(x, weight(152064, hidden), norm=norm)
    for rows in (32, 64, 128, 256):
        int4_linear(empty(rows, hidden), empty_int4(4608, hidden, 128, device, True))
        int4_linear(empty(rows, feed), empty_int4(hidden, feed, 128, device))
        int4_linear(empty(rows, hidden), empty_int4(2 * feed, hidden, 128, device))
    for group in (32, 64, 256):
        int4_small_linear(empty(8, hidden), empty_int4(hidden, hidden, group, device), norm=norm)
        int4_linear(empty(64, hidden), empty_int4(hidden, hidden, group, device))
        dequantise_kernel(empty_int4(hidden, hidden, group, device))
    for rows in (1, 32, 64, 256):
        for total, depth in ((4608, hidden), (2 * feed, hidden), (hidden, feed)):
            run_fp8(rows, total, depth, device)
    for rows in (1, 16, 32, 64):
        run_fp8_small(rows, device)
    wide = empty(32, 2 * feed)
    finish(wide, swiglu=True)
    finish(empty(32, 4608), empty(4608))
    finish(empty(32, hidden), residual=empty(32, hidden))
    cos = torch.empty(8, 64, dtype=torch.float32, device=device)
    q, k = empty(8, 28, 128), empty(8, 4, 128)
    rope_kernel(empty(8, 36 * 128), cos, cos, q, k, k)
    head_norm = Norm(empty(128), 1e-6)
    rope_kernel(empty(8, 36 * 128), cos, cos, q, k, k, q_norm=head_norm, k_norm=head_norm)
