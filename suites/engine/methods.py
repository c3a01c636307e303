"""The frame that runs of whole models share: every method in turn, one that fails costs its own rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from ..core.bench import Bench, RowMaker
from ..core.failure import failure, unavailable
from ..core.rows import Row
from ..core.spec import MethodSpec
from .case import ModelCase
from .loader import Loader, release


class MethodRun(Protocol):
    """A case in hand: prepared once for the methods of `specs`, then measured method by method."""

    specs: list[MethodSpec]
    row: RowMaker

    @property
    def case(self) -> ModelCase: ...
    def prepare(self, loader: Loader) -> None:
        """Load the model, and make what all methods share."""

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method, as they come: what fails late leaves what was measured before."""


def run_methods(
    run: MethodRun,
    specs: Sequence[MethodSpec],
    bench: Bench,
    too_large: Callable[[list[MethodSpec]], str | None] = lambda able: None,
    shared: Callable[[], Iterable[Row]] = tuple,
) -> list[Row]:
    """Rows of all methods: skipped or failed ones with their reason, the others as far as they came.

    Args:
        too_large: why the case does not fit the device with the methods that can run, or None.
        shared: rows that belong to no method of `specs`, asked for once all were measured.

    Raises:
        RankLost: of ranks that share a model one failed alone.
    """
    rows: list[Row] = []
    able: list[MethodSpec] = []
    for spec, reason in unavailable(specs, run.case, bench.device):
        if reason:
            rows.append(run.row(spec, status="skipped", reason=reason))
        else:
            able.append(spec)
    run.specs = able
    if not able:
        return rows
    if reason := too_large(able):
        return rows + [run.row(spec, status="skipped", reason=reason, final=True) for spec in able]
    with torch.inference_mode():
        try:
            run.prepare(bench.held(Loader))
        except Exception as error:
            bench.ranks.failed(error)
            return rows + [run.row(spec, **failure(error)) for spec in able]
        for spec in able:
            try:
                rows.extend(run.measure(spec))
                release(bench.device)
            except Exception as error:
                bench.ranks.failed(error)
                rows.append(run.row(spec, **failure(error)))
        rows.extend(shared())
    return rows


def chunk_rows(batch: int, specs: Iterable[MethodSpec]) -> set[int]:
    """Rows of the passes of `batch` sequences: one token of each, a period's, a window's, a verification's."""
    rows = {1}
    for spec in specs:
        rows.add(spec.window)
        rows |= {spec.config.rectify_every} if spec.rectifies else set()
        rows |= {spec.draft_length + 1} if spec.draft_length is not None else set()
    return {batch * count for count in rows}
