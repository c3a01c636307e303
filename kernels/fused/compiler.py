"""The fused step compiled and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cuda.nvrtc import Loaded, compile_folder, load, source_hash

FOLDER = Path(__file__).parent
MAIN = "step.cu"  # includes the others
KERNEL = "sparse_step"


def compile_step(constants: Mapping[str, int], capability: tuple[int, int] = (9, 0)) -> bytes:
    """The step's machine code; needs NVRTC, but no GPU.

    Raises:
        RuntimeError: with the compiler's log, if it does not compile.
    """
    return compile_folder(FOLDER, MAIN, constants, capability)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel. `launch` enqueues it on torch's current stream."""

    loaded: Loaded
    ctas: int  # of a row

    def launch(self, rows: int, parameters: int) -> None:
        """Start it; `parameters` is the address of the array of its arguments' addresses."""
        self.loaded.launch(rows * self.ctas, parameters)


_loaded: dict[tuple[Any, ...], Kernel] = {}


def kernel(
    device: torch.device,
    constants: Mapping[str, int],
    ctas: int,
    threads: int,
    shared_bytes: int,
    cooperative: bool = False,
) -> Kernel:
    """The step compiled with `constants` and loaded on `device`; compiled once, in a second or two."""
    key = (device, source_hash(FOLDER), tuple(sorted(constants.items())), shared_bytes)
    if key not in _loaded:
        cubin = compile_step(constants, torch.cuda.get_device_capability(device))
        function = load(device, cubin, KERNEL, shared_bytes)
        _loaded[key] = Kernel(Loaded(function, device, threads, shared_bytes, cooperative), ctas)
    return _loaded[key]
