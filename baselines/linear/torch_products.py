"""torch's own: `mm` (cuBLAS on a GPU), `_weight_int4pack_mm`, `_scaled_mm`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.linear.fp8 import Fp8Weight
from ...kernels.linear.int4 import Int4Weight, unpack
from ...kernels.linear.product import AnyWeight, Product, ProductShape, register_product
from ...kernels.linear.weights import DenseWeight
from ..optional import first, needs_cuda

INNER_TILES = 8
MULTIPLE = 16  # of N and K, for `_scaled_mm`


@register_product("torch-mm")
class TorchMM(Product):
    """`torch.mm` with the weight in the activations' type."""

    kinds = ("plain",)

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Tensor)
        assert isinstance(weight, DenseWeight)
        turned = weight.weight.T
        return lambda: torch.mm(x, turned)


@register_product("torch-int4pack")
class TorchInt4(Product):
    """`torch._weight_int4pack_mm`: bf16 alone, groups of 32 to 256."""

    kinds = ("int4",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        wrong = None if dtype == torch.bfloat16 else f"_weight_int4pack_mm takes bf16, got {dtype}"
        inner = INNER_TILES * 16
        uneven = None if shape.depth % inner == 0 and shape.columns % 8 == 0 else "K % 128 and N % 8 must be 0"
        return first(needs_cuda(device), wrong, uneven)

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Tensor)
        assert isinstance(weight, Int4Weight)
        q = unpack(weight.words, weight.depth, weight.group)
        pairs = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8)
        packed = torch._convert_weight_to_int4pack(pairs.contiguous(), INNER_TILES)
        scales = weight.scales[: weight.depth // weight.group].contiguous()
        return lambda: torch._weight_int4pack_mm(x, packed, weight.group, scales)


@register_product("torch-scaled-mm")
class TorchScaled(Product):
    """`torch._scaled_mm` with a scale a row of both operands."""

    kinds = ("fp8-a8",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        wrong = None if dtype == torch.bfloat16 else f"_scaled_mm by rows gives bf16, got {dtype}"
        even = shape.columns % MULTIPLE == 0 and shape.depth % MULTIPLE == 0
        return first(needs_cuda(device, (8, 9)), wrong, None if even else f"N and K must be multiples of {MULTIPLE}")

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Fp8Weight)
        assert isinstance(weight, Fp8Weight)
        a, turned = x.values, weight.values.T
        scales = x.scales[:, None].contiguous(), weight.scales[None, :].contiguous()
        return lambda: torch._scaled_mm(a, turned, scale_a=scales[0], scale_b=scales[1], out_dtype=dtype)
