"""Cases of the lossless suite: a real model on stretches of text, and random weights that replay its acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ...kernels import SparseConfig
from ...kernels.config import ceil_div
from ..decode.cases import GPU_DENSE, GPU_TEXT_DENSE, DecodeCase, ModelCase
from ..engine.sampling import Sampling
from ..micro.cases import DTYPES, K, MethodSpec
from ..model.config import ModelConfig
from .method import NAME
from .replay import Acceptance

DRAFTS = (2, 4, 8, 16)


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
        if min(self.prompt, self.tokens, self.batch) < 1:
            given = f"{self.prompt}, {self.tokens}, {self.batch}"
            raise ValueError(f"prompt, tokens, prompts: got {given}, must be at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, allowed are {', '.join(DTYPES)}")

    @property
    def context(self) -> int:
        """Tokens at the end."""
        return self.prompt + self.tokens

    @property
    def weights(self) -> str:
        return self.dtype

    @property
    def slug(self) -> str:
        """`lossless-smollm2-135m-b8-1k-64`: prompts, tokens of each, tokens decoded, the sampling."""
        prompt, tokens = (f"{n // K}k" if n % K == 0 else str(n) for n in (self.prompt, self.tokens))
        return f"lossless-{self.config.name}-b{self.batch}-{prompt}-{tokens}{sampled(self.sampling)}"

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
        length = f"{self.context // K}k" if self.context % K == 0 else str(self.context)
        parts = ["lossless", self.config.name, self.weights, f"b{self.batch}", length]
        parts += ["shared"] if self.shared_kv else []
        return "-".join([*parts, "replayed"]) + sampled(self.sampling)

    def acceptance(self, spec: MethodSpec) -> Acceptance:
        """What `spec` replays. Raises ValueError where the case has none for it."""
        for one in self.acceptances:
            if one.fits(spec):
                return one
        raise ValueError(f"replay: no acceptance for {spec.label}")


def sampled(sampling: Sampling) -> str:
    """The end of a case's name that tells its sampling; empty for greedy decoding."""
    return f"-t{sampling.temperature:g}-p{sampling.top_p:g}" if sampling.temperature else ""


def lossless_specs(
    base: SparseConfig, drafts: Sequence[int], sizes: Sequence[int], ratios: Sequence[float]
) -> list[MethodSpec]:
    """Lossless decoding at every draft length, block size and active ratio.

    Raises:
        ValueError: a draft length below 1.
    """
    if min(drafts) < 1:
        raise ValueError(f"draft length: got {min(drafts)}, must be at least 1 token")
    return [
        MethodSpec(NAME, replace(base, block_size=b, active_ratio=r, rectify_every=m + 1), draft_length=m)
        for b in dict.fromkeys(sizes)
        for r in dict.fromkeys(ratios)
        for m in dict.fromkeys(drafts)
    ]


def dense_specs(device: torch.device, *, text: bool) -> list[MethodSpec]:
    """The dense methods that lossless decoding is compared with; first the one whose texts it must repeat."""
    if device.type != "cuda":
        return [MethodSpec("torch-dense")]
    return [MethodSpec(name) for name in (GPU_TEXT_DENSE if text else GPU_DENSE)]
