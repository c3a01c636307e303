"""Generated samples on disk, so that a text of 128K tokens is written once."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..model.smollm import cache_folder
from ..model.tokenizer import Tokenizer
from .samples import Batch

FOLDER = "tasks"
DIGITS = 24  # hexadecimal, of a file's name
ARRAYS = ("prompts", "questions", "replies", "reply_tokens")


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Of everything that decides how a text becomes token ids, and what stands around a message."""
    settings = (tokenizer.bos, tokenizer.adds_bos, tokenizer.chat_template, tokenizer.template_tokens())
    text = tokenizer.tokenizer.to_str() + json.dumps(settings)
    return hashlib.sha256(text.encode()).hexdigest()


def writing_digest(make: Callable[..., object]) -> str:
    """Of the code that writes samples: the file that defines `make`, and this folder."""
    try:
        own = [Path(inspect.getfile(make))]
    except (TypeError, OSError):  # typed at a prompt
        own = []
    digest = hashlib.sha256(f"{make.__module__}.{make.__qualname__}".encode())
    for path in [*own, *sorted(Path(__file__).parent.rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stored(key: tuple[object, ...], make: Callable[[], Batch]) -> Batch:
    """The samples of a key out of the cache; made, and put there, where it has none that can be read.

    Args:
        key: all that the samples follow from: strings and whole numbers.
    """
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:DIGITS]
    path = cache_folder() / FOLDER / f"{name}.npz"
    batch = _read(path)
    if batch is None:
        batch = make()
        _write(path, batch)
    return batch


def _read(path: Path) -> Batch | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name].astype(np.int64) for name in ARRAYS}
            answers = json.loads(str(file["answers"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, cut off, or of something else
    return Batch(**arrays, answers=answers)


def _write(path: Path, batch: Batch) -> None:
    """At once or not at all. A cache that cannot be written costs time, and nothing else."""
    arrays = {name: getattr(batch, name).astype(np.int32) for name in ARRAYS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez_compressed(file, answers=np.array(json.dumps(batch.answers)), **arrays)
        os.replace(file.name, path)
    except OSError:
        return
