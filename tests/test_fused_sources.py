"""No CUDA file of the fused step is forgotten: by the compiler, the keys of kernels, rows, or what people install."""

from __future__ import annotations

import re
import runpy
import shutil
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from resa_bench.kernels.cuda import nvrtc
from resa_bench.kernels.fused import compiler
from resa_bench.profiling.source import SOURCES

ROOT = Path(__file__).parent.parent
FILES = sorted(path.name for path in compiler.FOLDER.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc"))
SHARED = {nvrtc.DEVICE_WORDS.name}  # with other kernels; it is in a folder of its own


def included(name: str) -> set[str]:
    """The files that a file of the folder includes."""
    return set(re.findall(r'^#include "(.+)"', (compiler.FOLDER / name).read_text(), re.MULTILINE)) - SHARED


def test_includes_go_one_way_and_reach_every_file() -> None:
    order = list(TopologicalSorter({name: included(name) for name in FILES}).static_order())
    assert set(order) == set(FILES)
    reached, ahead = {compiler.MAIN}, [compiler.MAIN]
    while ahead:
        ahead += included(ahead.pop()) - reached
        reached |= set(ahead)
    assert reached == set(FILES), "step.cu is all that is compiled"


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_another_source(name: str, tmp_path: Path) -> None:
    """By the hash in the keys of compiled kernels, and by what rows hash."""
    same, changed = (shutil.copytree(compiler.FOLDER, tmp_path / folder) for folder in ("same", "changed"))
    with (changed / name).open("a") as file:
        file.write("// other\n")
    assert nvrtc.source_hash(changed) != nvrtc.source_hash(compiler.FOLDER) == nvrtc.source_hash(same)
    assert Path(name).suffix in SOURCES


def test_the_wheel_holds_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """By setup.py's own patterns, without a build (tests/test_package.py builds one)."""
    setuptools = pytest.importorskip("setuptools")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    patterns = asked["package_data"]["resa_bench.kernels.fused"]
    assert [name for name in FILES if not any(fnmatch(name, pattern) for pattern in patterns)] == []
