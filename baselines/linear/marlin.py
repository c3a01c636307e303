"""marlin-kernels (vLLM's Marlin as a package): named here so that its row says why it has no time.

It comes as sources that nvcc compiles. Its weights are symmetric, (q - 8) * scale; those of the cases have zero points.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels import Unsupported
from ...kernels.linear.fp8 import Fp8Weight
from ...kernels.linear.product import AnyWeight, Product, ProductShape, register_product
from ..optional import first, missing, needs_cuda


@register_product("marlin")
class Marlin(Product):
    """A skipped row wherever it is asked for."""

    kinds = ("int4",)
    libraries = ("marlin-kernels",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        return first(needs_cuda(device), missing("marlin_kernels", "linear"))

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        raise Unsupported("marlin-kernels takes symmetric weights alone; ours have zero points")
