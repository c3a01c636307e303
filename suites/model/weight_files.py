"""Which safetensors of a Hugging Face folder are the model: the order that transformers follows, and no guessing.

model.safetensors comes first, then the shards that model.safetensors.index.json names. Other files are ignored beside
them. Without either, one file, or one full set of numbered shards, is taken; anything else is refused.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schema import MOST_JSON_BYTES, Fields, parse_object, read_text, regular_file, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MOST_HEADER_BYTES = 10**8  # the limit of the safetensors library
MOST_DIMS = 8
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_ADAPTER_TENSOR = re.compile(r"(?:^|\.)(?:lora_[A-Za-z]|base_model\.model|ia3_|oft_|prompt_embeddings)")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: its file, dtype, shape and byte range in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that make the model, in order.

    Raises:
        ValueError: there are none, the folder holds an adapter, or which of them is the model cannot be told.
    """
    if (folder / ADAPTER_FILES[0]).exists():
        raise ValueError(
            f"{folder} holds an adapter ({ADAPTER_FILES[0]}), which changes another model's weights; "
            "merge it into its base model and give that folder"
        )
    if (folder / SINGLE).exists():
        if (folder / INDEX).exists():
            index_map(folder)  # not followed, but a malformed one is no leftover of a save
        return [regular_file(folder / SINGLE)]
    if (folder / INDEX).exists():
        names = sorted(set(index_map(folder).values()))
        absent = [name for name in names if not (folder / name).exists()]
        if absent:
            raise ValueError(f"{folder} lacks {', '.join(absent[:3])}, which {INDEX} lists")
        return [regular_file(folder / name) for name in names]
    return [regular_file(path) for path in _unnamed(folder)]


def index_map(folder: Path) -> dict[str, str]:
    """File names by tensor names, of model.safetensors.index.json.

    Raises:
        ValueError: it cannot be read, is no such map, or names files outside of the folder.
    """
    path = folder / INDEX
    names = Fields(parse_object(read_text(path), path), str(path)).object("weight_map").values
    if not names:
        raise ValueError(f"{path} does not say weight_map, expected file names by tensor names")
    for tensor, name in names.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: {tensor} lies in {shown(name)}, expected a *.safetensors of the same folder")
    return dict(names)


def _unnamed(folder: Path) -> list[Path]:
    """The files of a folder that has neither of the two names that transformers looks for."""
    paths = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if not paths:
        if list(folder.glob("adapter_*.safetensors")):
            raise ValueError(f"{folder} holds an adapter only; merge it into its base model and give that folder")
        raise ValueError(f"{folder} has no *.safetensors")
    shards = [_SHARD.fullmatch(path.name) for path in paths]
    if len(paths) == 1 and (shards[0] is None or int(shards[0][3]) == 1):
        return paths
    whole = {(match[1], match[3]) for match in shards if match}
    if all(shards) and len(whole) == 1:
        ((_, count),) = whole
        if [int(match[2]) for match in shards if match] == list(range(1, int(count) + 1)):
            return paths
        raise ValueError(f"{folder} has {len(paths)} of {int(count)} shards and no {INDEX}")
    names = ", ".join(path.name for path in paths[:4])
    raise ValueError(
        f"{folder} has {len(paths)} files ({names}), none of them {SINGLE} or {INDEX}: which is the model?"
    )


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of the model's files by name, from the files' headers alone.

    Raises:
        ValueError: a file is malformed, a tensor stands in two files, is quantised, is missing from the file that the
            index names, or belongs to an adapter.
    """
    tensors: dict[str, StoredTensor] = {}
    paths = weight_files(folder)
    for path in paths:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise ValueError(f"{folder}: {name!r} stands in {tensors[name].path.name} and in {path.name}")
            tensors[name] = tensor
    if tensors and all(_ADAPTER_TENSOR.search(name) for name in tensors):
        raise ValueError(f"{folder} holds an adapter's tensors only; merge it into its base model and give that folder")
    if paths[0].name != SINGLE and (folder / INDEX).exists():
        for name, file in index_map(folder).items():
            if name not in tensors or tensors[name].path.name != file:
                raise ValueError(f"{folder}: {name!r} is not in {file}, where {INDEX} has it")
    return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: dtypes, shapes and byte ranges, each checked against the file's size.

    Raises:
        ValueError: the file is malformed, or of a dtype that holds no plain weights.
    """
    text, begin = header_bytes(path)
    size = path.stat().st_size
    header = parse_object(text, path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, begin, size) for name, entry in header.items()}
    at = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise ValueError(f"{path}: {shown(name)} begins at byte {tensor.begin}, expected {at}")
        at = tensor.end
    if at != size:
        raise ValueError(f"{path} has {size} bytes, its header describes {at}: cut off or damaged?")
    return tensors


def header_bytes(path: Path) -> tuple[bytes, int]:
    """A safetensors file's header, and where its data begin. Raises ValueError."""
    regular_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES, MOST_JSON_BYTES):
                raise ValueError(f"{path} cannot be read: no safetensors file, or cut off")
            return file.read(length), 8 + length
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _tensor(path: Path, name: str, entry: Any, begin: int, size: int) -> StoredTensor:
    where = f"{path}: {shown(name)}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {shown(entry)}, expected dtype, shape and data_offsets")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        allowed = ", ".join(ITEM_BYTES)
        raise ValueError(f"{where} has dtype {shown(dtype)}, supported are {allowed}; quantised weights are not")
    for values in (shape, offsets):
        if (
            not isinstance(values, list)
            or len(values) > MOST_DIMS
            or not all(type(v) is int and v >= 0 for v in values)
        ):
            raise ValueError(f"{where} has shape {shown(shape)} and data_offsets {shown(offsets)}, expected integers")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - begin:
        raise ValueError(f"{where} has data_offsets {shown(offsets)}, but the file has {size - begin} bytes of data")
    count = 1
    for extent in shape:
        count *= extent
    if count * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise ValueError(f"{where} has shape {shown(shape)} of {dtype}, but {offsets[1] - offsets[0]} bytes")
    return StoredTensor(path, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])
