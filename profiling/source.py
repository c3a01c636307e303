"""Which sources a number comes from: the package's version, its own commit and state, and a hash of its files.

A package may lie inside another project's repository (its environment, a vendored copy): that commit says nothing.
So git is asked only where the package is a checkout of its own: the folder that holds it has this project's
pyproject.toml and a `.git`. Everything else is told apart by the hash.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from hashlib import sha256
from importlib import metadata
from pathlib import Path

COMMIT_VARIABLE = "RESA_BENCH_COMMIT"
"""Names the commit of an exported tree (a container, a remote machine), with `-dirty` at its end if it was changed."""

DISTRIBUTION = "resa-bench"
PACKAGES = ("kernels", "baselines", "profiling", "suites", "plots")
SOURCES = (".py", ".cu", ".cuh")
NO_SOURCES = ":(exclude)results"
"""What git is not asked about: a run that publishes result files does not change what it measures."""
BUILT = "built_commit.txt"
"""Beside this file in a built wheel, written when it is built: what `built_stamp` gives."""


def source_state() -> tuple[str | None, bool | None]:
    """The package's own commit, and whether its sources were changed since; None for what is not known.

    In this order: the variable RESA_BENCH_COMMIT, git or its files in a checkout of its own, what the wheel was built
    from, what pip installed it from. Another project's repository around it is not asked.
    """
    variable = os.environ.get(COMMIT_VARIABLE)
    if variable:
        return variable.removesuffix("-dirty"), variable.endswith("-dirty")
    root = _root()
    if _is_checkout(root):
        return _state_by_git(root) or (_head(root / ".git"), None)
    return _built_state() or (_installed_commit(), None)


def source_hash() -> str:
    """Twelve hexadecimal digits of a hash of the package's source files: their paths within the package and content."""
    root, digest = _root(), sha256()
    for folder in PACKAGES:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def source_tag() -> str:
    """A name for these sources that is another one once they change, short enough for a folder.

    The commit's first ten digits where it says everything; with the hash of the sources where they were changed since
    or might have been; version and hash where there is no commit.
    """
    commit, dirty = source_state()
    if commit is None:
        return f"{package_version() or 'unversioned'}-{source_hash()}"
    if dirty is None:
        return f"{commit[:10]}-{source_hash()}"
    return f"{commit[:10]}-dirty-{source_hash()[:6]}" if dirty else commit[:10]


def package_version() -> str | None:
    """The package's version, from the pyproject.toml beside it or as installed; None for a mere copy of files."""
    project = _project(_root())
    version = project.get("version")
    if project.get("name") == DISTRIBUTION and isinstance(version, str):
        return version
    distribution = _distribution()
    return None if distribution is None else distribution.version


def built_stamp() -> str:
    """A wheel's `built_commit.txt`: commit or `unknown`; `clean`, `dirty` or `unknown`; the hash of the sources."""
    commit, dirty = source_state()
    state = "unknown" if dirty is None else "dirty" if dirty else "clean"
    return f"{commit or 'unknown'} {state} {source_hash()}\n"


def _root() -> Path:
    """The folder that holds the packages, links resolved."""
    return Path(__file__).resolve().parent.parent


def _project(root: Path) -> dict[str, object]:
    """The `project` table of a pyproject.toml; empty where there is none that can be read."""
    try:
        table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _is_checkout(root: Path) -> bool:
    return (root / ".git").exists() and _project(root).get("name") == DISTRIBUTION


def _state_by_git(root: Path) -> tuple[str, bool] | None:
    """Commit and state as git tells them; None where there is no git, or it refuses, or nothing is committed."""
    # Inside a hook GIT_DIR and its like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Git refuses another user's folder, whose configuration may run programs; the folder's code runs here anyway.
    git = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-c", "core.fsmonitor=false", "-C", str(root)]

    def ask(*arguments: str) -> str:
        return subprocess.run(
            [*git, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=20,
            env=environment,
        ).stdout

    try:
        if Path(ask("rev-parse", "--show-toplevel").removesuffix("\n")).resolve() != root:
            return None
        commit = ask("rev-parse", "HEAD").strip()
        changes = ask("status", "--porcelain", "--untracked-files=all", "-z", "--", ".", NO_SOURCES).split("\0")
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: a file name that is no text
        return None
    # A new source file may be a new method; other new files (results, notes) change nothing.
    return commit, any(change.endswith(SOURCES) or not change.startswith("??") for change in changes if change)


def _head(git: Path) -> str | None:
    """The commit that is checked out, read from git's files; None where they do not say."""
    try:
        if git.is_file():  # a linked worktree or a submodule
            git = git.parent / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref:"):
            reference = head.removeprefix("ref:").strip()
            loose = [folder / reference for folder in (git, common) if (folder / reference).is_file()]
            head = loose[0].read_text(encoding="utf-8").strip() if loose else _packed(common, reference)
    except (OSError, ValueError):
        return None
    return head if len(head) >= 40 and all(digit in "0123456789abcdef" for digit in head) else None


def _packed(common: Path, reference: str) -> str:
    """A reference's commit in `packed-refs`; empty where it is not there."""
    lines = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), "")


def _built_state() -> tuple[str, bool | None] | None:
    """What the wheel was built from; sources that differ from the stamp's were changed since."""
    try:
        commit, state, stamped_hash = (Path(__file__).resolve().parent / BUILT).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    if commit == "unknown":
        return None
    changed = state == "dirty" or stamped_hash != source_hash()
    return commit, True if changed else None if state == "unknown" else False


def _distribution() -> metadata.Distribution | None:
    """What an installer says about this very folder; None where another copy, or none, is installed."""
    try:
        distribution = metadata.distribution(DISTRIBUTION)
        here = Path(str(distribution.locate_file("resa_bench"))).resolve() == _root()
    except (metadata.PackageNotFoundError, OSError):
        return None
    return distribution if here else None


def _installed_commit() -> str | None:
    """The commit that the package was installed from, where that was a repository's address (PEP 610)."""
    distribution = _distribution()
    try:
        origin = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}")
        commit = origin["vcs_info"]["commit_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None
