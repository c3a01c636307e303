"""humming-kernels (github.com/vllm-project/humming, Apache-2.0): JIT-compiled products; vLLM's quantised backend.

Written against 0.1.20. It quantises the weight itself, here from the values that our 4 or 8 bits stand for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.linear.fp8 import Fp8Weight, dequantise_fp8
from ...kernels.linear.int4 import Int4Weight, dequantise
from ...kernels.linear.product import AnyWeight, Product, ProductShape, register_product
from ..optional import first, load, missing, needs_16_bits, needs_cuda


@register_product("humming")
class Humming(Product):
    """`HummingLayer`: unsigned 4 bits with zero points in our groups, or e4m3 with a scale a row."""

    kinds = ("int4", "fp8")
    libraries = ("humming-kernels",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return first(needs_cuda(device), needs_16_bits(dtype), missing("humming.layer", "linear"))

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Tensor)
        if isinstance(weight, Int4Weight):
            config = {"dtype": "uint4", "group_size": weight.group, "has_zero_point": True, "is_fp_zero_point": True}
            plain = dequantise(weight, dtype)
        else:
            assert isinstance(weight, Fp8Weight)
            config, plain = {"dtype": "float8e4m3"}, dequantise_fp8(weight, dtype)
        columns, depth = weight.shape
        layer = load("humming.layer").HummingLayer(
            shape_n=columns, shape_k=depth, weight_config=config, torch_dtype=dtype
        ).to(x.device)  # fmt: skip
        layer.load_from_unquantized(plain)
        layer.transform()
        return lambda: layer(x)
