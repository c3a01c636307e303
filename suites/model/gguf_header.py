"""GGUF's header, read with every count and length checked against the file before memory is taken for it.

The `gguf` library's reader believes the header: a file of 1 kB that claims 10^12 entries fills the memory.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from .schema import Fields, regular_file, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_ENTRIES = 2**16  # of metadata
MOST_TENSORS = 2**20
MOST_ITEMS = 2**24  # of an array: the largest vocabularies have 2^18
MOST_KEY_BYTES, MOST_TEXT_BYTES = 2**16, 2**26
MOST_DIMS = 4
MOST_DEPTH = 3  # of arrays of arrays

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies: its file, type, shape (slowest dimension first) and byte range in the file."""

    path: Path
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    end: int

    def data(self) -> np.ndarray:
        """The stored bytes as `gguf.dequantize` takes them: floats of the shape, or bytes of quantised rows."""
        raw = np.memmap(self.path, np.uint8, "r", offset=self.begin, shape=(self.end - self.begin,))
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(self.type)
        if plain is not None:
            return raw.view(plain).reshape(self.shape)
        return raw.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A model's metadata and tensors, of one file or of all parts of a split one."""

    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    paths: tuple[Path, ...]
    name: str  # the file's without suffix and part


def read_gguf(path: Path) -> GGUFHeader:
    """The header of a GGUF file. A part of a split model brings the others along, from the same folder.

    Raises:
        ValueError: a file is malformed or cut off, or parts of a split model are missing.
    """
    fields, tensors = _read_file(path)
    part = _PART.fullmatch(path.stem)
    count = Fields(fields, str(path)).integer("split.count", int(part[3]) if part else 1, most=99_999)
    if count == 1:
        return GGUFHeader(fields, tensors, (path,), path.stem)
    if part is None or int(part[3]) != count:
        raise ValueError(f"{path} is one of {count} parts of a model, but not named NAME-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{part[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    absent = [other.name for other in paths if not other.exists()]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ValueError(f"{path} is one of {count} parts of a model; missing are {', '.join(absent[:3])}{more}")
    return _joined(paths, part[1])


def _joined(paths: list[Path], name: str) -> GGUFHeader:
    """The parts of a split model as one: metadata of the first, tensors of all. Raises ValueError."""
    first: dict[str, Any] = {}
    tensors: dict[str, GGUFTensor] = {}
    for i, path in enumerate(paths):
        fields, parts = _read_file(path)
        checked = Fields(fields, str(path))
        number, count = checked.integer("split.no", least=0), checked.integer("split.count")
        if (number, count) != (i, len(paths)):
            raise ValueError(f"{path} says that it is part {number + 1} of {count}, its name {i + 1} of {len(paths)}")
        first = first or fields
        twice = next((tensor for tensor in parts if tensor in tensors), None)
        if twice:
            raise ValueError(f"{path}: {shown(twice)} stands in {tensors[twice].path.name} too")
        tensors |= parts
    expected = Fields(first, str(paths[0])).integer("split.tensors.count", len(tensors), least=0)
    if expected != len(tensors):
        raise ValueError(f"{paths[0]}: its {len(paths)} parts hold {len(tensors)} tensors, expected {expected}")
    return GGUFHeader(first, tensors, tuple(paths), name)


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    regular_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(path, file, size).read()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


class _Reader:
    """Reads one file from its beginning; each step says what is wrong by `_fault`."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        if self.size < 24 or self._bytes(4) != MAGIC:
            raise self._fault("no GGUF file, or cut off")
        version = self._scalar("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(struct.pack("<I", version), "big")
            kind = "big-endian" if swapped in VERSIONS else f"of version {version}"
            raise self._fault(f"it is {kind}, supported are little-endian files of version 2 and 3")
        n_tensors, n_entries = self._count(MOST_TENSORS, 24, "tensors"), self._count(MOST_ENTRIES, 13, "entries")
        fields: dict[str, Any] = {}
        for _ in range(n_entries):
            key = self._text(MOST_KEY_BYTES)
            if key in fields:
                raise self._fault(f"the key {shown(key)} stands twice")
            fields[key] = self._value(int(self._scalar("I")), MOST_DEPTH)
        alignment = Fields(fields, str(self.path)).integer("general.alignment", DEFAULT_ALIGNMENT, most=2**20)
        if alignment & (alignment - 1):
            raise self._fault(f"general.alignment is {alignment}, expected a power of two")
        entries = [self._tensor_entry() for _ in range(n_tensors)]
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_number, offset in entries:
            if name in tensors:
                raise self._fault(f"the tensor {shown(name)} stands twice")
            tensors[name] = self._placed(name, shape, type_number, begin, offset, alignment)
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if tensor.begin < end:
                raise self._fault(f"the tensor {shown(name)} overlaps another")
            end = max(end, tensor.end)
        return fields, tensors

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self._text(MOST_KEY_BYTES), self._scalar("I")
        if not 1 <= dims <= MOST_DIMS:
            raise self._fault(f"the tensor {shown(name)} has {dims} dimensions, expected 1 to {MOST_DIMS}")
        shape = tuple(self._scalar("Q") for _ in range(dims))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _placed(
        self, name: str, shape: tuple[int, ...], kind: int, begin: int, offset: int, alignment: int
    ) -> GGUFTensor:
        try:
            type_ = GGMLQuantizationType(kind)
        except ValueError:
            raise self._fault(f"the tensor {shown(name)} has type {kind}, which is not known") from None
        block, block_bytes = GGML_QUANT_SIZES[type_]
        if min(shape) < 1 or shape[-1] % block:
            raise self._fault(f"the tensor {shown(name)} has shape {list(shape)}, expected rows of blocks of {block}")
        bytes_ = math.prod(shape) // block * block_bytes
        if offset % alignment or begin + offset + bytes_ > self.size:
            place = f"{bytes_} bytes at {begin + offset}"
            raise self._fault(f"the tensor {shown(name)} takes {place} of {self.size}: cut off or damaged?")
        return GGUFTensor(self.path, type_, shape, begin + offset, begin + offset + bytes_)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self._text(MOST_TEXT_BYTES)
        if kind != _ARRAY or not depth:
            raise self._fault(f"metadata of type {kind}, which is not known here")
        inner = self._scalar("I")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            count = self._count(MOST_ITEMS, struct.calcsize("<" + form), "items of an array")
            return list(struct.unpack(f"<{count}{form}", self._bytes(count * struct.calcsize("<" + form))))
        count = self._count(MOST_ITEMS, 8 if inner == _TEXT else 12, "items of an array")
        return [self._value(inner, depth - 1) for _ in range(count)]

    def _count(self, most: int, least_bytes: int, what: str) -> int:
        """A count of things that take `least_bytes` each, which the rest of the file has room for."""
        count = self._scalar("Q")
        if count > most or count * least_bytes > self.size - self.at:
            raise self._fault(f"it claims {count} {what}, more than it has room for")
        return count

    def _text(self, most: int) -> str:
        length = self._scalar("Q")
        if length > min(most, self.size - self.at):
            raise self._fault(f"a text of {length} bytes, more than it has room for")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise self._fault("a text that is no UTF-8") from None

    def _scalar(self, form: str) -> Any:
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))[0]

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.size - self.at else b""
        if len(data) != count:
            raise self._fault("it is cut off")
        self.at += count
        return data

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"{self.path} cannot be read as GGUF: {what} (at byte {self.at} of {self.size})")
