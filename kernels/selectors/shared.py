"""Lists shared across layers: some layers choose, those after them read the same blocks.

TidalDecode (arXiv 2410.05076) and Kascade: neighbouring layers attend to much the same tokens. ReSA's rectification
stands beside it as beside any selector.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config import AttentionShape, SparseConfig
from ..registry import SELECTORS
from .base import Blocks, Selector, register_selector


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

    ranked = False

    @property
    def summarised(self) -> bool:  # type: ignore[override]
        """As the base."""
        return self._base(None).summarised

    @property
    def tabled(self) -> bool:  # type: ignore[override]
        """As the base."""
        return self._base(None).tabled

    def _base(self, config: SparseConfig | None) -> Selector:
        kind = config.summary_kind if config is not None else "minmax"
        selector: Selector = SELECTORS[self.base or kind]
        return selector

    def chooser(self, config: SparseConfig) -> Selector:
        """The base."""
        return self._base(config)

    def check(self, config: SparseConfig) -> None:
        """As the base."""
        self._base(config).check(config)

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        """As the base."""
        return self._base(config).rows(shape, config)

    def calibrate(self, keys: Tensor) -> Tensor | None:
        """As the base."""
        return self._base(None).calibrate(keys)

    def describe(self, keys: Tensor, valid: Tensor | None, config: SparseConfig, known: Tensor | None) -> Tensor:
        """As the base."""
        return self._base(config).describe(keys, valid, config, known)

    def choose(self, blocks: Blocks) -> Tensor:
        """The base's choice, or that of the layer that chose last."""
        if self.choosing[blocks.layer % len(self.choosing)]:
            blocks.handed["chosen"] = self._base(blocks.config).choose(blocks)
        return blocks.handed["chosen"]

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        """The base's, in a layer that chooses."""
        return self._base(config).score_bytes(shape, config, element, tokens)
