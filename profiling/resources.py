"""Registers, spills and shared memory of kernels, compiled for a GPU that need not be here.

Launches recorded by `kernels.launch.recording` are compiled for compute capability 9.0 with the assembler that ships
inside Triton; its resource report is read back. On a GPU the same figures come from the loaded kernels.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..kernels.launch import Launch

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel asks of a multiprocessor.

    Attributes:
        registers: of a thread.
        spill_bytes: of local memory of a thread.
        shared_bytes: of shared memory of a program.
        num_warps: of a program.
    """

    kernel: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int


def _signature(launch: Launch) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """Types, constants and divisibility of a launch's arguments, as Triton's own specialisation would find them."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            types[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            types[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compile_launch(launch: Launch, capability: int = 90) -> Resources:
    """Compile one recorded launch for `capability` (90 is 9.0) and read its resources. Needs no GPU."""
    types, constants, attributes = _signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return read_cubin(launch.name, compiled.asm["cubin"], compiled.metadata.shared, launch.num_warps)


def read_cubin(kernel: str, cubin: bytes, shared_bytes: int, num_warps: int) -> Resources:
    """Resources of a compiled kernel, from the report of the tool that ships inside Triton.

    Raises:
        subprocess.CalledProcessError: `cubin` is none.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = {key: int(number) for key, number in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", report.stdout)}
    return Resources(kernel, usage["REG"], usage["STACK"] + usage["LOCAL"], shared_bytes, num_warps)


def as_records(launches: Iterable[Launch], capability: int = 90) -> list[dict[str, Any]]:
    """Resources of every distinct launch, as records of the fields of `Resources`."""
    seen: dict[str, Resources] = {}
    for launch in launches:
        key = repr((launch.name, _signature(launch), launch.num_warps, launch.num_stages))
        if key not in seen:
            seen[key] = compile_launch(launch, capability)
    return [asdict(r) for r in seen.values()]
