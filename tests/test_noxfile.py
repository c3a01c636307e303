"""Environments of the sessions: kept between runs, installed through the constraints, compiled as they are imported."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nox
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("our_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """Writes down what a session installs and runs."""

    posargs = ("--quick",)

    def __init__(self, name: str, *, sandboxed: bool) -> None:
        self.name, self.virtualenv = name, SimpleNamespace(is_sandboxed=sandboxed)
        self.installs: list[tuple[str, ...]] = []
        self.runs: list[tuple[tuple[str, ...], dict[str, str]]] = []

    def install(self, *arguments: str) -> None:
        self.installs.append(arguments)

    def run(self, *command: str, env: dict[str, str], **_: Any) -> None:
        self.runs.append((command, env))


@pytest.mark.parametrize(
    ("name", "wanted"), [("bench", "."), ("tests", ".[test,maths,browser]"), ("linear", ".[linear]"), ("micro", ".")]
)
def test_a_session_installs_its_extras_through_the_constraints(noxfile: ModuleType, name: str, wanted: str) -> None:
    session = Session(name, sandboxed=True)
    (getattr(noxfile, name) if name in ("bench", "tests") else noxfile._suite)(session)
    assert session.installs == [("--no-compile", "-c", "constraints.txt", "-e", wanted)]


@pytest.mark.parametrize("name", ["bench", "tests"])
def test_what_pip_leaves_uncompiled_is_compiled_once(noxfile: ModuleType, name: str) -> None:
    """The variable set, each of the processes that a session starts would compile torch again."""
    session = Session(name, sandboxed=True)
    getattr(noxfile, name)(session)
    ((command, env),) = session.runs
    assert (command[0], command[-1]) == ("python", "--quick")
    assert env["PYTHONDONTWRITEBYTECODE"] == ""


def test_without_an_environment_nothing_is_installed(noxfile: ModuleType) -> None:
    session = Session("bench", sandboxed=False)
    noxfile.bench(session)
    assert session.installs == []
    ((_, env),) = session.runs
    folder = Path(env["PYTHONPATH"].split(os.pathsep)[0]) / "resa_bench"
    assert sorted(link.name for link in folder.iterdir()) == sorted(noxfile.PACKAGES)


def test_environments_are_kept(noxfile: ModuleType) -> None:
    """Without this, each run of a command installs torch again."""
    assert nox.options.reuse_venv == "yes"
