"""Launching Triton kernels: one door, so that launches can be recorded and compiled without a GPU.

Every launcher in this package starts its kernel through `launch`. Inside `recording()` nothing runs: the launches
are collected with their arguments, and `profiling.resources` compiles them for a GPU that need not be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRET: bool = bool(triton.knobs.runtime.interpret)
"""True when kernels run in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1 at import)."""

MAX_SPLITS = 128  # that one program of the merge takes in
MAX_GRID = 65535  # programs along a grid's second and third axis, of any CUDA device
INTERPRETER_SM_COUNT = 4  # enough for several splits, some of them empty


@dataclass(frozen=True, slots=True)
class Launch:
    """One recorded launch: the kernel, its grid and every argument by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def name(self) -> str:
        """The kernel's name, as its function has it."""
        return str(self.kernel.__name__)


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of performing them."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


@triton.jit
def await_previous(PDL: tl.constexpr):
    """First line of every kernel with a PDL argument: wait until the kernel before this one has ended.

    Such kernels are launched as soon as the programs of the one before leave (programmatic dependent launch), which
    hides part of the gap between the kernels of a step. No program may write or end before this line: what waits for
    this kernel relies on its having waited. What the kernel before this one did not write may be read before it, if
    that one lets its successor in after its own waiting (`release_next`), as scoring and selection do: all that came
    before has ended then.
    """
    if PDL:
        gdc_wait()


@triton.jit
def release_next(PDL: tl.constexpr):
    """Let the programs of the next kernel take their places on the chip already (they still wait for this one's end).

    Called where it was measured to pay (docs/notes/speed.md): by attention before the merge, by an append before
    scoring, by scoring and selection in steps that are small enough. In larger ones programs placed while others still
    leave land unevenly, which costs more than it saves.
    """
    if PDL:
        gdc_launch_dependents()


@cache
def dependent_launch() -> bool:
    """Whether the current GPU offers programmatic dependent launch (compute capability 9)."""
    return not INTERPRET and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9


def launch(kernel: Any, grid: tuple[int, ...], *, num_warps: int = 4, num_stages: int = 3, **arguments: Any) -> Any:
    """Start `kernel` on `grid` with arguments by name; returns the compiled kernel (None when interpreted).

    Raises:
        ValueError: a grid that no CUDA device takes: too many sequences times heads.
    """
    if any(programs > MAX_GRID for programs in grid[1:]):
        raise ValueError(
            f"batch: {kernel.__name__} needs a grid of {grid}, at most {MAX_GRID} sequences times heads fit; "
            "take a smaller batch"
        )
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages}
    if "PDL" in kernel.arg_names:
        arguments["PDL"] = dependent_launch()
        if dependent_launch():
            options["launch_pdl"] = True
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, num_warps, num_stages))
        return None
    return kernel[grid](**arguments, **options)


def can_run_on(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`, or None if they can."""
    if device.type == "cuda" or INTERPRET or _recorded is not None:
        return None
    return f"Triton kernels need a CUDA device, got {device.type} (TRITON_INTERPRET=1 runs them slowly on a CPU)"


def can_read_fp8(device: torch.device) -> str | None:
    """Why kernels cannot read e4m3 on `device`, or None if they can."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9):
        return None
    return "Triton converts e4m3 on GPUs of compute capability 8.9 or later"


@cache
def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of `device`; a small constant under the interpreter."""
    if device.type != "cuda":
        return INTERPRETER_SM_COUNT
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def shared_memory(device: torch.device | None = None) -> int:
    """Bytes of shared memory that one program may take on `device`, None the current one; an H100's without a GPU."""
    if not torch.cuda.is_available():
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def programs_a_row(rows: int, programs: int, device: torch.device) -> int:
    """Programs that each of `rows` rows gets of the `programs` that a multiprocessor is to run."""
    return max(programs * sm_count(device) // rows, 1)


def scores_per_sm(scores: int, device: torch.device) -> float:
    """How large a step over so many block scores is for this chip: what decides who lets the next kernel in early."""
    return scores / sm_count(device)


def plan_splits(programs: int, tiles: int, device: torch.device, programs_per_sm: int) -> int:
    """How many ways to split the key axis so that the chip is full, but no further than there are tiles.

    Args:
        programs: programs that exist without splitting (batch x KV heads x row tiles).
        tiles: tiles of the key axis at the cache's capacity; a shorter sequence leaves late splits empty.
        programs_per_sm: how many programs one multiprocessor holds at a time.
    """
    wanted = max(1, sm_count(device) * programs_per_sm // max(programs, 1))
    return max(1, min(wanted, tiles, MAX_SPLITS))
