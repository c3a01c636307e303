"""The frame that runs of whole models share: every method in turn, one that fails costs its own rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ...kernels import Unsupported, get_method
from ..core.rows import Row
from ..decode.cases import ModelCase
from ..micro.cases import MethodSpec
from ..micro.suite import failure
from ..model.smollm import ModelNotHere
from .loader import Loader, release


class MethodRun(Protocol):
    """A case in hand: prepared once for the methods of `specs`, then measured method by method."""

    specs: list[MethodSpec]

    @property
    def case(self) -> ModelCase: ...
    def row(self, spec: MethodSpec, **columns: Any) -> Row: ...
    def prepare(self, loader: Loader) -> None: ...
    def measure(self, spec: MethodSpec) -> Iterator[Row]: ...


def run_methods(
    run: MethodRun,
    specs: Sequence[MethodSpec],
    device: torch.device,
    loader: Loader,
    too_large: Callable[[list[MethodSpec]], str | None] = lambda able: None,
) -> list[Row]:
    """Rows of all methods: skipped or failed ones with their reason, the others as far as they came.

    Args:
        too_large: why the case does not fit the device with the methods that can run, or None.
    """
    case = run.case
    rows: list[Row] = []
    able = []
    for spec in specs:
        reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, device)
        if reason:
            rows.append(run.row(spec, status="skipped", reason=reason))
        else:
            able.append(spec)
    run.specs = able
    reason = too_large(able)
    if reason:
        return rows + [run.row(spec, status="skipped", reason=reason, final=True) for spec in able]
    with torch.inference_mode():
        try:
            if able:
                run.prepare(loader)
        except ModelNotHere as error:
            return rows + [run.row(spec, status="skipped", reason=str(error)) for spec in able]
        except Exception as error:
            status, reason = failure(error)
            return rows + [run.row(spec, status=status, reason=reason) for spec in able]
        for spec in able:
            try:
                for row in run.measure(spec):
                    rows.append(row)
                release(device)
            except Exception as error:
                status, reason = failure(error)
                final = True if isinstance(error, Unsupported) else None
                rows.append(run.row(spec, status=status, reason=reason, final=final))
    return rows
