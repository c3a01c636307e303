"""Cases of the linear suite: model x projection x kind of weight x rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...kernels.config import DTYPES
from ...kernels.linear.product import KINDS, Product, ProductShape, products
from ..core.spec import Variant
from ..engine.products import shapes
from ..model.config import MODELS, ModelConfig

PROJECTIONS = ("qkv", "o", "gate_up", "down")
GROUP = 128  # of 4-bit weights
GPU_ROWS = {"quick": (1, 32), "default": (1, 8, 16, 32, 64, 128, 256, 2048), "full": tuple(2**i for i in range(12))}
CPU_ROWS = {"quick": (1,), "default": (1, 32), "full": (1, 8, 32, 128)}
GPU_MODEL, CPU_MODEL = "qwen2.5-7b", "qwen2.5-1.5b"
CPU_PROJECTIONS = {"quick": ("o",), "default": ("qkv", "o"), "full": PROJECTIONS}


@dataclass(frozen=True, slots=True)
class LinearCase:
    """One product: rows of x, a projection of a model, a kind of weight."""

    suite: ClassVar[str] = "linear"
    at_a_time: ClassVar[int | None] = None  # products are compared within a run

    model: str
    projection: str
    kind: str
    rows: int
    dtype: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("model", self.model, MODELS), ("projection", self.projection, PROJECTIONS), ("kind", self.kind, KINDS),
            ("dtype", self.dtype, DTYPES),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name}: got {value[:60]!r}, allowed are {', '.join(allowed)}")
        if self.rows < 1:
            raise ValueError(f"rows: got {self.rows}, must be at least 1")
        depth = self.shape.depth
        if self.kind == "int4" and depth % GROUP:
            raise ValueError(f"projection {self.projection}: K = {depth} is no multiple of the group of {GROUP}")

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return MODELS[self.model]

    @property
    def shape(self) -> ProductShape:
        """Rows, N and K; q, k and v are one product, and so are gate and up."""
        return ProductShape(self.rows, *shapes(self.config)[self.projection])

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of x where it is not quantised, and of the result."""
        return DTYPES[self.dtype]

    @property
    def weights(self) -> str:
        """As rows name it: the activations' type, int4, fp8 or fp8-a8."""
        return self.dtype if self.kind == "plain" else self.kind

    @property
    def slug(self) -> str:
        """`linear-qwen2.5-7b-int4-gate_up-m16`."""
        return f"linear-{self.model}-{self.weights}-{self.projection}-m{self.rows}"

    def columns(self) -> dict[str, Any]:
        """What a row says of its case; `batch` is M. There is no cache, and no context."""
        config = self.config
        return {
            "suite": self.suite, "model": self.model, "case": self.slug, "context": 0, "batch": self.rows,
            "q_heads": config.q_heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim,
            "dtype": self.dtype, "weight_dtype": self.weights, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProductSpec:
    """A product by its registered name, as the runner takes methods. It has no settings."""

    name: str

    @property
    def kind(self) -> type[Product]:
        """The registered class. Raises KeyError."""
        return products()[self.name]

    @property
    def label(self) -> str:
        """What a person reads."""
        return self.name

    @property
    def variant(self) -> Variant:
        """What rows of it have in common."""
        return Variant(self.name)

    def columns(self) -> dict[str, Any]:
        """No settings."""
        return {}


def default_cases(
    device: torch.device, scale: str, models: tuple[str, ...], kinds: tuple[str, ...], rows: tuple[int, ...],
    dtype: str, seed: int,
) -> list[LinearCase]:  # fmt: skip
    """The list of a device; `full` takes every preset. What was given stands in place of the list's own."""
    cuda = device.type == "cuda"
    listed = tuple(MODELS) if scale == "full" and cuda else (GPU_MODEL if cuda else CPU_MODEL,)
    projections = PROJECTIONS if cuda else CPU_PROJECTIONS[scale]
    return [
        LinearCase(model, projection, kind, count, dtype, seed)
        for model in models or listed
        for kind in kinds or KINDS
        for projection in projections
        for count in rows or (GPU_ROWS if cuda else CPU_ROWS)[scale]
        if kind != "int4" or LinearCase(model, projection, "plain", count, dtype, seed).shape.depth % GROUP == 0
    ]
