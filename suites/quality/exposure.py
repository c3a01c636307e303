"""Effective KV exposure of RetroAttention: what a query has seen once its window is over, over what one step loads.

The paper reports 1.17x to 1.60x (arXiv 2508.09001). It is read off the clocks that each layer keeps of when a block was
last loaded, so that it is measured on the steps themselves, captured ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels import Layer
from ..decode.checks import ring_of


def exposure(layer: Layer) -> Tensor:
    """Tokens that the oldest query of the window has seen over tokens that the latest step loaded, `[B, Hkv]`.

    For a layer that has just done a step, and at least w since its sequences began. Stays on the device.
    """
    ring, size = ring_of(layer), layer.config.block_size  # type: ignore[attr-defined]
    length = layer.cache.lengths[:, None]

    def tokens(blocks: Tensor, before: Tensor) -> Tensor:
        """How many tokens at positions below `before` the blocks hold."""
        start = torch.arange(blocks.shape[2], device=blocks.device) * size
        return (blocks * (before - start).clamp(0, size)[:, None]).sum(2)

    return tokens(ring.in_window(), length - ring.slots + 1) / tokens(ring.latest(), length)


class ExposureMeter:
    """The mean over layers, sequences, KV heads and steps."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers, self._readings = list(layers), list[Tensor]()

    def read(self) -> None:
        """Once after each step, from the w-th on."""
        self._readings.append(torch.stack([exposure(layer) for layer in self._layers]).mean())

    def mean(self) -> float:
        return float(torch.stack(self._readings).mean())
