"""Matrix products of few rows as rivals: one class a way to compute `x W^T` with a kind of weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from .chosen import Multiply
from .dispatch import linear
from .fp8 import Fp8Weight, fp8_reference
from .fp8_linear import fp8_linear
from .int4 import Int4Weight
from .int4_linear import int4_small_linear
from .small_linear import MAX_SMALL_ROWS
from .weights import DenseWeight

KINDS = ("plain", "int4", "fp8", "fp8-a8")
"""Of weights: in the type of the activations; 4 bits in groups of 128; e4m3 beside 16-bit x; e4m3 beside e4m3 x."""
AnyWeight = DenseWeight | Int4Weight | Fp8Weight
P = TypeVar("P", bound="type[Product]")


@dataclass(frozen=True, slots=True)
class ProductShape:
    """`[rows, depth] x [columns, depth]^T`."""

    rows: int
    columns: int
    depth: int


class Product(ABC):
    """A way to multiply. One object is bound to one weight and one x."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]] = ()
    """As of methods (kernels/method.py)."""
    serves_models: ClassVar[bool] = False
    """Whether `hold` is there."""
    compiles: ClassVar[bool] = False
    """Whether its library compiles a kernel for seconds where a shape is first used."""

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        """Why it cannot run, or None."""
        return None

    @classmethod
    def ahead(cls, kind: str, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
        """What compiles a shape's kernel, in a thread beside others; of products whose library `compiles`."""
        return lambda: None

    @classmethod
    def hold(cls, weight: AnyWeight, dtype: torch.dtype) -> Multiply:
        """What multiplies any number of rows of `dtype`, for models: the weight is repacked here, once, without bias.

        Raises:
            NotImplementedError: of products that do not serve models.
        """
        raise NotImplementedError(f"{cls.name} holds no weights of models")

    @classmethod
    @abstractmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        """A call that multiplies, and gives `[rows, N]` of `dtype`. Repacking the weight is done here, untimed.

        Raises:
            Unsupported: a shape or kind that it does not serve.
        """


_products: dict[str, type[Product]] = {}


def register_product(name: str) -> Callable[[P], P]:
    """Decorator: make a product known. Raises ValueError for a name that is taken."""

    def add(kind: P) -> P:
        if name in _products:
            raise ValueError(f"product {name!r} is there already; give another name")
        kind.name = name
        _products[name] = kind
        return kind

    return add


def products() -> dict[str, type[Product]]:
    """All products by name."""
    return dict(_products)


@register_product("ours")
class Ours(Product):
    """This project's kernels: the few-row kernels, the unpacking ones, the library where `linear` leaves it to it."""

    kinds = KINDS

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        if isinstance(weight, Fp8Weight):
            if not weight.values.is_cuda:
                return lambda: fp8_reference(x, weight, dtype)
            if isinstance(x, Fp8Weight):
                return lambda: fp8_linear(x, weight, dtype=dtype)
        assert isinstance(x, Tensor)
        return lambda: linear(x, weight)


@register_product("ours-triton")
class OursTriton(Product):
    """The Triton kernel of few rows with 4-bit weights, where `ours` may take the CUDA one."""

    kinds = ("int4",)

    @classmethod
    def unavailable(cls, shape: ProductShape, dtype: torch.dtype, device: torch.device) -> str | None:
        if shape.rows > MAX_SMALL_ROWS:
            return f"serves 1 to {MAX_SMALL_ROWS} rows, got {shape.rows}"
        return None if device.type == "cuda" else f"needs a CUDA device, got {device.type}"

    @classmethod
    def bind(cls, x: Tensor | Fp8Weight, weight: AnyWeight, dtype: torch.dtype) -> Callable[[], Tensor]:
        assert isinstance(x, Tensor)
        assert isinstance(weight, Int4Weight)
        return lambda: int4_small_linear(x, weight)
