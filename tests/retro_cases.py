"""Settings and frozen steps for tests of RetroAttention."""

from __future__ import annotations

from typing import Any

from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.baselines.retro import RepairingLayer, Retro
from resa_bench.kernels import (
    KVCache,
    SparseConfig,
)
from resa_bench.kernels.portable import TorchSparseMethod


def prepare(method: Retro, cache: KVCache, path: str) -> RepairingLayer:
    """Bind on the kernels, or on the portable path, which the interpreter would otherwise stand in for."""
    layer = method.prepare(cache) if path == "kernels" else TorchSparseMethod.prepare(method, cache)
    assert isinstance(layer, RepairingLayer)
    return layer


def settings(w: int, **others: Any) -> SparseConfig:
    own: dict[str, Any] = {"active_ratio": 0.25, "min_blocks": 2, "gqa_policy": "group-sum", "window": w}
    return SparseConfig(**own | others)
