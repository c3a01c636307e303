"""Finds products in a kernel's IR that could wrap at 2^31 before they become an address.

Read from Triton's own IR, in which every operation says how wide it is. Walking back from each address, a product of
32 bits is narrow if one of its factors is a stride, or if neither is a constant (a row times a number of splits, a
sequence times a number of heads). An index times a constant (a block times its tokens) is an index still, which fits.
What a division or a load gives is an index, too: the walk ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import triton
from resa_bench.kernels.launch import Launch
from resa_bench.profiling.resources import _signature
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DEFINITION = re.compile(r"^\s*(%[\w.]+)\s*=\s*([\w.]+)\s+(.*)$")
CARRIED = re.compile(r"(%[\w.]+) = (%[\w.#]+)(?=[,)])")
VALUE = re.compile(r"%[\w.#]+")
SHAPING = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.extsi", "arith.trunci")
WALKED = (*SHAPING, "arith.addi", "arith.subi", "arith.muli", "arith.select", "arith.maxsi", "arith.minsi")


class Definitions:
    """The operations of one kernel by the value they define, and where values that a loop carries start."""

    def __init__(self, ir: str) -> None:
        self.operation: dict[str, tuple[str, str]] = {}  # name and rest of the line
        self.start: dict[str, str] = {}
        for line in ir.splitlines():
            text = line.split(" loc(")[0]
            if "iter_args(" in text:
                self.start |= dict(CARRIED.findall(text.split("iter_args(")[1]))
            elif defined := DEFINITION.match(text):
                self.operation[defined[1]] = defined[2], defined[3]

    def operands(self, value: str) -> list[str]:
        """The values that one is computed from."""
        return VALUE.findall(self.operation[value][1].split(" : ")[0])

    def source(self, value: str) -> str:
        """The value behind conversions and changes of shape."""
        while True:
            if value in self.start:
                value = self.start[value]
            elif value in self.operation and self.operation[value][0] in SHAPING:
                value = self.operands(value)[0]
            else:
                return value

    def is_constant(self, value: str) -> bool:
        source = self.source(value)
        return source in self.operation and self.operation[source][0] == "arith.constant"

    def is_stride(self, value: str) -> bool:
        return self.source(value).endswith("_stride")

    def products(self) -> Iterator[tuple[str, bool]]:
        """Products on the way to any address, and whether they are narrow."""
        addresses = [value for value, (name, _) in self.operation.items() if name == "tt.addptr"]
        waiting = [self.operands(value)[1] for value in addresses]
        seen: set[str] = set()
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in self.start:
                waiting.append(self.start[value])
            if value not in self.operation or self.operation[value][0] not in WALKED:
                continue
            name, rest = self.operation[value]
            factors = self.operands(value)
            waiting += factors
            if name == "arith.muli":
                by_stride = any(map(self.is_stride, factors))
                indexes = any(map(self.is_constant, factors)) and not by_stride
                yield f"{value} = {rest}", re.search(r"\bi64\b|xi64>", rest) is None and not indexes


def products_of(launch: Launch, capability: int = 90) -> list[tuple[str, bool]]:
    """`Definitions.products` of one recorded launch, compiled without a GPU."""
    types, constants, attributes = _signature(launch)
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return list(Definitions(compiled.asm["ttir"]).products())
