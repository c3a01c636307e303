"""How flushing the L2 changes a result: the same decode timed after writing, after reading and with no flush at all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console

from ..kernels import SparseConfig, get_method
from ..profiling.device import describe
from ..profiling.stats import summarize
from ..profiling.timing import CudaTimer, Op
from .micro.cases import DEFAULT_MODEL, PRESETS, Case
from .micro.inputs import make_inputs
from .micro.run import run_all

CASES = ((1, 8192), (1, 32768), (1, 131072), (1, 262144), (4, 131072))
METHOD = "sdpa-cudnn"
SAMPLES = 60


def flushes(timer: CudaTimer) -> dict[str, Callable[[], None]]:
    """The ways to prepare the cache, by name, each on a buffer of four times the L2."""
    other = torch.empty_like(timer._buffer)

    def write() -> None:
        other.zero_()

    def write_then_read() -> None:
        other.zero_()
        timer.flush()

    return {"write zeros": write, "write, then read": write_then_read, "read": timer.flush}


def flush_demo(console: Console) -> None:
    """Print a Markdown table of the median microseconds of a dense decode per kind of flush.

    Raises:
        ValueError: no GPU, or cuDNN's decode cannot run on it.
    """
    if not torch.cuda.is_available():
        raise ValueError("flush-demo needs a GPU: it shows what a write-back cache does to a timed kernel")
    device = torch.device("cuda")
    timer = CudaTimer(device)
    kinds = flushes(timer)
    environment = describe(device)
    console.print(f"{environment.device}, torch {environment.torch}, {METHOD}, {DEFAULT_MODEL}, {SAMPLES} samples\n")
    console.print("| case | " + " | ".join(f"{kind}, us" for kind in kinds) + " | error of writing |")
    console.print("|---" * (len(kinds) + 2) + "|")
    for batch, context in CASES:
        case = Case(DEFAULT_MODEL, PRESETS[DEFAULT_MODEL], batch, context)
        reason = get_method(METHOD).unavailable(case.shape, case.torch_dtype, device)
        if reason:
            raise ValueError(f"{METHOD}: {reason}")
        inputs = make_inputs(case, device, 1)
        method = get_method(METHOD)(case.shape, SparseConfig(), dtype=case.torch_dtype, device=device)
        attend = [stage for stage in method.prepare(inputs.cache).stages(inputs.step) if stage.name == "attend"]
        op = Op("attend", timer.captured(run_all(attend)))
        medians = {kind: _median(op, flush, timer) for kind, flush in kinds.items()}
        excess = medians["write zeros"] / medians["read"] - 1
        cells = " | ".join(f"{value:.1f}" for value in medians.values())
        console.print(f"| B{batch} {context // 1024}K | {cells} | {100 * excess:+.0f} % |", highlight=False)


def _median(op: Op, flush: Callable[[], None], timer: CudaTimer) -> float:
    pairs = []
    for _ in range(SAMPLES + 10):
        flush()
        before = timer.stamp()
        op.run()
        pairs.append((before, timer.stamp()))
    timer.synchronize()
    return summarize([(after - before) * 1e6 for before, after in pairs[10:]]).median_us
