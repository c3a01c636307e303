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

ALL_SHARED = 100  # per cent of the memory that cache and shared memory divide
DEVICE_WORDS = Path(__file__).with_name("device.cuh")
"""What kernels need of Hopper beyond plain C++; they include it."""


@cache
def unavailable() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except ImportError:
        return "needs NVIDIA's cuda-bindings; pip install cuda-bindings"
    try:
        call_nvrtc("nvrtcVersion")
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


def call_nvrtc(name: str, *arguments: Any) -> Any:
    """A function of NVRTC. Raises RuntimeError."""
    return _call("nvrtc", name, *arguments)


def call_driver(name: str, *arguments: Any) -> Any:
    """A function of the driver. Raises RuntimeError."""
    return _call("driver", name, *arguments)


@cache
def sources(folder: Path) -> Mapping[str, bytes]:
    """The CUDA files of a kernel's folder and `DEVICE_WORDS`, by the names that they are included by. Read once."""
    return {path.name: path.read_bytes() for path in (*sorted(folder.glob("*.cu*")), DEVICE_WORDS)}


@cache
def source_hash(folder: Path) -> str:
    """Tells sources apart: 20 hexadecimal digits of a hash of all of them, names and content."""
    digest = sha256()
    for name, text in sources(folder).items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:20]


def compile_folder(
    folder: Path, main_file: str, constants: Mapping[str, int], capability: tuple[int, int] = (9, 0)
) -> bytes:
    """Machine code of a folder's file `main_file`; as `compile_cubin`."""
    headers = dict(sources(folder))
    return compile_cubin(headers.pop(main_file), constants, capability, headers, main_file)


def compile_cubin(
    text: bytes,
    constants: Mapping[str, int],
    capability: tuple[int, int] = (9, 0),
    headers: Mapping[str, bytes] | None = None,
    name: str = "kernel.cu",
) -> bytes:
    """Machine code of CUDA C++ for a compute capability; needs NVRTC, but no GPU.

    Args:
        constants: macros.
        headers: what it may include, by name.
        name: of the text, in messages.

    Raises:
        RuntimeError: with the compiler's log, if it does not compile.
    """
    names = [header.encode() for header in headers or {}]
    texts = list((headers or {}).values())
    program = call_nvrtc("nvrtcCreateProgram", text, name.encode(), len(names), texts, names)
    options = [
        f"--gpu-architecture=sm_{capability[0]}{capability[1]}",
        "--std=c++17",
        "--device-as-default-execution-space",
    ]
    options += [f"-D{name}={value}" for name, value in constants.items()]
    try:
        call_nvrtc("nvrtcCompileProgram", program, len(options), [option.encode() for option in options])
    except RuntimeError as error:
        log = bytes(call_nvrtc("nvrtcGetProgramLogSize", program))
        call_nvrtc("nvrtcGetProgramLog", program, log)  # the bindings fill the bytes that they are given
        raise RuntimeError(f"{error}\n{log.decode(errors='replace')}") from None
    cubin = bytes(call_nvrtc("nvrtcGetCUBINSize", program))
    call_nvrtc("nvrtcGetCUBIN", program, cubin)
    return cubin


def load(device: torch.device, cubin: bytes, name: str, shared_bytes: int, shares_multiprocessors: bool = False) -> Any:
    """A kernel of a module on `device`, allowed `shared_bytes` of shared memory and clusters of any size.

    Args:
        shares_multiprocessors: with the kernel before it. A multiprocessor divides its memory into cache and shared
            memory anew only where nothing runs on it: so the kernel asks for the largest shared memory at once.
    """
    from cuda.bindings.driver import CUfunction_attribute as Attribute

    with torch.cuda.device(device):
        if not torch.cuda.is_current_stream_capturing():  # then it is current, and nothing may be waited for
            torch.cuda.synchronize()  # makes torch's context the current one
        module = call_driver("cuModuleLoadData", cubin)
        function = call_driver("cuModuleGetFunction", module, name.encode())
        attributes = {
            Attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: shared_bytes,
            Attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: 1,
        }
        if shares_multiprocessors:
            attributes[Attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT] = ALL_SHARED
        for attribute, value in attributes.items():
            call_driver("cuFuncSetAttribute", function, attribute, value)
    return function


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded kernel. `launch` enqueues it on torch's current stream."""

    function: Any
    device: torch.device
    threads: int
    shared_bytes: int
    cooperative: bool = False  # all CTAs run at the same time, or the launch fails

    def launch(self, ctas: int, parameters: int) -> None:
        """Start it; `parameters` is the address of the array of its arguments' addresses.

        It may start before the kernel before it has ended, for which it waits itself.
        """
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            call_driver("cuLaunchKernelEx", self._config(ctas, stream), self.function, parameters, 0)

    def _config(self, ctas: int, stream: int) -> Any:
        from cuda.bindings.driver import CUlaunchAttribute, CUlaunchConfig
        from cuda.bindings.driver import CUlaunchAttributeID as ID

        config, overlaps, together = CUlaunchConfig(), CUlaunchAttribute(), CUlaunchAttribute()
        config.gridDimX, config.gridDimY, config.gridDimZ = ctas, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes, config.hStream = self.shared_bytes, stream
        overlaps.id = ID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        overlaps.value.programmaticStreamSerializationAllowed = 1
        together.id, together.value.cooperative = ID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE, 1
        attributes = [overlaps, together] if self.cooperative else [overlaps]
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config


def addresses(*arguments: ctypes.Structure | ctypes._SimpleCData[Any]) -> ctypes.Array[ctypes.c_void_p]:
    """The array that a launch takes; keep it and the arguments alive until it returns."""
    return (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
