"""CUDA C++ compiled at run time by NVRTC and loaded by the driver, both through NVIDIA's `cuda-bindings`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
MAIN = "step.cu"  # includes the others
KERNEL = "sparse_step"
PROBE = b'extern "C" __global__ void probe() {}'
PROBE_SHARED_BYTES = 120 * 1024  # over half of a multiprocessor's: one CTA on each, as the step's registers have it
MAX_CLUSTER = 16  # CTAs; over 8 not every GPU offers, which the occupancy query tells


def unavailable() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError:
        return "needs NVIDIA's cuda-bindings; pip install cuda-bindings"
    try:
        _nvrtc("nvrtcVersion")
    except RuntimeError as error:
        return f"needs NVRTC, which CUDA builds of torch bring: {error}"
    return None


@cache
def _library(module: str) -> Any:
    return import_module(f"cuda.bindings.{module}")


def _call(module: str, name: str, *arguments: Any) -> Any:
    """A call of the bindings: its results without the status. Raises RuntimeError with the library's own words."""
    try:
        status, *results = getattr(_library(module), name)(*arguments)
    except RuntimeError as error:  # a library that cannot be loaded
        raise RuntimeError(f"{name}: {' '.join(str(error).split())[:200]}") from None
    if int(status):
        raise RuntimeError(f"{name}: {status.name}")
    return results[0] if len(results) == 1 else tuple(results)


def _nvrtc(name: str, *arguments: Any) -> Any:
    return _call("nvrtc", name, *arguments)


def _driver(name: str, *arguments: Any) -> Any:
    return _call("driver", name, *arguments)


@cache
def sources(folder: Path = FOLDER) -> Mapping[str, bytes]:
    """The kernel's source: every CUDA file of the folder, by its name, as others include it. Read once."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.cu*"))}


@cache
def source_hash(folder: Path = FOLDER) -> str:
    """Tells sources apart: 20 hexadecimal digits of a hash of all of them, names and content."""
    digest = sha256()
    for name, text in sources(folder).items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:20]


def compile_step(constants: Mapping[str, int], capability: tuple[int, int] = (9, 0)) -> bytes:
    """The step's machine code; needs NVRTC, but no GPU.

    Raises:
        RuntimeError: with the compiler's log, if it does not compile.
    """
    headers = dict(sources())
    return compile_cubin(headers.pop(MAIN), constants, capability, headers)


def compile_cubin(
    text: bytes,
    constants: Mapping[str, int],
    capability: tuple[int, int] = (9, 0),
    headers: Mapping[str, bytes] | None = None,
) -> bytes:
    """Machine code of CUDA C++ for a compute capability; needs NVRTC, but no GPU.

    Args:
        headers: what it may include, by name.

    Raises:
        RuntimeError: with the compiler's log, if it does not compile.
    """
    names = [name.encode() for name in headers or {}]
    texts = list((headers or {}).values())
    program = _nvrtc("nvrtcCreateProgram", text, MAIN.encode(), len(names), texts, names)
    options = [
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}",
        "--std=c++17",
        "--device-as-default-execution-space",
    ]
    options += [f"-D{name}={value}" for name, value in constants.items()]
    try:
        _nvrtc("nvrtcCompileProgram", program, len(options), [option.encode() for option in options])
    except RuntimeError as error:
        log = bytes(_nvrtc("nvrtcGetProgramLogSize", program))
        _nvrtc("nvrtcGetProgramLog", program, log)  # the bindings fill the bytes that they are given
        raise RuntimeError(f"{error}\n{log.decode(errors='replace')}") from None
    cubin = bytes(_nvrtc("nvrtcGetCUBINSize", program))
    _nvrtc("nvrtcGetCUBIN", program, cubin)
    return cubin


@dataclass(frozen=True, slots=True)
class Kernel:
    """A loaded kernel. `launch` enqueues it on torch's current stream."""

    function: Any
    device: torch.device
    ctas: int  # of a row
    threads: int
    shared_bytes: int
    cooperative: bool  # all CTAs run at the same time, or the launch fails

    def launch(self, rows: int, parameters: int) -> None:
        """Start it; `parameters` is the address of the array of its arguments' addresses."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            config = self._config(rows, stream)
            _driver("cuLaunchKernelEx", config, self.function, parameters, 0)

    def _config(self, rows: int, stream: int) -> Any:
        """Its grid. It may start before the kernel before it has ended, for which it waits (`await_previous`)."""
        from cuda.bindings.driver import CUlaunchAttribute, CUlaunchConfig
        from cuda.bindings.driver import CUlaunchAttributeID as ID

        config, overlaps, together = CUlaunchConfig(), CUlaunchAttribute(), CUlaunchAttribute()
        config.gridDimX, config.gridDimY, config.gridDimZ = rows * self.ctas, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes, config.hStream = self.shared_bytes, stream
        overlaps.id = ID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        overlaps.value.programmaticStreamSerializationAllowed = 1
        together.id, together.value.cooperative = ID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE, 1
        attributes = [overlaps, together] if self.cooperative else [overlaps]
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config


def load(device: torch.device, cubin: bytes, name: str, shared_bytes: int) -> Any:
    """A kernel of a module on `device`, allowed `shared_bytes` of shared memory and clusters of any size."""
    from cuda.bindings.driver import CUfunction_attribute as Attribute

    with torch.cuda.device(device):
        torch.cuda.synchronize()  # makes torch's context the current one
        module = _driver("cuModuleLoadData", cubin)
        function = _driver("cuModuleGetFunction", module, name.encode())
        for attribute, value in (
            (Attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes),
            (Attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1),
        ):
            _driver("cuFuncSetAttribute", function, attribute, value)
    return function


@cache
def clusters_at_once(device: torch.device, cluster: int) -> int:
    """How many clusters of so many CTAs, one CTA a multiprocessor, run at the same time on `device`; 0 if none can."""
    from cuda.bindings import driver

    probe = _probe(device)
    config, size = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = 256, 1, 1
    config.sharedMemBytes = PROBE_SHARED_BYTES
    size.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = cluster, 1, 1
    config.attrs, config.numAttrs = [size], 1
    try:
        with torch.cuda.device(device):
            return int(_driver("cuOccupancyMaxActiveClusters", probe, config))
    except RuntimeError:  # clusters of this size are not to be had
        return 0


@cache
def _probe(device: torch.device) -> Any:
    capability = torch.cuda.get_device_capability(device)
    return load(device, compile_cubin(PROBE, {}, capability), "probe", PROBE_SHARED_BYTES)


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
    key = (device, source_hash(), tuple(sorted(constants.items())), shared_bytes)
    if key not in _loaded:
        cubin = compile_step(constants, torch.cuda.get_device_capability(device))
        function = load(device, cubin, KERNEL, shared_bytes)
        _loaded[key] = Kernel(function, device, ctas, threads, shared_bytes, cooperative)
    return _loaded[key]


def pointers(structure: ctypes.Structure) -> ctypes.Array[ctypes.c_void_p]:
    """The array that a launch takes, of a kernel whose one argument is `structure`; keep both alive while it runs."""
    return (ctypes.c_void_p * 1)(ctypes.addressof(structure))
