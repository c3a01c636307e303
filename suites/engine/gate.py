"""The gate before any time is taken: an output against fp64, a selection against its own scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import ChunkTensors, Layer, SparseConfig, StepTensors
from ...kernels.attention.dense import dense_reference
from ...kernels.attention.scores import scores_reference
from ...kernels.attention.selection import selection_reference
from ...kernels.attention.sparse_decode import sparse_reference
from ...kernels.attention.summaries import summaries_reference
from ...kernels.e4m3 import rounded
from ...kernels.exact import UNIT_ROUNDOFF, Exact
from ...kernels.selectors.summary import Summary
from ...kernels.workspace import BlockSparseLayer
from ..core.failure import CheckFailed
from ..core.rows import digits

SAMPLED_BLOCKS = 16  # of a sequence, whose summaries are compared with their keys


@dataclass(frozen=True, slots=True)
class Check:
    """How far a result lies from the exact one: norm-wise, and as the used share of its element-wise budget."""

    max_rel_error: float = 0.0
    budget_used: float = 0.0

    def worst(self, other: Check) -> Check:
        """The larger error and the larger share of either check."""
        return Check(max(self.max_rel_error, other.max_rel_error), max(self.budget_used, other.budget_used))

    def columns(self) -> dict[str, float]:
        """What a row says of it."""
        return {
            "max_rel_error": digits(self.max_rel_error, 3), "error_budget_used": digits(self.budget_used, 3),
        }  # fmt: skip


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


def ends(batch: int) -> list[int]:
    """The first and the last sequence: those that are compared where all would take long."""
    return sorted({0, batch - 1})


def check_attended(
    layer: Layer, cells: StepTensors, of: str = "", *, sequences: Iterable[int] | None = None,
    dense: Sequence[Exact] | None = None,
) -> Check:  # fmt: skip
    """The attention that a layer has just done against fp64, and its selection.

    Args:
        of: whose attention it is, for errors: ` of layer 3`.
        sequences: that are compared; the first and the last by default.
        dense: exact dense attention of each sequence, `[1, Hq, D]`, where it is known.

    Raises:
        CheckFailed: an output is outside its budget, or a list does not hold the best blocks of its scores.
    """
    out, selection = layer.output(cells), layer.selection()
    keys, values = layer.cache.gather()
    lengths, check = layer.cache.lengths.tolist(), Check()
    for b in ends(len(lengths)) if sequences is None else sequences:
        what = f"attention{of}, sequence {b}"
        if selection is None:
            q = cells.q[b] if layer.rounds_to is None else rounded(cells.q[b], layer.rounds_to)
            known = dense is not None and layer.rounds_to is None
            exact = dense[b] if dense and known else dense_reference(q[None], keys[b], values[b], lengths[b])
            check = check.worst(compare(what, out[b][None], exact, layer.rounds_to or out.dtype))
            continue
        exact = sparse_reference(
            cells.q[b], keys[b], values[b], lengths[b], selection.lists[b], block_size=selection.block_size
        )
        check = check.worst(compare(f"{what} over its blocks", out[b], exact, out.dtype))
    check_selection(layer, cells.q)
    return check


def check_rectified_tokens(
    layer: Layer, chunk: ChunkTensors, of: str = "", *, sequences: Iterable[int] | None = None
) -> Check:
    """The first, middle and last token of the rectification that a layer has just done; as `check_attended`."""
    out, tokens = layer.rectified(chunk), chunk.q.shape[1]
    keys, values = layer.cache.gather()
    lengths, check = layer.cache.lengths.tolist(), Check()
    for b in ends(len(lengths)) if sequences is None else sequences:
        for t in sorted({0, tokens // 2, tokens - 1}):
            exact = dense_reference(chunk.q[b, t][None], keys[b], values[b], lengths[b] - tokens + t + 1)
            what = f"rectified token {t}{of}, sequence {b}"
            check = check.worst(compare(what, out[b, t][None], exact, out.dtype))
    return check


def check_selection(layer: Layer, q: Tensor) -> None:
    """Summaries true to the keys, scores within their fp32 budget of fp64, lists exactly the best of these scores.

    Nothing is to be checked of a layer that scores no blocks.
    """
    if not (isinstance(layer, BlockSparseLayer) and layer.scores_blocks):
        return
    table = layer.summaries.logical(layer.cache) if layer.summaries is not None else None
    for b, length in enumerate(layer.cache.lengths.tolist()):
        blocks, n = layer.config.blocks(length), layer.config.selected(length)
        computed = layer.work.scores[b, :, :blocks]
        if table is not None:
            _check_summaries(layer, table[b], b, length)
            if isinstance(layer.selector, Summary):
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
