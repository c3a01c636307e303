"""Teacher forcing without waiting: all fed tokens go through the model together, layer by layer.

What a token is fed is known beforehand, so its keys and values depend on earlier layers alone, and a layer's attention
can be computed for all tokens as soon as their hidden states are there. That is one pass of T rows a method in place
of T passes of one, and equals decoding step by step up to the order of sums (tests/test_quality_parallel.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels import ChunkTensors, KVCache
from ...kernels.e4m3 import decoded, encoded
from ...kernels.selectors import selector_of
from ..core.bench import Report
from ..core.spec import MethodSpec
from ..engine.engine import State
from ..engine.prompt import empty_chunk
from ..model.decoder import Cells, Decoder
from ..model.parallel.exchange import Exchange
from .forced import Forced, Reference, held, relative_error
from .forced_attention import ForcedAttention, Sequences

LOGIT_ROWS = 32  # steps whose logits are compared at a time
TILES = {"cpu": 32, "cuda": 512}
"""Fed tokens whose attention is computed at a time: what a CPU's caches hold; enough to keep a GPU at work."""


def attention_of(spec: MethodSpec | None, device: torch.device, batch: int) -> ForcedAttention:
    """Of a method, or of dense decoding. Raises ValueError for a method that has no parallel form."""
    tile = max(TILES[device.type] // batch, 1)
    if spec is None:
        return ForcedAttention(None, None, None, tile)
    if spec.kind.ranks_by is None:
        raise ValueError(f"{spec.name}: has no form for all steps at once (`ranks_by`); it must decode step by step")
    every = spec.config.rectify_every if spec.rectifies else None
    return ForcedAttention(spec.config, selector_of(spec.kind.ranks_by, spec.config), every, tile)


def _pass(decoder: Decoder, tokens: Tensor, prompt: int, attend: Callable[[int, ChunkTensors], Tensor]) -> Tensor:
    """Hidden states `[T, B, hidden]` of tokens `[B, T]` at positions prompt .. prompt + T - 1."""
    batch, steps = tokens.shape
    cells = empty_chunk(decoder, batch, steps)

    def layer(i: int, _: Cells) -> Tensor:
        return attend(i, cells)

    positions = torch.arange(prompt, prompt + steps, device=decoder.device).repeat(batch)
    x = decoder.hidden(tokens.reshape(-1), positions, cells, layer)
    return x.view(batch, steps, -1).transpose(0, 1)


def _written(cells: ChunkTensors) -> Tensor:
    """Keys and values of all tokens, `[2, B, Hkv, T, D]`."""
    return torch.stack((cells.k, cells.v)).transpose(2, 3)


def round_as(cache: KVCache, cells: ChunkTensors) -> None:
    """Make the cells' keys and values what a cache gives back of them: in e4m3 rounded, by the scales that it has."""
    if cache.scales is None:
        return
    for new, scales in zip((cells.k, cells.v), cache.scales.t(), strict=True):
        by_head = new.transpose(1, 2)  # [B, Hkv, T, D]
        by_head.copy_(decoded(encoded(by_head, scales), scales, new.dtype))


def _attend(
    attention: ForcedAttention, state: State, i: int, prompt: int, cells: ChunkTensors, exact: Tensor | None = None
) -> Tensor:
    """Fill the cells' output with attention of layer i to the cache's prompt and the cells' own tokens.

    The cells' keys and values become what the cache would hold of them (`round_as`).

    Args:
        exact: `[2, B, Hkv, T, D]`, what rectification restores.

    Returns:
        The share of the exact attention mass that lies in the blocks read, float32 `[B, T, Hq]`.
    """
    cache, batch = state.caches[i], len(cells.q)
    round_as(cache, cells)
    keys, values = (
        torch.cat((old, new), 2).flatten(0, 1)
        for old, new in zip(held(cache, slice(prompt)), _written(cells), strict=True)
    )
    queries = cells.q.transpose(0, 1).flatten(1, 2)  # [T, B Hq, D]
    exact_keys, exact_values = (None, None) if exact is None else exact.flatten(1, 2)
    out, share = attention(Sequences(queries, keys, values, exact_keys, exact_values, batch))
    cells.out.copy_(out.unflatten(1, (batch, -1)).transpose(0, 1))
    return share.unflatten(1, (batch, -1)).transpose(0, 1)


def dense_parallel(
    decoder: Decoder, state: State, prompt: int, tokens: Tensor, on_step: Report = lambda _: None
) -> Reference:
    """What dense decoding says and leaves, as `forced.record_dense` has it, from one pass.

    Args:
        state: its caches hold the prompt; they are only read.
        tokens: int64 `[B, T + 1]`; the last one is what follows, and is not fed.
    """
    dense = attention_of(None, decoder.device, len(tokens))
    kv = list[Tensor]()

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"dense, layer {i + 1} of {decoder.config.layers}")
        _attend(dense, state, i, prompt, cells)
        kv.append(_written(cells))
        return cells.out

    x = _pass(decoder, tokens[:, :-1], prompt, attend)
    logits = [decoder.logits(part.flatten(0, 1)).view(*part.shape[:2], -1) for part in x.split(LOGIT_ROWS)]
    return Reference(tokens, torch.cat(logits), torch.stack(kv))


def run_parallel(
    decoder: Decoder, state: State, spec: MethodSpec, prompt: int, reference: Reference,
    on_step: Report = lambda _: None, restored: Tensor | None = None,
) -> Forced:  # fmt: skip
    """Feed the reference's tokens to a method that stands after the same prompt; `forced.run_forced` at once.

    Args:
        state: its caches hold the prompt; they are only read.
        restored: keys and values that rectification restores, as `Reference.kv`: those of dense decoding on caches such
            as the state's. None: the reference's.

    Raises:
        ValueError: the method has no parallel form.
    """
    batch = len(reference.tokens)
    sparse, dense = (attention_of(which, decoder.device, batch) for which in (spec, None))
    errors, recall = list[Tensor](), list[Tensor]()  # of each layer: [T, B]; [Hq]

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"{spec.label}, layer {i + 1} of {decoder.config.layers}")
        attention = dense if i < (spec.dense_layers or 0) else sparse
        exact = (reference.kv if restored is None else restored)[i] if sparse.every else None
        recall.append(_attend(attention, state, i, prompt, cells, exact).mean((0, 1)))
        errors.append(kv_errors(cells, reference.kv[i], decoder.exchange))
        return cells.out

    x = _pass(decoder, reference.tokens[:, :-1], prompt, attend)
    by_layer, compared = torch.stack(errors), []
    for first in range(0, reference.steps, LOGIT_ROWS):
        span = slice(first, min(first + LOGIT_ROWS, reference.steps))
        logits = decoder.logits(x[span].flatten(0, 1)).unflatten(0, (-1, batch))
        compared.append(reference.compare(span, logits, by_layer[:, span]))
    return Forced.of(torch.cat(compared, 1), by_layer, recall=torch.stack(recall), tokens_read=sparse.tokens_read)


def kv_errors(cells: ChunkTensors, exact: Tensor, exchange: Exchange | None = None) -> Tensor:
    """Relative error of every token's key and value, `[T, B]`; `exact` `[2, B, Hkv, T, D]`."""
    return errors_of(_written(cells), exact, exchange)


def errors_of(kept: Tensor, exact: Tensor, exchange: Exchange | None = None) -> Tensor:
    """Relative error of every token's key and value, `[..., T, B]`, of `[..., 2, B, Hkv, T, D]`."""
    error = relative_error(kept.transpose(-3, -2), exact.transpose(-3, -2), exchange)  # [..., 2, B, T]
    return error.mean(-3).transpose(-2, -1)


def compare_dense(reference: Reference, other: Reference, exchange: Exchange | None = None) -> Forced:
    """How dense decoding on other caches fared on the reference's tokens."""
    by_layer = errors_of(other.kv, reference.kv, exchange)
    spans = [slice(i, min(i + LOGIT_ROWS, reference.steps)) for i in range(0, reference.steps, LOGIT_ROWS)]
    compared = [reference.compare(span, other.logits[span], by_layer[:, span]) for span in spans]
    return Forced.of(torch.cat(compared, 1), by_layer)
