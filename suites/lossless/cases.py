"""Cases of the lossless suite: a real model on stretches of text, and random weights that replay its acceptance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...kernels.config import ceil_div
from ..core.flags import size_word
from ..core.spec import MethodSpec, make_spec
from ..decode.cases import DecodeCase
from ..engine.case import GPU_DENSE, GPU_TEXT_DENSE, ModelCase, check_counts, check_types
from ..engine.sampling import Sampling
from ..model.config import ModelConfig
from .replay import Acceptance


@dataclass(frozen=True, slots=True)
class LosslessCase(ModelCase):
    """Stretches of a text, prefilled densely, each decoded for so many tokens: densely, and losslessly by drafts.

    Attributes:
        prompt: tokens of each stretch.
        tokens: decoded after each.
        batch: stretches, decoded together.
    """

    suite: ClassVar[str] = "lossless"

    model: str
    config: ModelConfig
    prompt: int
    tokens: int
    batch: int
    dtype: str = "fp32"
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(prompt=self.prompt, tokens=self.tokens, prompts=self.batch)
        check_types(self.weights, self.dtype)

    @property
    def context(self) -> int:
        """Tokens at the end."""
        return self.prompt + self.tokens

    @property
    def slug(self) -> str:
        """`lossless-smollm2-135m-b8-1k-64`: prompts, tokens of each, tokens decoded, the sampling."""
        sizes = f"{size_word(self.prompt)}-{size_word(self.tokens)}"
        return f"lossless-{self.config.name}-b{self.batch}-{sizes}{self.sampling.word}"

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return ModelCase.columns(self) | {"selection_pattern": "text"}

    def capacity(self, drafts: int) -> int:
        """Tokens that each cache has room for: the text, and the rows of a verification beyond it.

        Raises:
            ValueError: the model has no room for as many drafts.
        """
        need = self.context + drafts + 1
        if need > self.config.context:
            raise ValueError(
                f"draft length {drafts}: {self.prompt} + {self.tokens} tokens and {drafts + 1} rows of verification "
                f"are over the {self.config.context} tokens that {self.config.name} handles; take fewer of one of them"
            )
        return ceil_div(need, 64) * 64


@dataclass(frozen=True, slots=True)
class ReplayCase(DecodeCase):
    """Random weights at a length worth timing, accepting as a real model did."""

    suite: ClassVar[str] = "lossless"

    acceptances: tuple[Acceptance, ...] = ()

    @property
    def slug(self) -> str:
        """`lossless-qwen2.5-7b-int4-b1-256k-replayed`, with `-shared` and the sampling where they apply."""
        parts = ["lossless", self.config.name, self.weights, f"b{self.batch}", size_word(self.context)]
        parts += ["shared"] if self.shared_kv else []
        return "-".join([*parts, "replayed"]) + self.sampling.word

    def acceptance(self, spec: MethodSpec) -> Acceptance:
        """What `spec` replays. Raises ValueError where the case has none for it."""
        for acceptance in self.acceptances:
            if acceptance.variant == spec.variant:
                return acceptance
        raise ValueError(f"replay: no acceptance for {spec.label}")


def dense_specs(device: torch.device, *, text: bool) -> list[MethodSpec]:
    """The dense methods that lossless decoding is compared with; first the one whose texts it must repeat."""
    if device.type != "cuda":
        return [make_spec("torch-dense")]
    return [make_spec(name) for name in (GPU_TEXT_DENSE if text else GPU_DENSE)]
