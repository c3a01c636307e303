"""The gate before any time is taken: a method's output against fp64, its selection against its own scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Layer
from ..kernels.dense import dense_reference
from ..kernels.exact import Exact
from ..kernels.pipeline import SparseLayer
from ..kernels.scores import scores_reference
from ..kernels.selection import selection_reference
from ..kernels.sparse_decode import sparse_reference
from .inputs import Inputs


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
    if isinstance(layer, SparseLayer) and layer.summaries is not None:
        check_selection(layer, inputs.step.q)
    return check


def check_selection(layer: SparseLayer, q: Tensor) -> None:
    """Scores within their fp32 budget of fp64, and the lists exactly the best of the scores computed."""
    assert layer.summaries is not None
    table = layer.summaries.logical(layer.cache)
    for b, length in enumerate(layer.cache.lengths.tolist()):
        blocks, n = layer.config.blocks(length), layer.config.selected(length)
        computed = layer.work.scores[b, :, :blocks]
        exact, budget = scores_reference(q[b], table[b, :, :blocks], layer.config)
        finite = exact.isfinite()
        if not torch.equal(computed.isposinf(), ~finite):
            raise CheckFailed(f"scores: the local blocks of sequence {b} are not the infinite ones")
        error = torch.where(finite, (computed.double() - exact).abs() - budget, -1.0).amax() if blocks else 0.0
        if not float(error) <= 0:
            raise CheckFailed(f"scores: beyond their fp32 error budget by {float(error):.2e} in sequence {b}")
        wanted = selection_reference(computed, n)
        if not torch.equal(layer.work.lists[b, :, :n], wanted) or bool((layer.work.lists[b, :, n:] != -1).any()):
            raise CheckFailed(f"selection: lists of sequence {b} are not the best {n} blocks of their scores")


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
    tokens = chunk.q.shape[1]
    keys, values = layer.cache.gather()
    check = Check(0.0, 0.0)
    for b, length in enumerate(layer.cache.lengths.tolist()):
        for t in sorted({0, tokens // 2, tokens - 1}):
            exact = dense_reference(chunk.q[b, t][None], keys[b], values[b], length - tokens + t + 1)
            check = check.worst(compare(f"rectified token {t}", chunk.out[b, t][None], exact, chunk.out.dtype))
    if not bool(chunk.out.isfinite().all()):
        raise CheckFailed("rectification: some output elements were not written")
    return check
