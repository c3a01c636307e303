"""The gate before any time is taken: a method's output against fp64, its selection against its own scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Layer, Selection, SparseConfig, WindowTensors
from ...kernels.attention.dense import dense_reference
from ...kernels.attention.scores import scores_reference
from ...kernels.attention.selection import selection_reference
from ...kernels.attention.sparse_decode import sparse_reference
from ...kernels.attention.summaries import rounded, summaries_reference
from ...kernels.attention.window_decode import window_reference
from ...kernels.config import ceil_div
from ...kernels.exact import UNIT_ROUNDOFF, Exact
from ...kernels.workspace import BlockSparseLayer
from ..micro.inputs import Inputs

SAMPLED_BLOCKS = 16  # of a sequence, whose summaries are compared with their keys


class CheckFailed(Exception):
    """A method's result is outside its error bound."""


@dataclass(frozen=True, slots=True)
class Check:
    """How far a result lies from the exact one: norm-wise, and as the used share of its element-wise budget."""

    max_rel_error: float
    budget_used: float

    def worst(self, other: Check) -> Check:
        return Check(max(self.max_rel_error, other.max_rel_error), max(self.budget_used, other.budget_used))


def compare(what: str, out: Tensor, exact: Exact, dtype: torch.dtype) -> Check:
    """Raises CheckFailed naming `what` if an element was not written or strays beyond the budget."""
    if not bool(out.isfinite().all()):
        raise CheckFailed(f"{what}: {int((~out.isfinite()).sum())} of {out.numel()} elements unwritten or not finite")
    error = (out.double() - exact.out).abs()
    budget = exact.budget(dtype)
    used = float((error / budget.clamp(min=torch.finfo(torch.float64).tiny)).max())
    norms = exact.out.norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    relative = float((error.norm(dim=-1) / norms).max())
    if not used <= 1:
        raise CheckFailed(f"{what}: off by {used:.2f} times its error budget (relative error {relative:.1e})")
    return Check(relative, used)


def check_step(layer: Layer, inputs: Inputs, dense_exact: list[Exact]) -> Check:
    """Run the step once into a poisoned output, then compare; for sparse methods the selection too.

    Args:
        dense_exact: exact dense attention of each sequence, `[1, Hq, D]`.
    """
    inputs.step.out.fill_(float("nan"))
    for stage in layer.stages(inputs.step):
        stage.run()
    out = layer.output(inputs.step).clone()
    selection = layer.selection()
    keys, values = layer.cache.gather()
    check = Check(0.0, 0.0)
    for b, length in enumerate(layer.cache.lengths.tolist()):
        if selection is None:
            exact = dense_exact[b]
            check = check.worst(compare("attention", out[b][None], exact, out.dtype))
            continue
        lists = selection.lists[b]
        exact = sparse_reference(inputs.step.q[b], keys[b], values[b], length, lists, block_size=selection.block_size)
        check = check.worst(compare("attention over the selected blocks", out[b], exact, out.dtype))
    if isinstance(layer, BlockSparseLayer) and layer.scores_blocks:
        check_selection(layer, inputs.step.q)
    return check


def check_selection(layer: BlockSparseLayer, q: Tensor) -> None:
    """Summaries true to the keys, scores within their fp32 budget of fp64, lists exactly the best of these scores."""
    table = layer.summaries.logical(layer.cache) if layer.summaries is not None else None
    for b, length in enumerate(layer.cache.lengths.tolist()):
        blocks, n = layer.config.blocks(length), layer.config.selected(length)
        computed = layer.work.scores[b, :, :blocks]
        if table is not None:
            _check_summaries(layer, table[b], b, length)
            _check_scores(computed, q[b], table[b, :, :blocks], layer.config, b)
        wanted = selection_reference(computed, n)
        if not torch.equal(layer.work.lists[b, :, :n], wanted) or bool((layer.work.lists[b, :, n:] != -1).any()):
            raise CheckFailed(f"selection: lists of sequence {b} are not the best {n} blocks of their scores")


def _check_summaries(layer: BlockSparseLayer, table: Tensor, sequence: int, length: int) -> None:
    """Some blocks, the newest among them, against their keys: min and max exactly, mean and std within rounding.

    A mean in fp8 may be rounded to the other neighbour of the exact one.
    """
    keys = layer.cache.gather()[0][sequence]
    size, kind, blocks = layer.config.block_size, layer.config.summary_kind, layer.config.blocks(length)
    unit = 2.0**-4 if layer.config.summary_dtype == "fp8" else UNIT_ROUNDOFF[keys.dtype]
    slack = 0.0 if kind == "minmax" else 2 * unit + 2 * size * 2.0**-24  # fp32 sums of `size`
    for i in sorted({*range(0, blocks, max(blocks // SAMPLED_BLOCKS, 1)), blocks - 1} - {-1}):
        block = keys[:, i * size : min((i + 1) * size, length)]
        wanted = rounded(summaries_reference(block, block.shape[1], size, kind)[:, 0], table.dtype).double()
        if not bool(((table[:, i].double() - wanted).abs() <= slack * block.double().abs().amax()).all()):
            raise CheckFailed(f"summaries: block {i} of sequence {sequence} does not summarise its keys")


def _check_scores(computed: Tensor, q: Tensor, table: Tensor, config: SparseConfig, sequence: int) -> None:
    exact, budget = scores_reference(q, table, config)
    finite = exact.isfinite()
    if not torch.equal(computed.isposinf(), ~finite):
        raise CheckFailed(f"scores: the local blocks of sequence {sequence} are not the infinite ones")
    error = torch.where(finite, (computed.double() - exact).abs() - budget, -1.0).amax() if computed.numel() else 0.0
    if not float(error) <= 0:
        raise CheckFailed(f"scores: beyond their fp32 error budget by {float(error):.2e} in sequence {sequence}")


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
            for mine, whole in ((step.q, window.q), (step.k, window.k), (step.v, window.v)):
                mine[:, n - grown :] = whole[:, :grown]
            step.out.fill_(float("nan"))
            for stage in stages:
                stage.run()
            if bool((step.out[:, : n - grown] != 0).any()):
                raise CheckFailed(f"window: tokens before the {grown} decoded ones have outputs")
            listed = _listed(layer, selection)
            seen = [*(one | listed for one in seen), listed]
    finally:
        cache.lengths.copy_(before)
    check = Check(0.0, 0.0)
    for b, length in enumerate(before.tolist()):
        for i in range(n):
            exact = window_reference(
                window.q[b, i], keys[b], values[b], length - n + i, seen[i][b], block_size=selection.block_size
            )
            check = check.worst(compare(f"token {i} of {n} in the window", step.out[b, i], exact, step.out.dtype))
    if isinstance(layer, BlockSparseLayer) and layer.scores_blocks:
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


def check_rectify(layer: Layer, inputs: Inputs) -> Check:
    """Run rectification once into a poisoned output; compare its first, middle and last token."""
    chunk = inputs.chunk
    chunk.out.fill_(float("nan"))
    for stage in layer.rectify_stages(chunk):
        stage.run()
    out = layer.rectified(chunk).clone()
    tokens = chunk.q.shape[1]
    keys, values = layer.cache.gather()
    check = Check(0.0, 0.0)
    for b, length in enumerate(layer.cache.lengths.tolist()):
        for t in sorted({0, tokens // 2, tokens - 1}):
            exact = dense_reference(chunk.q[b, t][None], keys[b], values[b], length - tokens + t + 1)
            check = check.worst(compare(f"rectified token {t}", out[b, t][None], exact, out.dtype))
    if not bool(out.isfinite().all()):
        raise CheckFailed("rectification: some output elements were not written")
    return check
