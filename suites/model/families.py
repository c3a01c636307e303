"""Families of models that `Decoder` computes, an entry each: what their files mean beyond what these say themselves.

All are pre-norm blocks of grouped-query attention and SwiGLU, whose tensors have Llama's names. One more is one more
entry: `register_family(Family(...))`, here or in a module that RESA_BENCH_PLUGINS names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A family by the name that config.json (`model_type`) and GGUF (`general.architecture`) have for it.

    Attributes:
        qkv_bias: the projections of q, k and v have a bias.
        qk_norm: queries and keys are normalised, head by head.
        head_dim: where config.json does not say it; None: hidden size over heads.
        gguf_interleaved: GGUF stores the rows of q and k as interleaved rotary pairs.
    """

    name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    gguf_interleaved: bool = False


_families: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known to every loader. Raises ValueError for a name that is taken by another."""
    if _families.get(family.name, family) != family:
        raise ValueError(f"model family {family.name!r} is there already; known are {', '.join(_families)}")
    _families[family.name] = family
    return family


def families() -> dict[str, Family]:
    """Every family by name."""
    return dict(_families)


register_family(Family("llama", gguf_interleaved=True))
register_family(Family("qwen2", qkv_bias=True))
register_family(Family("qwen3", qk_norm=True, head_dim=128))
