"""The gate of the decode suite: attention inside the model against fp64, and graph replays against eager steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Layer, StepTensors
from ...kernels.dense import dense_reference
from ...kernels.linear import linear, linear_reference
from ...kernels.sparse_decode import sparse_reference
from ..checks import Check, CheckFailed, compare
from ..model.decoder import Decoder
from .engine import Engine

LOGITS_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 6e-3, torch.float32: 1e-4}
"""Relative distance (2-norm) of two runs' logits: rounding to the dtype after each of some hundred operations."""
LINEAR_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one layer's attention was given and gave in a step."""

    layer: int
    q: Tensor  # [B, Hq, D]
    out: Tensor
    lists: Tensor | None


def check_attention(engine: Engine, layers: Sequence[int]) -> Check:
    """Run one step; compare the attention of these layers, in the first and the last sequence, with fp64.

    Raises:
        CheckFailed: an output is outside its budget.
    """
    seen: list[Seen] = []

    def observe(i: int, layer: Layer, cells: StepTensors) -> None:
        if i in layers:
            selection = layer.selection()
            lists = None if selection is None else selection.lists.clone()
            seen.append(Seen(i, cells.q.clone(), layer.output(cells).clone(), lists))

    engine.observe = observe
    try:
        engine.step()
    finally:
        engine.observe = None
    check = Check(0.0, 0.0)
    for one in seen:
        layer = engine.layers[one.layer]
        keys, values = layer.cache.gather()
        lengths = layer.cache.lengths.tolist()
        for b in sorted({0, len(lengths) - 1}):
            what = f"attention of layer {one.layer}, sequence {b}"
            if one.lists is None:
                exact = dense_reference(one.q[b][None], keys[b], values[b], lengths[b])
                check = check.worst(compare(what, one.out[b][None], exact, one.out.dtype))
            else:
                selection = layer.selection()
                assert selection is not None
                exact = sparse_reference(
                    one.q[b], keys[b], values[b], lengths[b], one.lists[b], block_size=selection.block_size
                )
                check = check.worst(compare(f"{what} over its blocks", one.out[b], exact, one.out.dtype))
    return check


def relative_distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def check_replay(replayed: Tensor, eager: Tensor) -> None:
    """Raises CheckFailed unless a replay's logits are those of the eager step."""
    distance = relative_distance(replayed, eager)
    if not distance <= LOGITS_TOLERANCE[eager.dtype]:
        raise CheckFailed(f"logits of the graph differ from the eager step's by {distance:.1e}")


def check_linears(decoder: Decoder, rows: Sequence[int], seed: int = 0) -> None:
    """The first layer's linear layers against plain torch, on random rows.

    Raises:
        CheckFailed: one is further off than rounding explains.
    """
    first = decoder.layers[0]
    generator = torch.Generator(decoder.device).manual_seed(seed)
    for count in rows:
        for weight, options in (
            (first.qkv, {"norm": first.attention_norm}),
            (first.o, {}),
            (first.gate_up, {"norm": first.ffn_norm, "swiglu": True}),
            (first.down, {}),
        ):
            x = torch.randn(count, weight.shape[1], dtype=decoder.dtype, device=decoder.device, generator=generator)
            distance = relative_distance(
                linear(x, weight, **options),  # type: ignore[arg-type]
                linear_reference(x, weight, **options),  # type: ignore[arg-type]
            )
            if not distance <= LINEAR_TOLERANCE[decoder.dtype]:
                raise CheckFailed(f"linear layer {weight.shape}, {count} rows: off by {distance:.1e}")
