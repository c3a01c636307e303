"""The gate of the decode suite: attention inside the model against fp64, eagerly and replayed; linear layers."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ...baselines.retro import RepairingLayer
from ...kernels import ChunkTensors, KVCache, Layer, StepTensors, WindowTensors
from ...kernels.attention.window import Ring
from ...kernels.attention.window_decode import window_reference
from ...kernels.cache import as_indexed
from ...kernels.linear.chosen import ChosenWeight
from ...kernels.linear.dispatch import linear, linear_reference
from ..model.decoder import Decoder
from .engine import Engine
from .gate import Check, CheckFailed, check_attended, check_rectified_tokens, compare, ends
from .sound import check_logits

MODEL_TOLERANCE = {torch.bfloat16: 7e-2, torch.float16: 1e-2, torch.float32: 1e-4}
"""Relative distance (2-norm) of two right runs of a model: some 12 roundings a layer that add up as random errors do,
2^-9 sqrt(12 x 28) = 3.6 % in bf16, doubled. What a run that skipped something is off by is near 1."""
ROUNDED_POINTS = 2
"""Times the tolerance below where another product holds the weight: humming rounds zero points to the activations'
type, 0.6 % of a product in bf16, and SwiGLU multiplies two. What multiplied something else is off by 1."""
LINEAR_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def check_attention(engine: Engine, layers: Collection[int]) -> Check:
    """Run one step; compare the attention of these layers with fp64 as soon as each has run, their selection too.

    In the end, look at the logits.

    (Later would be too late where layers share a cache: the next one overwrites the newest token.)

    With a window of w tokens, w steps: of the last, the older tokens' repaired outputs are compared, too.

    Raises:
        CheckFailed: an output is outside its budget, or a list does not hold the best blocks of its scores.
    """
    check = Check()
    had: dict[int, Ring] = {}  # what each layer had before, by its identity
    full = False

    def observe(i: int, layer: Layer, cells: StepTensors) -> None:
        nonlocal check
        if i in layers and full:
            check = check.worst(check_attended(layer, cells, f" of layer {i}"))
            if engine.window_cells is not None:
                check = check.worst(check_repairs(f"layer {i}", layer, engine.window_cells, had[id(layer)]))
        if engine.window_cells is not None:
            had[id(layer)] = ring_of(layer).copy()

    engine.observe = observe
    try:
        for step in range(engine.window):
            full = step == engine.window - 1
            engine.step()
    finally:
        engine.observe = None
    check_logits(engine.logits)
    return check


def ring_of(layer: Layer) -> Ring:
    """What a layer with a window remembers of its tokens."""
    assert isinstance(layer, RepairingLayer)
    return layer.ring


def check_repairs(name: str, layer: Layer, cells: WindowTensors, had: Ring) -> Check:
    """The older rows of the step a layer has just done, in the first and the last sequence, against fp64.

    Each is to equal what the layer had of it before, merged with attention to the listed blocks that were new to it.
    (Where K, V and queries change from step to step no union of sets says what it is to be.)

    Raises:
        CheckFailed: a row is outside its budget.
    """
    ring, n = ring_of(layer), cells.tokens
    keys, values = layer.cache.gather()
    now = int(had.clock)
    lengths, firsts = layer.cache.lengths.tolist(), cells.first.tolist()
    selection = layer.selection()
    assert selection is not None
    check = Check()
    for b in ends(len(lengths)):
        for age in range(1, n):
            position = lengths[b] - 1 - age
            if position < firsts[b]:
                continue
            row, slot = n - 1 - age, position % ring.slots
            new = ring.latest()[b] & (had.loaded[b] < now - age)
            exact = window_reference(
                cells.q[b, row] if had.query is None else had.query[b, slot],
                keys[b], values[b], position, new,
                block_size=selection.block_size, had=(had.out[b, slot], had.lse[b, slot, :, 0]),
            )  # fmt: skip
            what = f"repaired attention of {name}, sequence {b}, {age} before the newest token"
            check = check.worst(compare(what, cells.out[b, row], exact, cells.out.dtype))
    return check


def relative_distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b|| over all elements, in fp64."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def check_replay(engine: Engine, replay: Callable[[], object]) -> Check:
    """Replay a captured step into a poisoned output: its last layer's attention against fp64. Raises CheckFailed.

    With a window of w tokens, w replays: of the last, the older tokens' outputs are compared, too, unless the layer is
    shared and so had another layer's before.
    """
    last = len(engine.layers) - 1
    layer, name = engine.layers[last], f"layer {last}, replayed"
    for _ in range(engine.window - 1):
        replay()
    engine.cells.out.fill_(float("nan"))
    had = ring_of(layer).copy() if engine.window > 1 else None
    replay()
    check_logits(engine.logits)
    check = check_attended(layer, engine.cells, f" of {name}")
    if had is not None and engine.window_cells is not None and sum(other is layer for other in engine.layers) == 1:
        check = check.worst(check_repairs(name, layer, engine.window_cells, had))
    return check


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
        if i == max(last - 1, 0):
            check_rectified_tokens(layer, chunk, f" of layer {i}")

    engine.observe_chunk = observe
    try:
        engine.rectify()
    finally:
        engine.observe_chunk = None
    if replay is None:
        return
    cache = engine.layers[last].cache
    spots = [_newest(cache, b, length, every) for b, length in enumerate(cache.lengths.tolist())]

    both = [as_indexed(data) for data in (cache.k, cache.v)]

    def written() -> list[Tensor]:
        return [data[spot].clone().view(cache.k.dtype).to(cache.dtype) for data in both for spot in spots]

    eager = written()
    for data in both:
        for spot in spots:
            data[spot] = 0
    replay()
    for replayed, expected in zip(written(), eager, strict=True):
        distance = relative_distance(replayed, expected)
        if not distance <= MODEL_TOLERANCE[replayed.dtype]:
            raise CheckFailed(f"the graph's rectification writes keys or values that are off by {distance:.1e}")


def _newest(cache: KVCache, sequence: int, length: int, tokens: int) -> tuple[int | Tensor, slice, Tensor]:
    """Where the last `tokens` of a sequence's `length` tokens lie in `cache.k` and `cache.v`, contiguous or paged."""
    position = torch.arange(length - tokens, length, device=cache.device)
    if cache.block_table is None:
        return sequence, slice(None), position
    pages = cache.block_table[sequence].long()
    return pages[position // cache.page_size], slice(None), position % cache.page_size


def check_linears(decoder: Decoder, rows: Collection[int]) -> None:
    """The first layer's linear layers and the head against plain torch, on random rows, residuals included.

    Raises:
        CheckFailed: one is further off than rounding explains.
    """
    if not decoder.own_linears:
        return
    first = decoder.layers[0]
    generator = torch.Generator(decoder.device).manual_seed(0)

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
            elsewhere = isinstance(weight, ChosenWeight) and weight.multiply(count) is not None
            if not distance <= LINEAR_TOLERANCE[decoder.dtype] * (ROUNDED_POINTS if elsewhere else 1):
                raise CheckFailed(f"linear layer {weight.shape}, {count} rows: off by {distance:.1e}")
