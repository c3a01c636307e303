"""The list that compares selectors: every one that is registered, under ReSA, beside methods with their own."""

from __future__ import annotations

import torch

from ...kernels import SparseConfig, registered
from ...kernels.config import SUMMARY_KINDS
from ...kernels.selectors import selectors
from ..core.settings import SETTINGS, summary_settings
from ..core.spec import PINNED, MethodSpec, default_settings, make_spec, resa_here, unique

BEST = "resa-plus"
EVICTING = ("snapkv", "r-kv")


def offered() -> list[str]:
    """Selectors that a method may be given: not kinds of summary, nor those that are another method's own."""
    own = {kind.ranks_by for kind in registered().values()}
    return [name for name in selectors() if name not in SUMMARY_KINDS and name not in own]


def rival_specs(device: torch.device, base: SparseConfig) -> list[MethodSpec]:
    """ReSA, and with the first block pinned, under every selector; `resa-plus`; rivals.

    Everything but the selector is the base's. `resa-plus` is there with its own ratio, with the base's, and with the
    base's in blocks of half the size.
    """
    resa, chosen = resa_here(device), default_settings(BEST)["selector"]
    shared = [name for name in offered() if name.startswith(f"{chosen}-")]
    alike = {"active_ratio": base.active_ratio}
    halves = alike | {"block_size": base.block_size // 2, "min_blocks": base.min_blocks * 2}
    return unique([
        make_spec(resa, base), make_spec(BEST, base), make_spec(BEST, base, **alike), make_spec(BEST, base, **halves),
        make_spec("oracle", base), make_spec("sparse", base), make_spec("sink-window", base),
        make_spec("quest", base), make_spec("quest", base, gqa_policy="group-sum", dense_layers=0),
        make_spec("retro", base, window=SETTINGS["window"].default),
        *(make_spec(name, base) for name in EVICTING),
        make_spec(resa, base, **PINNED), make_spec(resa, base, **PINNED, **summary_settings("meanstd")),
        *(make_spec(resa, base, **PINNED, selector=name) for name in offered() if name != chosen),
        *(make_spec(BEST, base, **halves, selector=name) for name in shared),
    ])  # fmt: skip
