"""gemlite (github.com/dropbox/gemlite, Apache-2.0): Triton kernels of low-bit products. Written against 0.6.0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.linear.fp8 import E4M3, Fp8Weight
from ...kernels.linear.int4 import Int4Weight, unpack
from ...kernels.linear.product import AnyWeight, Product, ProductShape, register_product
from ..optional import first, load, missing, needs_16_bits, needs_cuda


@register_product("gemlite")
class Gemlite(Product):
    """`A16W4_HQQ_INT`, whose weight is (q - zero) * scale, and `A16W8_FP8` with a scale a row."""

    kinds = ("int4", "fp8")
    libraries = ("gemlite",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return first(needs_cuda(device), needs_16_bits(dtype), missing("gemlite.helper", "linear"))

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Tensor)
        helper = load("gemlite.helper")
        where = str(x.device)
        if isinstance(weight, Int4Weight):
            q = unpack(weight.words, weight.depth, weight.group).to(torch.uint8)
            pairs = weight.scales[: weight.depth // weight.group].float()
            scale, zero = pairs[..., 0].T, pairs[..., 1].T  # [N, groups]; ours is (q - 8) s + z
            zeros = 8 - zero / torch.where(scale > 0, scale, torch.ones_like(scale))
            layer = helper.A16W4_HQQ_INT(device=where, dtype=dtype).from_weights(
                q, scale.reshape(-1, 1).to(dtype), zeros.reshape(-1, 1).to(dtype)
            )
        else:
            assert isinstance(weight, Fp8Weight)
            layer = helper.A16W8(device=where, dtype=dtype, fp8=E4M3).from_weights(
                weight.values, scales=weight.scales[:, None]
            )
        return lambda: layer(x)
