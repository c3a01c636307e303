"""A decoder's weights, put together tensor by tensor: drawn at random, or filled from what a file stores.

Whatever they come from, tensors have Hugging Face's names ("model.layers.0.self_attn.q_proj.weight"). Each is written
straight into its place in the fused matrices, so that the whole takes its final size plus one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...kernels.config import DTYPES
from ...kernels.linear.dispatch import Weight
from ...kernels.linear.fp8 import quantise_fp8
from ...kernels.linear.int4 import quantise
from ...kernels.linear.weights import DenseWeight, Norm
from .config import ModelConfig
from .decoder import Decoder, LayerWeights
from .fill import Fill, Part, int4_group
from .parallel.exchange import exchange_of
from .parallel.shard import Shard, check_groups

_STD = 0.02
QUANTISED = ("int4", "fp8")
"""What the layers' projections may be rounded to; the head stays in the activations' type."""


def random_decoder(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None, seed: int = 0,
    shard: Shard | None = None,
) -> Decoder:  # fmt: skip
    """A decoder of random weights, drawn on the device: normal of std 0.02, norms that much around one.

    Args:
        dtype: of activations, embedding, norms and head.
        weight_dtype: `"int4"` or `"fp8"` (e4m3) quantises the layers' projections; else `dtype`'s name, which None
            stands for.
        shard: this rank's share of the model; what it draws is what it has of the whole model of that seed.

    Raises:
        ValueError: `weight_dtype` is none of these, or rows are no multiple of a 4-bit group.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def fill(name: str, out: Tensor) -> None:
        is_norm = out.ndim == 1 and not name.endswith(".bias")
        out.normal_(1.0 if is_norm else 0.0, _STD, generator=generator)

    return assemble(config, fill, dtype=dtype, device=device, weight_dtype=weight_dtype, shard=shard)


def assemble(
    whole: ModelConfig, fill: Fill, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None,
    shard: Shard | None = None,
) -> Decoder:  # fmt: skip
    """A decoder whose tensors `fill` writes, one matrix at a time, or a rank's share of it.

    Raises:
        ValueError: as `random_decoder`; RuntimeError: the ranks that share it have not met.
    """
    kind = _quantised_kind(dtype, weight_dtype)
    config, exchange = whole, None
    if shard is not None:
        config, fill, exchange = shard.config(whole), shard.fill(whole, fill), exchange_of(shard)
        if kind == "int4":
            check_groups(whole, shard.ranks)

    def tensor(shape: tuple[int, ...], *names: str) -> Tensor:
        """The tensors of these names, stacked along rows."""
        out = torch.empty(shape, dtype=dtype, device=device)
        at = 0
        for name in names:
            rows = _rows(config, name)
            fill(name, out[at : at + rows])
            at += rows
        return out

    def norm(name: str, size: int) -> Norm:
        return Norm(tensor((size,), f"{name}.weight"), config.norm_eps)

    def projection(columns: int, *names: str, of: int | None = None, bias: bool = False) -> Weight:
        """`of`: columns of the whole model, whose groups those of 4-bit weights are."""
        rows = sum(_rows(config, f"{name}.weight") for name in names)
        weight = tensor((rows, columns), *(f"{name}.weight" for name in names))
        added = tensor((rows,), *(f"{name}.bias" for name in names)) if bias else None
        if kind == "int4":
            return quantise(weight, added, group=int4_group(of or columns))
        return quantise_fp8(weight, added) if kind == "fp8" else DenseWeight(weight, added)

    def layer(i: int) -> LayerWeights:
        at = f"model.layers.{i}"
        attention = f"{at}.self_attn"
        return LayerWeights(
            attention_norm=norm(f"{at}.input_layernorm", config.hidden),
            qkv=projection(config.hidden, *(f"{attention}.{x}_proj" for x in "qkv"), bias=config.qkv_bias),
            o=projection(config.q_heads * config.head_dim, f"{attention}.o_proj", of=whole.q_heads * config.head_dim),
            ffn_norm=norm(f"{at}.post_attention_layernorm", config.hidden),
            gate_up=projection(config.hidden, f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"),
            down=projection(config.ffn, f"{at}.mlp.down_proj", of=whole.ffn),
            q_norm=norm(f"{attention}.q_norm", config.head_dim) if config.qk_norm else None,
            k_norm=norm(f"{attention}.k_norm", config.head_dim) if config.qk_norm else None,
        )

    embedding = tensor((config.vocab, config.hidden), "model.embed_tokens.weight")
    layers = [layer(i) for i in range(config.layers)]
    rows = config.vocab // config.ranks
    if not config.tied_head:
        head = tensor((rows, config.hidden), "lm_head.weight")
    else:
        head = embedding if shard is None else embedding.narrow(0, shard.vocabulary(whole).first, rows)
    return Decoder(config, embedding, layers, norm("model.norm", config.hidden), DenseWeight(head), exchange)


def _rows(config: ModelConfig, name: str) -> int:
    """Rows of a tensor, by the second last part of its name."""
    part = name.split(".")[-2]
    rows = {
        "q_proj": config.q_heads * config.head_dim,
        "k_proj": config.kv_heads * config.head_dim,
        "v_proj": config.kv_heads * config.head_dim,
        "q_norm": config.head_dim,
        "k_norm": config.head_dim,
        "gate_proj": config.ffn,
        "up_proj": config.ffn,
        "embed_tokens": config.vocab,
        "lm_head": config.vocab // config.ranks,
    }
    return rows.get(part, config.hidden)


def _quantised_kind(dtype: torch.dtype, weight_dtype: str | None) -> str | None:
    """Of QUANTISED, or None. Raises ValueError for what is neither one of them nor `dtype`'s own name."""
    own = next((name for name, value in DTYPES.items() if value == dtype), None)
    if own is None:
        raise ValueError(f"dtype: got {dtype}, allowed are {', '.join(map(str, DTYPES.values()))}")
    if weight_dtype not in (None, own, *QUANTISED):
        allowed = f"{own} (as they are), {', '.join(QUANTISED)}"
        raise ValueError(f"weight dtype: got {weight_dtype!r} with activations of {own}, allowed are {allowed}")
    return weight_dtype if weight_dtype in QUANTISED else None


class Stored:
    """A `Fill` from a file's tensors, which notices what is missing, misshapen or left over."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, Part | None], Tensor], where: str
    ) -> None:
        """`shapes` of all tensors; `read` gives one, or a part, in any dtype, on any device; `where` names the file."""
        self._shapes, self._read, self._where = shapes, read, where
        self._left = set(shapes)

    def __call__(self, name: str, out: Tensor) -> None:
        """Raises ValueError where there is no such tensor, or one of another shape."""
        self._check(name, tuple(out.shape))
        self._left.discard(name)
        out.copy_(self._read(name, None))

    def fill_part(self, name: str, out: Tensor, part: Part) -> None:
        """A part of a tensor. Raises ValueError as for a whole one."""
        self._check(name, part.shape(tuple(out.shape)))
        self._left.discard(name)
        out.copy_(self._read(name, part))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._shapes:
            raise ValueError(f"{self._where} has no tensor {name!r}")
        if self._shapes[name] != shape:
            has, expected = list(self._shapes[name]), list(shape)
            raise ValueError(f"{self._where}: {name!r} has shape {has}, the configuration says {expected}")

    def check_shapes(self, config: ModelConfig) -> None:
        """Raises ValueError where a tensor is missing or of another shape than `config` says; nothing is allocated."""

        def check(name: str, out: Tensor) -> None:
            self._check(name, tuple(out.shape))

        assemble(config, check, dtype=torch.float32, device=torch.device("meta"))

    def check_all_read(self, *ignored: str) -> None:
        """Raises ValueError where tensors were not asked for, but for names that end in one of `ignored`."""
        left = sorted(name for name in self._left if not name.endswith(ignored))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ValueError(f"{self._where} has tensors that this decoder has no use for: {', '.join(left[:3])}{more}")
