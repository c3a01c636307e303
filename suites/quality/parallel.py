"""Teacher forcing without waiting: all fed tokens go through the model together, layer by layer.

What a token is fed is known beforehand, so its keys and values depend on earlier layers alone, and a layer's attention
can be computed for all tokens as soon as their hidden states are there. That is one pass of T rows a method in place
of T passes of one, and equals decoding step by step up to the order of sums (tests/test_quality_parallel.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels import ChunkTensors
from ..decode.cases import rectifies
from ..engine.engine import State
from ..micro.cases import MethodSpec
from ..model.decoder import Cells, Decoder
from .forced import Forced, Reference
from .forced_attention import ForcedAttention, Sequences
from .metrics import compare_logits, kv_error, step_metrics

SELECTORS = {
    "resa": "summary", "resa-torch": "summary", "sparse": "summary", "quest": "summary", "oracle": "mass",
    "sink-window": "window",
}  # fmt: skip
"""What ranks the blocks of the methods that can be evaluated in parallel; others decode step by step."""

LOGIT_ROWS = 32  # steps whose logits are compared at a time
Report = Callable[[str], None]


TILES = {"cpu": 32, "cuda": 512}
"""Fed tokens whose attention is computed at a time: what a CPU's caches hold; enough to keep a GPU at work."""


def _rows(device: torch.device, batch: int) -> int:
    """Steps of a tile."""
    return max(TILES[device.type] // batch, 1)


def attention_of(spec: MethodSpec, device: torch.device, batch: int) -> ForcedAttention:
    """Raises KeyError for a method that has no parallel form."""
    every = spec.config.rectify_every if rectifies(spec) else None
    return ForcedAttention(spec.config, SELECTORS[spec.name], every, _rows(device, batch))


def dense_attention(device: torch.device, batch: int) -> ForcedAttention:
    return ForcedAttention(None, None, None, _rows(device, batch))


def _pass(
    decoder: Decoder,
    tokens: Tensor,
    prompt: int,
    attend: Callable[[int, ChunkTensors], Tensor],
) -> Tensor:
    """Hidden states `[B, T, hidden]` of tokens `[B, T]` at positions prompt .. prompt + T - 1."""
    config, (batch, steps) = decoder.config, tokens.shape
    options = {"dtype": decoder.dtype, "device": decoder.device}
    q = torch.empty(batch, steps, config.q_heads, config.head_dim, **options)  # type: ignore[call-overload]
    k = torch.empty(batch, steps, config.kv_heads, config.head_dim, **options)  # type: ignore[call-overload]
    cells = ChunkTensors(q, k, torch.empty_like(k), torch.empty_like(q))

    def layer(i: int, _: Cells) -> Tensor:
        return attend(i, cells)

    positions = torch.arange(prompt, prompt + steps, device=decoder.device).repeat(batch)
    return decoder.hidden(tokens.reshape(-1), positions, cells, layer).view(batch, steps, -1)


def _sequences(
    state: State, i: int, prompt: int, cells: ChunkTensors, exact: tuple[Tensor, Tensor] | None = None
) -> Sequences:
    """What layer i attends with: the cells' queries; keys and values of the cache's prompt, then the cells'.

    Args:
        exact: `[B, Hkv, T, D]`, what rectification restores.
    """
    cache = state.caches[i]
    keys, values = (
        torch.cat((old[:, :, :prompt], new.transpose(1, 2)), 2).flatten(0, 1)
        for old, new in ((cache.k, cells.k), (cache.v, cells.v))
    )
    queries = cells.q.transpose(0, 1).flatten(1, 2)  # [T, B Hq, D]
    if exact is None:
        return Sequences(queries, keys, values, count=len(cells.q))
    return Sequences(queries, keys, values, exact[0].flatten(0, 1), exact[1].flatten(0, 1), len(cells.q))


def _by_sequence(x: Tensor, batch: int) -> Tensor:
    """`[B, T, H, ..]` of `[T, B H, ..]`."""
    return x.unflatten(1, (batch, -1)).transpose(0, 1)


def dense_parallel(
    decoder: Decoder, state: State, prompt: int, tokens: Tensor, on_step: Report = lambda _: None
) -> Reference:
    """What dense decoding says and leaves, as `forced.record_dense` has it, from one pass.

    Args:
        state: its caches hold the prompt; they are only read.
        tokens: int64 `[B, T + 1]`; the last one is what follows, and is not fed.
    """
    dense = dense_attention(decoder.device, len(tokens))
    keys, values = [], []
    layers = decoder.config.layers

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"dense, layer {i + 1} of {layers}")
        cells.out.copy_(_by_sequence(dense(_sequences(state, i, prompt, cells))[0], len(tokens)))
        keys.append(cells.k.transpose(1, 2).clone())
        values.append(cells.v.transpose(1, 2).clone())
        return cells.out

    x = _pass(decoder, tokens[:, :-1], prompt, attend).transpose(0, 1)  # [T, B, hidden]
    logits = [decoder.logits(part.flatten(0, 1)).view(*part.shape[:2], -1) for part in x.split(LOGIT_ROWS)]
    return Reference(tokens, torch.cat(logits), tuple(keys), tuple(values))


def run_parallel(
    decoder: Decoder,
    state: State,
    spec: MethodSpec,
    prompt: int,
    reference: Reference,
    on_step: Report = lambda _: None,
) -> Forced:
    """Feed the reference's tokens to a method that stands after the same prompt; `forced.run_forced` at once.

    Args:
        state: its caches hold the prompt; they are only read.

    Raises:
        KeyError: the method has no parallel form (`SELECTORS`).
    """
    tokens, layers = reference.tokens, decoder.config.layers
    batch, steps = tokens.shape[0], reference.steps
    sparse, dense = attention_of(spec, decoder.device, batch), dense_attention(decoder.device, batch)
    errors: list[Tensor] = []  # of each layer, [T, B]
    recall: list[Tensor] = []  # [Hq]

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"{spec.label}, layer {i + 1} of {layers}")
        attention = dense if i < (spec.dense_layers or 0) else sparse
        exact = reference.keys[i], reference.values[i]
        out, share = attention(_sequences(state, i, prompt, cells, exact if sparse.every else None))
        cells.out.copy_(_by_sequence(out, batch))
        recall.append(_by_sequence(share, batch).mean((0, 1)))
        errors.append(_errors(cells, exact))
        return cells.out

    x = _pass(decoder, tokens[:, :-1], prompt, attend).transpose(0, 1)  # [T, B, hidden]
    compared = []
    for first in range(0, steps, LOGIT_ROWS):
        part = slice(first, min(first + LOGIT_ROWS, steps))
        following = tokens[:, part.start + 1 : part.stop + 1].t()  # [R, B]
        logits = decoder.logits(x[part].flatten(0, 1))
        found = compare_logits(reference.logits[part].flatten(0, 1), logits, following.flatten())
        compared.append(torch.stack(found).unflatten(1, (-1, batch)))  # [4, R, B]
    by_layer = torch.stack(errors)
    result = step_metrics(torch.cat(compared, 1), by_layer.mean(0))
    return Forced(result, by_layer.mean((1, 2)).cpu(), torch.stack(recall).cpu())


def _errors(cells: ChunkTensors, exact: tuple[Tensor, Tensor]) -> Tensor:
    """Relative error of every token's key and value, `[T, B]`."""
    keys, values = (x.permute(2, 0, 1, 3) for x in exact)
    return kv_error((cells.k.transpose(0, 1), cells.v.transpose(0, 1)), (keys, values))
