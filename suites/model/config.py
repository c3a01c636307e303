"""What a decoder model is made of, and the presets that random weights are drawn for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.config import AttentionShape


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: `linear`, `llama3` or `yarn` (the names and fields of Hugging Face)."""

    kind: str
    factor: float
    original_context: int = 8192  # tokens the model was trained for before scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; 0.1 ln(factor) + 1 where it is not given

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ValueError(f"rope scaling: got {self.kind[:60]!r}, allowed are linear, llama3, yarn")
        if not (math.isfinite(self.factor) and self.factor > 0 and self.original_context > 0):
            got = f"factor {self.factor}, original context {self.original_context}"
            raise ValueError(f"rope scaling: got {got}, must be above 0")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            got = f"{self.low_freq_factor}, {self.high_freq_factor}"
            raise ValueError(f"rope scaling: low_freq_factor, high_freq_factor: got {got}, expected 0 < low < high")
        if not 0 < self.beta_slow < self.beta_fast:
            got = f"{self.beta_fast}, {self.beta_slow}"
            raise ValueError(f"rope scaling: beta_fast, beta_slow: got {got}, expected fast > slow > 0")


def usable_context(stated: int, scaling: RopeScaling | None) -> int:
    """Tokens a model handles: what its file states, or what its scaling stretches the original context to.

    Qwen's way to long texts is to add YaRN to the file and leave the stated context as it was; linear scaling is given
    in that way too. Files with llama3's scaling state the stretched context.
    """
    if scaling is None or scaling.kind == "llama3":
        return stated
    return max(stated, int(scaling.original_context * scaling.factor))


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a decoder. `ffn` is the width of SwiGLU's halves.

    Of a model that several ranks share (parallel/shard.py) heads and `ffn` are those of one rank.
    """

    name: str
    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int = 131072  # tokens the model claims to handle
    norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    ranks: int = 1  # that share the model
    simulated: bool = False  # one of them runs alone, without the exchange
    kv_replicas: int = 1  # ranks that hold the same KV heads

    def __post_init__(self) -> None:
        self.attention(1)  # checks the heads

    def attention(self, batch: int) -> AttentionShape:
        """Of one layer, for so many sequences. Raises ValueError for heads that do not divide."""
        return AttentionShape(batch, self.q_heads, self.kv_heads, self.head_dim)

    @property
    def qkv_width(self) -> int:
        """Rows of the fused projection of q, k and v."""
        return (self.q_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Parameters of the layers' projections, which 4-bit weights shrink (norms, embedding and head stay)."""
        attention = self.hidden * (self.qkv_width + self.q_heads * self.head_dim)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def head_parameters(self) -> int:
        """Parameters of the head; of one rank's part of it."""
        return self.vocab // self.ranks * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, beyond a head that is a part of it."""
        return self.vocab * self.hidden - (self.head_parameters if self.tied_head else 0)

    def rotary(self) -> tuple[Tensor, float]:
        """Inverse frequencies, float32 `[D / 2]`, and the factor on cos and sin (yarn's; 1 otherwise).

        The formulas of transformers' `modeling_rope_utils`, which checkpoints are trained with; yarn: arXiv 2309.00071.
        """
        dim, scaling = self.head_dim, self.rope_scaling
        frequency = 1.0 / self.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        if scaling is None:
            return frequency, 1.0
        if scaling.kind == "linear":
            return frequency / scaling.factor, 1.0
        if scaling.kind == "llama3":
            turns = scaling.original_context * frequency / (2 * math.pi)
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
            return frequency * (smooth + (1 - smooth) / scaling.factor), 1.0

        def dimension(rotations: float) -> float:
            """The dimension whose frequency turns that often within the original context."""
            length = scaling.original_context / (rotations * 2 * math.pi)
            return dim * math.log(length) / (2 * math.log(self.rope_theta))

        low = max(math.floor(dimension(scaling.beta_fast)), 0)
        high = min(math.ceil(dimension(scaling.beta_slow)), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
        factor = scaling.attention_factor
        if factor is None:
            factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return frequency * (1 - ramp) + frequency / scaling.factor * ramp, factor


LLAMA3_SCALING = RopeScaling("llama3", 8.0)

MODELS = {
    config.name: config
    for config in (
        ModelConfig("qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, qkv_bias=True),
        ModelConfig("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151936, qkv_bias=True, tied_head=True),
        ModelConfig("qwen2.5-14b", 48, 5120, 40, 8, 128, 13824, 152064, norm_eps=1e-5, qkv_bias=True),
        ModelConfig("r1-distill-qwen-1.5b", 28, 1536, 12, 2, 128, 8960, 151936, rope_theta=1e4, qkv_bias=True),
        ModelConfig(
            "llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256,
            norm_eps=1e-5, rope_theta=5e5, rope_scaling=LLAMA3_SCALING,
        ),
        ModelConfig(
            "llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256,
            norm_eps=1e-5, rope_theta=5e5, rope_scaling=LLAMA3_SCALING,
        ),
        ModelConfig("qwen2.5-32b", 64, 5120, 40, 8, 128, 27648, 152064, norm_eps=1e-5, qkv_bias=True),
        ModelConfig("qwen2.5-72b", 80, 8192, 64, 8, 128, 29568, 152064, norm_eps=1e-5, qkv_bias=True),
        ModelConfig("qwen3-14b", 40, 5120, 40, 8, 128, 17408, 151936, context=40960, qk_norm=True),
        ModelConfig("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, context=40960, qk_norm=True),
        ModelConfig("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, context=40960, qk_norm=True),
    )
}  # fmt: skip
