"""Which model it is that was measured, whatever its folder is called: a hash of configuration, tokenizer and weights.

Small weights are hashed whole. Of larger ones the hash takes sizes, headers and pieces of every tensor, so that 16 GB
take well under a second; training moves every tensor that it trains, so that a retrained checkpoint differs. A change
of single numbers in a large tensor may go unnoticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from . import smollm
from .config import MODELS
from .schema import MOST_JSON_BYTES, one_line, regular_file
from .weight_files import header_bytes, stored_tensors, weight_files

RANDOM = "random"  # of presets: their weights follow from the preset's name and the case's seed
DIGITS = 16  # hexadecimal, of the fingerprint
WHOLE_BYTES = 2**26  # of weights that are hashed whole
PIECE_BYTES, PIECES = 2**12, 3  # of a tensor: its beginning, middle and end

TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
"""Files of a folder that decide what the model computes, or what it is asked."""


class _Tensor(Protocol):
    """A tensor's byte range in its file."""

    @property
    def path(self) -> Path: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


def fingerprint(path: str | Path) -> str:
    """A word of 16 hexadecimal digits for the model at `path`: a folder, a .gguf file, or the name of one.

    Equal for equal contents elsewhere, whatever folder and files are called. Presets give `RANDOM`, SmolLM2 the digest
    that its file is checked by.

    Raises:
        ValueError: there is no such model, its files are malformed, or which of them are the model cannot be told.
    """
    if str(path) in MODELS:
        return RANDOM
    if str(path) == smollm.NAME:
        return smollm.GGUF_SHA256[:DIGITS]
    path = Path(path)
    try:
        return _folder(path) if path.is_dir() else _gguf(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None


def _folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in TEXT_FILES:
        if (folder / name).exists():
            file = regular_file(folder / name)
            if file.stat().st_size > MOST_JSON_BYTES:
                raise ValueError(f"{file} has {file.stat().st_size} bytes, at most {MOST_JSON_BYTES} are read")
            _add(digest, name.encode(), file.read_bytes())
    tensors = stored_tensors(folder)
    headers = [header_bytes(path)[0] for path in weight_files(folder)]
    return _with_weights(digest, weight_files(folder), headers, list(tensors.values()))


def _gguf(path: Path) -> str:
    try:
        from .gguf_header import read_gguf
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading GGUF files needs the package {error.name}; pip install gguf") from None
    header = read_gguf(path)
    tensors = list(header.tensors.values())
    begins = {file: min((t.begin for t in tensors if t.path == file), default=0) for file in header.paths}
    headers = []
    for file in header.paths:
        with file.open("rb") as stream:
            headers.append(stream.read(begins[file] or file.stat().st_size))
    return _with_weights(hashlib.sha256(), header.paths, headers, tensors)


def _with_weights(
    digest: hashlib._Hash, paths: Sequence[Path], headers: Sequence[bytes], tensors: Sequence[_Tensor]
) -> str:
    """The fingerprint, once sizes, headers and the weights, or pieces of them, are added to the digest."""
    for path, header in zip(paths, headers, strict=True):
        _add(digest, str(path.stat().st_size).encode(), header)
    whole = sum(path.stat().st_size for path in paths) <= WHOLE_BYTES
    for path in paths:
        with path.open("rb") as file:
            for tensor in sorted((t for t in tensors if t.path == path), key=lambda t: (t.begin, t.end)):
                for begin, length in _pieces(tensor, whole):
                    file.seek(begin)
                    _add(digest, file.read(length))
    return digest.hexdigest()[:DIGITS]


def _pieces(tensor: _Tensor, whole: bool) -> list[tuple[int, int]]:
    """Where a tensor's pieces begin and how long they are, in bytes."""
    size = tensor.end - tensor.begin
    if whole or size <= PIECES * PIECE_BYTES:
        return [(tensor.begin, size)]
    step = (size - PIECE_BYTES) // (PIECES - 1)
    return [(tensor.begin + i * step, PIECE_BYTES) for i in range(PIECES)]


def _add(digest: hashlib._Hash, *parts: bytes) -> None:
    """Each part with its length before it, so that parts cannot run into one another."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
