"""Skipped, failed, out of memory: how what was raised becomes a row. The only place that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...kernels import NotHere, Unsupported
from .bench import Case

REASON_CHARS = 300
CPU_ALLOCATOR = "DefaultCPUAllocator: "
"""Begins what torch's allocator on a CPU says, which raises a mere RuntimeError, when memory is out."""


class CheckFailed(Exception):
    """A method's result is outside its error bound."""


def failure(error: BaseException) -> dict[str, Any]:
    """Columns of the row for what was raised: status, reason, and whether it is final.

    Notes of the error (`add_note`) stand before its text.
    """
    words = ": ".join((*getattr(error, "__notes__", ()), str(error) or type(error).__name__))
    text = " ".join(words.split())[:REASON_CHARS]
    if isinstance(error, Unsupported):
        return {"status": "skipped", "reason": text, "final": True}
    if isinstance(error, NotHere):
        return {"status": "skipped", "reason": text}
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or CPU_ALLOCATOR in words:
        return {"status": "oom", "reason": text}
    if isinstance(error, CheckFailed):
        return {"status": "failed", "reason": f"check: {text}"}
    return {"status": "failed", "reason": f"{type(error).__name__}: {text}"}


def unavailable(specs: Any, case: Case, device: torch.device) -> Iterator[tuple[Any, str | None]]:
    """Each spec, and why it cannot run on this case and device, or None."""
    for spec in specs:
        yield spec, spec.kind.unavailable(case.shape, case.torch_dtype, device)
