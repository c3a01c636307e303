"""The source of the CUDA product on a CPU, for developers without a GPU: fused_host's emulator stands in for CUDA."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fused_host
import torch
from resa_bench.kernels.cuda import nvrtc
from resa_bench.kernels.linear.cuda import gemv
from resa_bench.kernels.linear.cuda.layout import Layout

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / "resa-bench-gemv-host"


@dataclass(frozen=True)
class HostKernel:
    """Takes the place of `nvrtc.Loaded`."""

    library: ctypes.CDLL
    layout: Layout
    seed: int = 0

    def launch(self, ctas: int, parameters: int) -> None:
        """Run all clusters, one after another."""
        arguments = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        clusters = ctas // self.layout.cluster
        stuck = self.library.emulate(ctypes.c_void_p(arguments), clusters, self.layout.shared_bytes, self.seed)
        assert not stuck, f"cluster {stuck - 1} waits for what nobody sends, or breaks a rule (stderr names it)"


def kernel(device: torch.device, layout: Layout, fp16: bool) -> HostKernel:
    """Takes the place of `gemv.kernel`: the same source, compiled by g++ once."""
    constants = layout.constants(fp16)
    texts = [path.read_bytes() for path in (fused_host.HERE / "emulator.hpp", HERE / "words.hpp", HERE / "main.cpp")]
    named = repr((fused_host.OPTIONS, nvrtc.source_hash(gemv.FOLDER), sorted(constants.items()))).encode()
    key = hashlib.sha256(named + b"".join(texts)).hexdigest()[:20]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        made = library.with_suffix(f".{id(constants)}")
        shown = [f"-I{path}" for path in (HERE, fused_host.HERE, gemv.FOLDER, nvrtc.DEVICE_WORDS.parent)]
        options = [*fused_host.OPTIONS, *shown]
        defines = [f"-D{name}={value}" for name, value in constants.items()]
        subprocess.run(["g++", *options, *defines, str(HERE / "main.cpp"), "-o", str(made)], check=True)
        made.replace(library)
    return HostKernel(ctypes.CDLL(str(library)), layout)
