"""A model's 4- or 8-bit projections by the product that was measured to be the best for their size and rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import dataclass, replace

import torch

from ... import baselines  # noqa: F401  (registers the rivals)
from ...kernels import Unsupported
from ...kernels.config import DTYPES
from ...kernels.linear.best import OURS, Best, best_of
from ...kernels.linear.chosen import ChosenWeight, Multiply
from ...kernels.linear.fp8 import Fp8Weight
from ...kernels.linear.int4 import Int4Weight
from ...kernels.linear.product import ProductShape, products
from ...profiling.device import device_name
from ..core.ahead import compile_ahead
from ..core.bench import Report
from ..core.flags import CASES, Flag
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.weights import QUANTISED

BEST = "best"
PRODUCTS = (OURS, BEST)
KINDS = QUANTISED
"""Of weights that other products may hold."""
FLAG = Flag(
    "--products",
    "what 4- and 8-bit projections run by: ours, or for each size the product measured best (holds weights twice)",
    choices=PRODUCTS, default=OURS, group=CASES,
)  # fmt: skip
MEASURE = "resa-bench linear --weights {kind}, then resa-bench linear --choose FILE"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One kernel of another product: a projection at a number of rows."""

    product: str
    shape: ProductShape


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """N and K of each projection of a layer."""
    return {
        "qkv": (config.qkv_width, config.hidden),
        "o": (config.hidden, config.q_heads * config.head_dim),
        "gate_up": (2 * config.ffn, config.hidden),
        "down": (config.hidden, config.ffn),
    }


def measured(config: ModelConfig, kind: str, device: torch.device) -> dict[tuple[int, int], Best]:
    """The best products of a model's projections with a kind of weights, by N and K, as far as they were measured."""
    name = device_name(device)
    entries = {shape: best_of(name, kind, *shape) for shape in shapes(config).values()}
    return {shape: best for shape, best in entries.items() if best is not None}


def refusal(config: ModelConfig, kind: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a model cannot run by the best products here, in one line; None if it can."""
    table, measure = measured(config, kind, device), MEASURE.format(kind=kind)
    if not table:
        return f"no products of {config.name}'s sizes were measured on {device_name(device)}; run {measure}"
    for (columns, depth), best in table.items():
        for rows, name in best.measured:
            if name == OURS:
                continue
            if name not in products():
                return f"{name}: no such product; run {measure}"
            reason = products()[name].unavailable(ProductShape(rows, columns, depth), dtype, device)
            if reason:
                return f"{name}: {reason}"
    return None


def check_products(name: str, weights: str) -> None:
    """Raises ValueError for products that no case runs by, or that hold other weights."""
    if name not in PRODUCTS:
        raise ValueError(f"products: got {name!r}, allowed are {', '.join(PRODUCTS)}")
    if name != OURS and weights not in KINDS:
        raise ValueError(f"products: {name} is of {' or '.join(KINDS)} weights, got {weights}")


def check_flag(config: ModelConfig, dtype: str, device: torch.device, weights: Collection[str]) -> None:
    """Raises ValueError where `--products best` was asked for and a model cannot run by them.

    Args:
        weights: weight types of the cases; 4-bit or 8-bit ones are to be among them.
    """
    kinds = sorted(set(weights) & set(KINDS))
    if not kinds:
        raise ValueError(f"--products best: is of 4-bit and 8-bit weights; give --weights {' or '.join(KINDS)}")
    for kind in kinds:
        if reason := refusal(config, kind, DTYPES[dtype], device):
            raise ValueError(f"--products best: {reason}")


def libraries(config: ModelConfig, kind: str, device: torch.device | None = None) -> tuple[str, ...]:
    """Distributions of the products that the best ones of a model may be; by default on a GPU, if there is one."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = {name for best in measured(config, kind, device).values() for _, name in best.measured} - {OURS}
    return tuple(sorted({library for n in names if n in products() for library in products()[n].libraries}))


def wanted(config: ModelConfig, kind: str, rows: Iterable[int], device: torch.device) -> list[Wanted]:
    """What a model needs of other products at these numbers of rows."""
    pairs = ((count, shape, best) for count in rows for shape, best in measured(config, kind, device).items())
    return [
        Wanted(best.product(count), ProductShape(count, *shape))
        for count, shape, best in pairs
        if best.product(count) != OURS
    ]


def by_best(decoder: Decoder, kind: str, needs: Collection[Wanted], on_step: Report) -> Decoder:
    """The decoder with its projections held by the products of `needs`, too; kernels are compiled before.

    Args:
        kind: of its projections' weights, one of KINDS.

    Raises:
        Unsupported: the model is run by another library.
    """
    if not decoder.own_linears:
        raise Unsupported("products: the model's linear layers are another library's")
    table = measured(decoder.config, kind, decoder.device)
    held = {(n.product, n.shape.columns, n.shape.depth) for n in needs}
    others = {need: products()[need.product] for need in needs}
    ahead = {
        n: other.ahead(kind, n.shape, decoder.dtype, decoder.device) for n, other in others.items() if other.compiles
    }
    compile_ahead(ahead, on_step)

    def chosen(weight: object) -> object:
        if not isinstance(weight, Int4Weight | Fp8Weight) or weight.shape not in table:
            return weight
        hold: dict[str, Multiply] = {
            name: products()[name].hold(weight, decoder.dtype)
            for name, columns, depth in sorted(held)
            if (columns, depth) == weight.shape
        }
        return ChosenWeight(weight, table[weight.shape], hold) if hold else weight

    out = copy(decoder)
    out.layers = []
    for i, layer in enumerate(decoder.layers):
        on_step(f"weights for other products, layer {i + 1} of {len(decoder.layers)}")
        own = {name: chosen(getattr(layer, name)) for name in shapes(decoder.config)}
        out.layers.append(replace(layer, **own))  # type: ignore[arg-type]
    return out
