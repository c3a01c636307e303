"""The gate of the decode suite: attention inside the model against fp64, eagerly and replayed; linear layers."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ...kernels import ChunkTensors, KVCache, Layer, StepTensors
from ...kernels.dense import dense_reference
from ...kernels.linear import linear, linear_reference
from ...kernels.sparse_decode import sparse_reference
from ...kernels.workspace import BlockSparseLayer
from ..checks import Check, CheckFailed, check_selection, compare
from ..model.decoder import Decoder
from .engine import Engine

MODEL_TOLERANCE = {torch.bfloat16: 7e-2, torch.float16: 1e-2, torch.float32: 1e-4}
"""Relative distance (2-norm) of two right runs of a model: some 12 roundings a layer that add up as random errors do,
2^-9 sqrt(12 x 28) = 3.6 % in bf16, doubled. What a run that skipped something is off by is near 1."""
LINEAR_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def check_attention(engine: Engine, layers: Collection[int]) -> Check:
    """Run one step; compare the attention of these layers with fp64 as soon as each has run, their selection too.

    (Later would be too late where layers share a cache: the next one overwrites the newest token.)

    Raises:
        CheckFailed: an output is outside its budget, or a list does not hold the best blocks of its scores.
    """
    check = Check(0.0, 0.0)

    def observe(i: int, layer: Layer, cells: StepTensors) -> None:
        nonlocal check
        if i in layers:
            check = check.worst(check_layer(f"layer {i}", layer, cells))

    engine.observe = observe
    try:
        engine.step()
    finally:
        engine.observe = None
    return check


def check_layer(name: str, layer: Layer, cells: StepTensors) -> Check:
    """The attention a layer has just done, in the first and the last sequence, against fp64. Raises CheckFailed."""
    out, selection = layer.output(cells), layer.selection()
    keys, values = layer.cache.gather()
    lengths = layer.cache.lengths.tolist()
    check = Check(0.0, 0.0)
    for b in sorted({0, len(lengths) - 1}):
        what = f"attention of {name}, sequence {b}"
        if selection is None:
            exact = dense_reference(cells.q[b][None], keys[b], values[b], lengths[b])
            check = check.worst(compare(what, out[b][None], exact, out.dtype))
            continue
        exact = sparse_reference(
            cells.q[b], keys[b], values[b], lengths[b], selection.lists[b], block_size=selection.block_size
        )
        check = check.worst(compare(f"{what} over its blocks", out[b], exact, out.dtype))
    if isinstance(layer, BlockSparseLayer) and layer.scores_blocks:
        check_selection(layer, cells.q)
    return check


def relative_distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def check_replay(engine: Engine, replay: Callable[[], object]) -> Check:
    """Replay a captured step into a poisoned output: its last layer's attention against fp64. Raises CheckFailed."""
    last = len(engine.layers) - 1
    engine.cells.out.fill_(float("nan"))
    replay()
    return check_layer(f"layer {last}, replayed", engine.layers[last], engine.cells)


def check_rectified(engine: Engine, replay: Callable[[], object] | None) -> None:
    """Rectify eagerly with one layer's attention compared with fp64, then replay: K and V must come out the same.

    The state must stand at the end of a period.

    Raises:
        CheckFailed: the attention is outside its budget, or the graph writes other keys and values.
    """
    every = engine.rectify_every
    assert every is not None
    last = len(engine.layers) - 1

    def observe(i: int, layer: Layer, chunk: ChunkTensors) -> None:
        if i != max(last - 1, 0):
            return
        keys, values = layer.cache.gather()
        out = layer.rectified(chunk)
        for b, length in enumerate(layer.cache.lengths.tolist()):
            if b not in (0, len(out) - 1):
                continue
            for t in sorted({0, every // 2, every - 1}):
                exact = dense_reference(chunk.q[b, t][None], keys[b], values[b], length - every + t + 1)
                compare(f"rectified token {t} of layer {i}, sequence {b}", out[b, t][None], exact, out.dtype)

    engine.observe_chunk = observe
    try:
        engine.rectify()
    finally:
        engine.observe_chunk = None
    if replay is None:
        return
    cache = engine.layers[last].cache
    spots = [_newest(cache, b, length, every) for b, length in enumerate(cache.lengths.tolist())]

    def written() -> list[Tensor]:
        return [data[spot].clone() for data in (cache.k, cache.v) for spot in spots]

    eager = written()
    for data in (cache.k, cache.v):
        for spot in spots:
            data[spot] = 0.0
    replay()
    for mine, theirs in zip(written(), eager, strict=True):
        distance = relative_distance(mine, theirs)
        if not distance <= MODEL_TOLERANCE[mine.dtype]:
            raise CheckFailed(f"the graph's rectification writes keys or values that are off by {distance:.1e}")


def _newest(cache: KVCache, sequence: int, length: int, tokens: int) -> tuple[int | Tensor, slice, Tensor]:
    """Where the last `tokens` of a sequence's `length` tokens lie in `cache.k` and `cache.v`, contiguous or paged."""
    position = torch.arange(length - tokens, length, device=cache.device)
    if cache.block_table is None:
        return sequence, slice(None), position
    pages = cache.block_table[sequence].long()
    return pages[position // cache.page_size], slice(None), position % cache.page_size


def check_linears(decoder: Decoder, rows: Collection[int], seed: int = 0) -> None:
    """The first layer's linear layers and the head against plain torch, on random rows, residuals included.

    Raises:
        CheckFailed: one is further off than rounding explains.
    """
    first = decoder.layers[0]
    generator = torch.Generator(decoder.device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=decoder.dtype, device=decoder.device, generator=generator)

    for count in rows:
        for weight, options in (
            (first.qkv, {"norm": first.attention_norm}),
            (first.o, {"residual": draw(count, first.o.shape[0])}),
            (first.gate_up, {"norm": first.ffn_norm, "swiglu": True}),
            (first.down, {"residual": draw(count, first.down.shape[0])}),
            (decoder.head, {"norm": decoder.norm}),
        ):
            x = draw(count, weight.shape[1])
            distance = relative_distance(
                linear(x, weight, **options),  # type: ignore[arg-type]
                linear_reference(x, weight, **options),  # type: ignore[arg-type]
            )
            if not distance <= LINEAR_TOLERANCE[decoder.dtype]:
                raise CheckFailed(f"linear layer {weight.shape}, {count} rows: off by {distance:.1e}")
