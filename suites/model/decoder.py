"""The decoder: Llama, Qwen2 and Qwen3 in one file. Pre-norm blocks of grouped-query attention and SwiGLU.

Rows are tokens: a decode step has one a sequence, rectification f, prefill a chunk. The decoder never touches a cache.
Whoever runs it passes `attend(layer, cells)`, which is handed the roped queries, keys and values of that layer's rows
and returns the attention's output; how K and V are kept, and what is attended to, is the caller's method.

With an `exchange` the decoder is one rank's share of a model: what its second matrices yield is summed over the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ...kernels.linear.dispatch import Weight, linear
from ...kernels.linear.rope import rope_split
from ...kernels.linear.weights import DenseWeight, Norm
from ...profiling.ranges import mark, span
from .config import ModelConfig
from .parallel.exchange import Exchange


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. `qkv` holds the rows of q, k, v; `gate_up` those of gate, then up."""

    attention_norm: Norm
    qkv: Weight  # [(Hq + 2 Hkv) D, hidden]
    o: Weight  # [hidden, Hq D]
    ffn_norm: Norm
    gate_up: Weight  # [2 ffn, hidden]
    down: Weight  # [hidden, ffn]
    q_norm: Norm | None = None  # [D]
    k_norm: Norm | None = None

    @property
    def linears(self) -> tuple[Weight, ...]:
        """The projections, which 4-bit weights shrink."""
        return self.qkv, self.o, self.gate_up, self.down


class Cells(Protocol):
    """Where a layer's queries `[..., Hq, D]`, keys and values `[..., Hkv, D]` go; `StepTensors`, `ChunkTensors`."""

    @property
    def q(self) -> Tensor: ...
    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...


class Decoder:
    """A model's weights and what it computes with them."""

    def __init__(
        self, config: ModelConfig, embedding: Tensor, layers: Sequence[LayerWeights], norm: Norm, head: Weight,
        exchange: Exchange | None = None,
    ) -> None:  # fmt: skip
        """`embedding` `[vocab, hidden]`; `head` `[vocab / ranks, hidden]`, (a part of) the embedding if it is tied."""
        self.exchange = exchange
        self.config, self.embedding, self.layers, self.norm, self.head = config, embedding, list(layers), norm, head
        frequency, self._rotary_factor = config.rotary()
        self._frequency = frequency.to(embedding.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, embedding and norms."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embedding.device

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads: projections and head once, of the embedding next to nothing."""
        return sum(w.bytes for layer in self.layers for w in layer.linears) + self.head.bytes

    @property
    def parameter_bytes(self) -> int:
        """Bytes that the weights take."""
        embedding = self.embedding.numel() * self.embedding.element_size()
        tied = isinstance(self.head, DenseWeight) and (
            self.head.weight.untyped_storage().data_ptr() == self.embedding.untyped_storage().data_ptr()
        )
        return self.weight_bytes + embedding - (self.head.bytes if tied else 0)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 `[rows, D / 2]`, of integer positions `[rows]`."""
        angle = positions[:, None].float() * self._frequency
        return angle.cos() * self._rotary_factor, angle.sin() * self._rotary_factor

    def project(self, i: int, x: Tensor, rotary: tuple[Tensor, Tensor], cells: Cells) -> None:
        """Fill layer i's cells from the hidden states `[rows, hidden]`."""
        layer, config = self.layers[i], self.config
        qkv = linear(x, layer.qkv, norm=layer.attention_norm)
        q, k, v = (t.view(-1, t.shape[-2], config.head_dim) for t in (cells.q, cells.k, cells.v))
        rope_split(qkv, *rotary, q, k, v, q_norm=layer.q_norm, k_norm=layer.k_norm)

    def block(
        self,
        i: int,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cells: Cells,
        attend: Callable[[int, Cells], Tensor],
    ) -> Tensor:
        """Layer i: `[rows, hidden]` to `[rows, hidden]`."""
        layer = self.layers[i]
        with mark("project"):
            self.project(i, x, rotary, cells)
        attended = attend(i, cells)
        with mark("project"):
            x = linear(attended.reshape(len(x), -1), layer.o, residual=self._residual(x))
        x = self._sum(x)
        with mark("ffn"):
            inner = linear(x, layer.gate_up, norm=layer.ffn_norm, swiglu=True)
            x = linear(inner, layer.down, residual=self._residual(x))
        return self._sum(x)

    def _residual(self, x: Tensor) -> Tensor | None:
        """What this rank adds to its product: of all ranks, one adds the residual."""
        return x if self.exchange is None or self.exchange.adds_residual else None

    def _sum(self, x: Tensor) -> Tensor:
        """Hidden states `[rows, hidden]` summed over the ranks."""
        if self.exchange is None or self.config.simulated:
            return x
        with mark("all-reduce"):
            return self.exchange.add(x)

    def hidden(self, tokens: Tensor, positions: Tensor, cells: Cells, attend: Callable[[int, Cells], Tensor]) -> Tensor:
        """Hidden states after the last block, `[rows, hidden]`, of token ids `[rows]` at `positions` `[rows]`."""
        with mark("other"):
            x = embedding(tokens, self.embedding)
            rotary = self.rotary(positions)
        for i in range(len(self.layers)):
            with span("layer", i):
                x = self.block(i, x, rotary, cells, attend)
        return x

    def keys_and_values(
        self,
        tokens: Tensor,
        positions: Tensor,
        cells: Cells,
        attend: Callable[[int, Cells], Tensor],
        write: Callable[[int, Cells], None],
    ) -> None:
        """What rectification needs: as `hidden`, but the last layer ends with its keys and values (`write`)."""
        with mark("other"):
            x = embedding(tokens, self.embedding)
            rotary = self.rotary(positions)
        last = len(self.layers) - 1
        for i in range(last):
            with span("layer", i):
                x = self.block(i, x, rotary, cells, attend)
        with span("layer", last):
            with mark("project"):
                self.project(last, x, rotary, cells)
            write(last, cells)

    def logits(self, x: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of the model's dtype from hidden states `[rows, hidden]`."""
        with mark("head"):
            logits = linear(x, self.head, norm=self.norm)
        if self.exchange is None or self.config.simulated:
            return logits
        with mark("all-gather"):
            return self.exchange.gather(logits)
