"""The fused step's own source on a CPU, for developers without a GPU: `emulator.hpp` stands in for CUDA."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from resa_bench.kernels.cuda import nvrtc
from resa_bench.kernels.fused import compiler

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / "resa-bench-fused-host"
OPTIONS = ("-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", "-fno-gnu-unique")
"""Of g++. The last one: each library has variables of its own, also beside others in a process."""
CLUSTERS_AT_ONCE = {1: 132, 2: 66, 3: 39, 4: 30, 6: 17, 8: 15, 16: 7}  # of CTAs; an H100's


def unavailable() -> str | None:
    """Why the source cannot be compiled for a CPU here, or None."""
    return None if shutil.which("g++") else "needs g++"


@dataclass(frozen=True)
class HostKernel:
    """Takes the place of `compiler.Kernel`."""

    library: ctypes.CDLL
    shared_bytes: int
    seed: int = 0

    def launch(self, rows: int, parameters: int) -> None:
        """Run all rows, one after another."""
        arguments = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        stuck = self.library.emulate(ctypes.c_void_p(arguments), rows, self.shared_bytes, self.seed)
        assert not stuck, f"row {stuck - 1} waits for what nobody sends, or breaks a rule (stderr names it)"


def kernel(
    device: torch.device,
    constants: Mapping[str, int],
    ctas: int,
    threads: int,
    shared_bytes: int,
    cooperative: bool = False,
) -> HostKernel:
    """Takes the place of `compiler.kernel`: the same source, compiled by g++ once."""
    texts = [path.read_bytes() for path in (HERE / "emulator.hpp", HERE / "main.cpp")]
    named = repr((OPTIONS, nvrtc.source_hash(compiler.FOLDER), sorted(constants.items()))).encode()
    key = hashlib.sha256(named + b"".join(texts)).hexdigest()[:20]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        made = library.with_suffix(f".{id(constants)}")
        options = [*OPTIONS, f"-I{HERE}", f"-I{compiler.FOLDER}", f"-I{nvrtc.DEVICE_WORDS.parent}"]
        defines = [f"-D{name}={value}" for name, value in constants.items()]
        subprocess.run(["g++", *options, *defines, str(HERE / "main.cpp"), "-o", str(made)], check=True)
        made.replace(library)
    return HostKernel(ctypes.CDLL(str(library)), shared_bytes)
