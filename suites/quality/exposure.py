"""Effective KV exposure of RetroAttention: what a query has seen once its window is over, over what one step loads.

The paper reports 1.17x to 1.60x (arXiv 2508.09001). It is read off the clocks that each layer keeps of when a block was
last loaded, so that it is measured on the steps themselves, captured ones too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels import Layer
from ..engine.checks import ring_of


def exposure(layers: Sequence[Layer]) -> Tensor:
    """Tokens that the oldest query of the window has seen over tokens that the latest step loaded, `[layers, B, Hkv]`.

    For layers of one state that have just done a step, and at least w since its sequences began. Stays on the device.
    """
    rings, size = [ring_of(layer) for layer in layers], layers[0].config.block_size  # type: ignore[attr-defined]
    ring = replace(  # of all layers
        rings[0],
        loaded=torch.stack([r.loaded for r in rings]),  # [layers, B, Hkv, M]
        clock=torch.stack([r.clock for r in rings])[..., None, None],
    )
    length = layers[0].cache.lengths[:, None]
    start = torch.arange(ring.loaded.shape[-1], device=length.device) * size

    def tokens(blocks: Tensor, before: Tensor) -> Tensor:
        """How many tokens at positions below `before` the blocks hold."""
        return (blocks * (before - start).clamp(0, size)[:, None]).sum(-1)

    return tokens(ring.in_window(), length - ring.slots + 1) / tokens(ring.latest(), length)
