"""A model of transformers in place of our `Decoder`: for families that our runner does not know.

The engine hands attention to a method; everything else works row by row. So rows go through transformers' own modules
as one sequence of so many tokens at given positions, and each layer's attention is the engine's. `quality`, `tasks` and
the others run such a model as they run any. Served are models whose every layer attends to everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, Cache
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import causal_mask_function
from transformers.modeling_outputs import BaseModelOutputWithPast

from ...kernels import Unsupported
from ...kernels.linear.weights import tensor_bytes
from ...suites.model.config import ModelConfig
from ...suites.model.decoder import Cells, Decoder
from .names import cache_name
from .refuse import check_call, check_model

NAME = "resa-bench-decoder"
_running = local()
Attend = Callable[[int, Cells], Tensor]


NEEDED = ("num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "max_position_embeddings")


def folder_config(folder: Path) -> ModelConfig:
    """The shape of a Hugging Face folder of any family that is served.

    Raises:
        ValueError: transformers cannot read it. Unsupported: layers that are no full attention.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config(decoder=True)
    except Exception as error:  # a family's own configuration raises what it likes
        raise ValueError(f"{folder}: transformers cannot read it: {' '.join(str(error).split())[:160]}") from None
    if lacking := [name for name in NEEDED if not hasattr(config, name)]:
        raise ValueError(f"{folder}: is no decoder with attention, its configuration lacks {', '.join(lacking)}")
    kinds = {type(layer).__name__ for layer in DynamicCache(config=config).layers} - {DynamicLayer.__name__}
    if kinds:
        raise Unsupported(
            f"{folder}: has layers with caches of the kind {', '.join(sorted(kinds))}; the engine runs full attention "
            "alone, `integrations.transformers.attach` and lm_eval take such models"
        )
    heads = config.num_attention_heads
    return ModelConfig(
        name=folder.resolve().name, layers=config.num_hidden_layers, hidden=config.hidden_size, q_heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads, ffn=config.intermediate_size,
        vocab=config.vocab_size, context=config.max_position_embeddings,
        tied_head=bool(getattr(config, "tie_word_embeddings", False)),
    )  # fmt: skip


def folder_decoder(folder: Path, *, dtype: torch.dtype, device: torch.device) -> TransformersDecoder:
    """A Hugging Face folder as a decoder.

    Raises:
        ValueError, Unsupported: as `folder_config` and `check_model`; or its files are damaged, or lack weights.
    """
    config = folder_config(folder)
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of safetensors, of torch, or a family's own
        raise ValueError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())[:160]}") from None
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers draws them at random
        raise ValueError(f"{folder}: its files lack {len(missing)} of the model's weights, {missing[0]} among them")
    model = model.to(device).eval()
    return TransformersDecoder(model.requires_grad_(False), config)


class TransformersDecoder(Decoder):
    """What `Decoder` computes, by a model of transformers; its linear layers are torch's, and not checked here."""

    own_linears = False

    def __init__(self, model: Any, config: ModelConfig) -> None:
        """Raises Unsupported for a model whose attention the engine cannot take over."""
        check_model(model)
        self.model, self.config, self.exchange = model, config, None
        self._text = model.config.get_text_config(decoder=True)
        self._cache = {cache_name(model.base_model): _Passing(config.layers)}

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one step reads: all but an embedding of its own."""
        embedding = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        tied = head is not None and head.weight is embedding
        return self.parameter_bytes - (0 if tied else tensor_bytes(embedding))

    @property
    def parameter_bytes(self) -> int:
        """Bytes that the weights take."""
        return tensor_bytes(*self.model.parameters())

    def hidden(self, tokens: Tensor, positions: Tensor, cells: Cells, attend: Attend) -> Tensor:
        """Hidden states after the last block and the last norm, `[rows, hidden]`."""
        with _attending(self, cells, attend):
            output = self.model.base_model(
                input_ids=tokens[None], position_ids=positions[None], use_cache=True, **self._cache
            )
        states: Tensor = output.last_hidden_state[0]
        return states

    def keys_and_values(
        self, tokens: Tensor, positions: Tensor, cells: Cells, attend: Attend, write: Callable[[int, Cells], None]
    ) -> None:
        """As `hidden`; the last layer ends with its keys and values."""
        last = self.config.layers - 1

        def stop(i: int, cells: Cells) -> Tensor:
            if i < last:
                return attend(i, cells)
            write(i, cells)
            return torch.zeros_like(cells.q)

        self.hidden(tokens, positions, cells, stop)

    def logits(self, x: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of hidden states `[rows, hidden]`, as the model makes them: scaled, capped."""
        prefix = self.model.base_model_prefix
        own = getattr(self.model, prefix)
        setattr(self.model, prefix, _Given(x[None]))
        try:
            logits: Tensor = self.model(input_ids=torch.zeros(1, len(x), dtype=torch.long, device=x.device)).logits[0]
        finally:
            setattr(self.model, prefix, own)
        return logits

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """One layer's attention by the engine: `[1, H, rows, D]` to `[1, rows, Hq, D]`."""
        cells, attend = _running.cells, _running.attend
        if scaling is not None and abs((factor := scaling * query.shape[-1] ** 0.5) - 1) > 1e-6:
            query = query * factor
        for cell, given in ((cells.q, query), (cells.k, key), (cells.v, value)):
            cell.copy_(given[0].transpose(0, 1).reshape(cell.shape))
        out: Tensor = attend(module.layer_idx, cells)
        return out.reshape(1, query.shape[2], *cells.q.shape[-2:])


@contextmanager
def _attending(decoder: TransformersDecoder, cells: Cells, attend: Attend) -> Iterator[None]:
    config = decoder._text
    before = config._attn_implementation
    _running.decoder, _running.cells, _running.attend = decoder, cells, attend
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _running.decoder = _running.cells = _running.attend = None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **arguments: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    layer: Any = module.layer_idx
    check_call(layer, True, arguments)
    if attention_mask is not None or dropout:
        raise Unsupported(f"layer {layer}: got a mask beyond causal, or dropout; the engine serves neither")
    return _running.decoder.attend(module, query, key, value, scaling), None


def _mask(*positional: Any, **arguments: Any) -> None:
    if arguments.get("mask_function") is not causal_mask_function:
        raise Unsupported("the model masks more than the future, which the engine does not serve")


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


class _PassingLayer(DynamicLayer):
    """A cache layer that keeps nothing: the engine does."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _Passing(Cache):
    """A cache that keeps nothing, so that transformers takes positions and masks as those of one sequence."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[_PassingLayer() for _ in range(layers)])


class _Given(nn.Module):
    """A base model whose states are given: what the model's head makes of them is asked."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.states)  # type: ignore[arg-type]
