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
from ..cases import MethodSpec
from ..decode.cases import rectifies
from ..decode.engine import State
from ..model.decoder import Cells, Decoder
from .forced import Forced, Reference
from .forced_attention import ForcedAttention, Sequence
from .metrics import StepMetrics, compare_logits, relative_error

SELECTORS = {
    "resa": "summary", "resa-torch": "summary", "sparse": "summary", "quest": "summary", "oracle": "mass",
    "sink-window": "window",
}  # fmt: skip
"""What ranks the blocks of the methods that can be evaluated in parallel; others decode step by step."""

LOGIT_ROWS = 32  # steps whose logits are compared at a time
Report = Callable[[str], None]


TILES = {"cpu": 32, "cuda": 256}
"""Steps whose attention is computed at a time: what a CPU's caches hold; enough work for a GPU's launches to be few."""


def attention_of(spec: MethodSpec, device: torch.device) -> ForcedAttention:
    """Raises KeyError for a method that has no parallel form."""
    every = spec.config.rectify_every if rectifies(spec) else None
    return ForcedAttention(spec.config, SELECTORS[spec.name], every, TILES[device.type])


def dense_attention(device: torch.device) -> ForcedAttention:
    return ForcedAttention(None, None, None, TILES[device.type])


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


def _with_prompt(state: State, i: int, b: int, prompt: int, cells: ChunkTensors) -> tuple[Tensor, Tensor]:
    """Keys and values `[Hkv, P + T, D]`: the cache's of the prompt, then the cells'."""
    cache = state.caches[i]
    return tuple(  # type: ignore[return-value]
        torch.cat((old[b, :, :prompt], new[b].transpose(0, 1)), 1)
        for old, new in ((cache.k, cells.k), (cache.v, cells.v))
    )


def dense_parallel(
    decoder: Decoder, state: State, prompt: int, tokens: Tensor, on_step: Report = lambda _: None
) -> Reference:
    """What dense decoding says and leaves, as `forced.record_dense` has it, from one pass.

    Args:
        state: its caches hold the prompt; they are only read.
        tokens: int64 `[B, T + 1]`; the last one is what follows, and is not fed.
    """
    dense = dense_attention(decoder.device)
    keys, values = [], []
    layers = decoder.config.layers

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"dense, layer {i + 1} of {layers}")
        for b in range(len(tokens)):
            cells.out[b] = dense(Sequence(cells.q[b], *_with_prompt(state, i, b, prompt, cells)))[0]
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
    sparse, dense = attention_of(spec, decoder.device), dense_attention(decoder.device)
    tokens, layers = reference.tokens, decoder.config.layers
    batch, steps = tokens.shape[0], reference.steps
    errors = torch.empty(layers, steps, batch)
    recall = torch.empty(layers, decoder.config.q_heads)

    def attend(i: int, cells: ChunkTensors) -> Tensor:
        on_step(f"{spec.label}, layer {i + 1} of {layers}")
        attention = dense if i < (spec.dense_layers or 0) else sparse
        exact = reference.keys[i], reference.values[i]
        found = []
        for b in range(batch):
            layer = Sequence(
                cells.q[b], *_with_prompt(state, i, b, prompt, cells), *(x[b] for x in exact if sparse.every)
            )
            cells.out[b], share = attention(layer)
            found.append(share.mean(0))
        recall[i] = torch.stack(found).mean(0)
        errors[i] = _errors(cells, exact)
        return cells.out

    x = _pass(decoder, tokens[:, :-1], prompt, attend).transpose(0, 1)  # [T, B, hidden]
    result: list[StepMetrics] = []
    for first in range(0, steps, LOGIT_ROWS):
        part = slice(first, min(first + LOGIT_ROWS, steps))
        following = tokens[:, part.start + 1 : part.stop + 1].t()  # [R, B]
        logits = decoder.logits(x[part].flatten(0, 1))
        compared = compare_logits(reference.logits[part].flatten(0, 1), logits, following.flatten())
        per_step = zip(*(y.view(-1, batch).cpu() for y in compared), errors[:, part].mean(0), strict=True)
        result += [StepMetrics(*one) for one in per_step]
    return Forced(result, errors.mean((1, 2)), recall)


def _errors(cells: ChunkTensors, exact: tuple[Tensor, Tensor]) -> Tensor:
    """Relative error of every token's key and value, `[T, B]` on the CPU."""
    mine = (x.transpose(0, 1).flatten(0, 1) for x in (cells.k, cells.v))  # [T B, Hkv, D]
    theirs = (x.permute(2, 0, 1, 3).flatten(0, 1) for x in exact)
    both = [relative_error(a, b) for a, b in zip(mine, theirs, strict=True)]
    return ((both[0] + both[1]) / 2).view(cells.k.shape[1], -1).cpu()
