"""Products of a captured step by this project's kernels; those that share their input become one launch.

A step multiplies a few rows with every weight, and transformers asks for q, k and v, or gate and up, one by one: small
launches that leave the memory idle. Here the first of them makes the product of all, and the others take their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from ...kernels.linear.dispatch import linear
from ...kernels.linear.weights import DenseWeight

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers that one module feeds with the same input, in the order in which it calls them."""

Forward = Callable[[Tensor], Tensor]


@torch.library.custom_op("resa_bench::linear", mutates_args=())
def linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + bias` of `[..., K]` and `[N, K]`, opaque to torch.compile."""
    rows = linear(x.reshape(-1, x.shape[-1]), DenseWeight(weight, bias))
    return rows.view(*x.shape[:-1], weight.shape[0])


@linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Products:
    """The linear layers of a model that can be replaced while a step is captured."""

    def __init__(self, model: nn.Module) -> None:
        """Parameters of layers that are called together become views of one tensor; their values stay."""
        self._forwards: dict[nn.Linear, Forward] = {}
        for module in model.modules():
            for names in SIBLINGS:
                layers = [getattr(module, name, None) for name in names]
                own = [layer for layer in layers if is_plain(layer)]
                if len(own) == len(names) and fit_together(own):
                    self._forwards |= dict(zip(own, merged(own), strict=True))
        for module in model.modules():
            if is_plain(module) and module not in self._forwards:
                self._forwards[module] = single(module)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The layers run as this project's products, here."""
        for layer, forward in self._forwards.items():
            layer.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for layer in self._forwards:
                del layer.__dict__["forward"]


def is_plain(layer: object) -> TypeGuard[nn.Linear]:
    """Whether a module is torch's own linear layer, with nothing hooked into it."""
    return type(layer) is nn.Linear and "forward" not in layer.__dict__ and layer.weight.is_contiguous()


def fit_together(layers: Sequence[nn.Linear]) -> bool:
    """Whether one product can stand for those of several layers."""
    kinds = {(x.in_features, x.bias is None, x.weight.dtype, x.weight.device) for x in layers}
    return len(kinds) == 1 and not layers[0].weight.is_meta


def single(layer: nn.Linear) -> Forward:
    """A layer's product."""
    return lambda x: linear_op(x, layer.weight, layer.bias)


def merged(layers: Sequence[nn.Linear]) -> list[Forward]:
    """The products of several layers as one, made when the first is called; another input gets a product of its own."""
    weight = joined([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else joined([layer.bias for layer in layers])
    widths = [layer.out_features for layer in layers]
    asked: list[Tensor] = []  # the input, and the products of it

    def first(x: Tensor) -> Tensor:
        asked[:] = (x, *linear_op(x, weight, bias).split(widths, -1))
        return asked[1]

    def later(place: int, layer: nn.Linear, x: Tensor) -> Tensor:
        if not asked or asked[0] is not x:
            return linear_op(x, layer.weight, layer.bias)
        part = asked[1 + place]
        if place == len(layers) - 1:
            asked.clear()
        return part

    return [first, *(partial(later, place, layer) for place, layer in enumerate(layers) if place)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parameters one after another, `[sum of N, ...]`; they become views of it, so that nothing is held twice."""
    whole = as_they_lie(parts)
    if whole is None:
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
    return whole


def as_they_lie(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor of parameters that are neighbours in memory already; None where they are not."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += part.nbytes
    size = (sum(len(part) for part in parts), *first.shape[1:])
    return torch.as_strided(first.data, size, first.stride())
