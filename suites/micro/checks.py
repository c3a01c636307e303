"""The micro suite's gate: a method's step, window and rectification against fp64, before any time is taken."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import ChunkTensors, Layer, Selection, WindowTensors
from ...kernels.attention.dense import dense_reference
from ...kernels.attention.window_decode import window_reference
from ...kernels.config import ceil_div
from ...kernels.exact import Exact
from ..core.failure import CheckFailed
from ..engine.gate import Check, check_attended, check_rectified_tokens, check_selection, compare
from .inputs import Inputs


def check_step(layer: Layer, inputs: Inputs, dense_exact: list[Exact]) -> Check:
    """Run the step once into a poisoned output, then compare; for sparse methods the selection too.

    Args:
        dense_exact: exact dense attention of each sequence, `[1, Hq, D]`.
    """
    inputs.step.out.fill_(float("nan"))
    for stage in layer.stages(inputs.step):
        stage.run()
    return check_attended(layer, inputs.step, sequences=range(layer.cache.batch), dense=dense_exact)


def check_window(layer: Layer, window: WindowTensors) -> Check:
    """Decode the window's tokens one by one, K, V and queries held still; compare every row of the last step.

    A row is to equal attention over the union of the lists of all steps since its own. Leaves the cache as it was.

    Raises:
        CheckFailed: a row is outside its budget, a token before the window was run, or the lists are not the best.
    """
    cache, n = layer.cache, window.tokens
    before = cache.lengths.clone()
    keys, values = cache.gather()
    seen: list[Tensor] = []  # of each row, bool [B, Hkv, M]
    q, k, v = (torch.zeros_like(x) for x in (window.q, window.k, window.v))
    step = WindowTensors(q, k, v, torch.empty_like(q), window.first)
    stages, selection = layer.window_stages(step), layer.selection()
    assert selection is not None, "methods with windows select"
    try:
        for grown in range(1, n + 1):
            cache.lengths.copy_(before - n + grown)
            for cell, whole in ((step.q, window.q), (step.k, window.k), (step.v, window.v)):
                cell[:, n - grown :] = whole[:, :grown]
            step.out.fill_(float("nan"))
            for stage in stages:
                stage.run()
            if bool((step.out[:, : n - grown] != 0).any()):
                raise CheckFailed(f"window: tokens before the {grown} decoded ones have outputs")
            listed = _listed(layer, selection)
            seen = [*(row | listed for row in seen), listed]
    finally:
        cache.lengths.copy_(before)
    check = Check()
    for b, length in enumerate(before.tolist()):
        for i in range(n):
            exact = window_reference(
                window.q[b, i], keys[b], values[b], length - n + i, seen[i][b], block_size=selection.block_size
            )
            check = check.worst(compare(f"token {i} of {n} in the window", step.out[b, i], exact, step.out.dtype))
    check_selection(layer, window.q[:, -1])
    return check


def _listed(layer: Layer, selection: Selection) -> Tensor:
    """The blocks on the lists, bool `[B, Hkv, M]`."""
    lists, count = selection.lists, ceil_div(layer.cache.capacity, selection.block_size)
    hit = torch.zeros(*lists.shape[:2], count + 1, dtype=torch.bool, device=lists.device)
    hit.scatter_(2, torch.where(lists < 0, count, lists).long(), True)
    return hit[:, :, :count].expand(-1, layer.cache.kv_heads, -1)


def dense_exact(inputs: Inputs) -> list[Exact]:
    """Exact dense attention of the step, per sequence."""
    keys, values = inputs.cache.gather()
    return [
        dense_reference(inputs.step.q[b][None], keys[b], values[b], length)
        for b, length in enumerate(inputs.cache.lengths.tolist())
    ]


def check_rectify(layer: Layer, chunk: ChunkTensors) -> Check:
    """Run rectification once into a poisoned output; compare its first, middle and last token."""
    chunk.out.fill_(float("nan"))
    for stage in layer.rectify_stages(chunk):
        stage.run()
    check = check_rectified_tokens(layer, chunk, sequences=range(layer.cache.batch))
    if not bool(layer.rectified(chunk).isfinite().all()):
        raise CheckFailed("rectification: some output elements were not written")
    return check
