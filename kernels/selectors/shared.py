"""Lists shared across layers: some layers choose, those after them read the same blocks.

TidalDecode (arXiv 2410.05076) and Kascade: neighbouring layers attend to much the same tokens. ReSA's rectification
stands beside it as beside any selector.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import AttentionShape, SparseConfig
from ..registry import SELECTORS
from .base import Selector, register_selector


@register_selector("pairs-shared2", (True, False), "pairs")
@register_selector("shared4", (True, False, False, False))
@register_selector("shared2", (True, False))
@dataclass(eq=False)
class Shared(Selector):
    """Of every few layers some choose.

    Attributes:
        choosing: which of them (`Selector.choosing`).
        base: the selector that they choose by; none: the settings' summary.
    """

    choosing: tuple[bool, ...]
    base: str | None = None

    def chooser(self, config: SparseConfig) -> Selector:
        """The base."""
        selector: Selector = SELECTORS[self.base or config.summary_kind]
        return selector

    def check(self, config: SparseConfig) -> None:
        """As the base."""
        self.chooser(config).check(config)

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """As the base."""
        return self.chooser(config).rows(shape, config)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """The base's, in a layer that chooses."""
        return self.chooser(config).score_bytes(shape, config, element, tokens)
