"""Which code a row comes from: the package's sources, files of others, libraries, and the device that ran them.

A row of another origin does not count as done: the same command measures it again.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import triton

from ...kernels.registry import SELECTORS
from ...profiling.device import device_name
from ...profiling.source import source_hash
from .rows import Row

PACKAGE = __package__.split(".")[0]
package_hash = cache(source_hash)
"""Of the sources that this process runs: what changes later is not what it imported."""


def source_of(spec: Any, case: Any = None) -> str:
    """A hash of what measures a method in a case: of the package, and of files outside it that define them.

    Args:
        case: may name further code that its inputs come from, as `made_by`.
    """
    named = (getattr(getattr(spec, "config", None), "selector", None), getattr(spec.kind, "ranks_by", None))
    selectors = [type(SELECTORS[name]) for name in named if name in SELECTORS]
    others = file_hash(tuple(foreign_files([spec.kind, type(case), *selectors, *getattr(case, "made_by", ())])))
    return f"{package_hash()}-{others}" if others else package_hash()


def foreign_files(makers: Iterable[Any]) -> list[Path]:
    """The files outside this package that define classes or functions, sorted."""
    files = set()
    for maker in makers:
        if (getattr(maker, "__module__", None) or "").split(".")[0] == PACKAGE:
            continue
        try:
            files.add(Path(inspect.getfile(maker)).resolve())
        except (TypeError, OSError):  # typed at a prompt
            continue
    return sorted(files)


@cache
def file_hash(files: tuple[Path, ...]) -> str | None:
    """Six hexadecimal digits of a hash of files; None for none."""
    if not files:
        return None
    digest = sha256()
    for path in files:
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:6]


@cache
def versions_of(libraries: tuple[str, ...]) -> str | None:
    """`flashinfer-python 0.6.1`: those of the distributions that are here; None for none."""
    here = []
    for name in libraries:
        try:
            here.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(here) or None


def library_of(spec: Any, case: Any = None) -> str | None:
    """The libraries that a method or product runs, and those that a case takes (`libraries`), with their versions."""
    return versions_of((*getattr(spec.kind, "libraries", ()), *getattr(case, "libraries", ())))


def same_libraries(row: Row) -> bool:
    """Whether a row was measured with the torch, the Triton and the Python of this process.

    Of Python its minor version counts, which brings the text of prompts (`engine.prompt.english_text`).
    """
    same_python = row.python is None or row.python.split(".")[:2] == platform.python_version().split(".")[:2]
    return same_python and row.torch in (None, torch.__version__) and row.triton in (None, triton.__version__)


def same_origin(row: Row, spec: Any, case: Any, device: torch.device) -> bool:
    """Whether a row was measured by this code, these libraries and texts, on such a device. What it leaves open counts.

    `text_sources` of a case: what rows may say of the texts that it reads now.
    """
    texts = getattr(case, "text_sources", None)
    return (
        same_libraries(row)
        and row.source in (None, source_of(spec, case))
        and row.device in (None, device_name(device))
        and (row.source is None or not row.measured or row.library == library_of(spec, case))
        and (texts is None or row.text_source is None or row.text_source in texts)
    )
