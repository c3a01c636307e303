"""Which sources a number comes from: the package's version, its own commit and state, and a hash of its files.

The version follows from git's tags (`v1.2.3`), for rows and for a build alike: setup.py asks `package_version`, too. So
this file imports nothing but the standard library, and names the folders that a wheel holds.

A package may lie inside another project's repository (its environment, a vendored copy): that commit says nothing.
So git is asked only where the package is a checkout of its own: the folder that holds it has this project's
pyproject.toml and a `.git`. Everything else is told apart by the hash.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from email.parser import HeaderParser
from hashlib import sha256
from importlib import metadata
from pathlib import Path

FIRST_VERSION = "0.1.0"
"""What is in the making as long as no tag names a version."""

COMMIT_VARIABLE = "RESA_BENCH_COMMIT"
"""Names the commit of an exported tree (a container, a remote machine), with `-dirty` at its end if it was changed."""

DISTRIBUTION = "resa-bench"
PACKAGES = ("kernels", "baselines", "profiling", "suites", "plots", "integrations")
"""The folders at the top: packages of the import name `resa_bench`."""
SOURCES = (".py", ".cu", ".cuh", ".json")
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
    """The package's version (PEP 440): by the tags of a checkout of its own, else as it was packed or installed.

    `1.2.3` at the tag `v1.2.3`; `1.2.4.dev5+g0123456789` five commits later, with `.dirty` at its end where sources
    were changed. None for a mere copy of the packages.
    """
    root = _root()
    if _is_checkout(root):
        return _version_by_git(root)
    if packed := _packed_version(root):
        return packed
    if distribution := _distribution():
        return distribution.version
    return _in_the_making(0, source_state()[0]) if _is_project(root) else None


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


def _is_project(root: Path) -> bool:
    return _project(root).get("name") == DISTRIBUTION


def _is_checkout(root: Path) -> bool:
    return (root / ".git").exists() and _is_project(root)


def _version_by_git(root: Path) -> str:
    """The version by the nearest tag; without tags, or without git, what is in the making."""
    commit, dirty = source_state()
    try:
        described = _ask_git(root, "describe", "--tags", "--long", "--match", "v[0-9]*")
        tag, distance, _ = described.strip().removeprefix("v").rsplit("-", 2)
        following = _next_version(tag)
        return tag if distance == "0" and not dirty else _in_the_making(int(distance), commit, dirty, following)
    except (OSError, ValueError, subprocess.SubprocessError):  # no tag, or no git
        pass
    try:
        return _in_the_making(int(_ask_git(root, "rev-list", "--count", "HEAD")), commit, dirty)
    except (OSError, ValueError, subprocess.SubprocessError):
        return _in_the_making(0, commit, dirty)


def _in_the_making(commits: int, commit: str | None, dirty: bool | None = False, version: str = FIRST_VERSION) -> str:
    """A version before `version`: so many commits after the last one."""
    local = "+g" + commit[:10] + (".dirty" if dirty else "") if commit else ""
    return f"{version}.dev{commits}{local}"


def _next_version(tag: str) -> str:
    """`1.2.4` after `1.2.3`, `2.0rc2` after `2.0rc1`. Raises ValueError for a tag that is no version."""
    parts = re.fullmatch(r"((?:\d+\.)*(?:\d+(?:a|b|rc|\.post))?)(\d+)", tag)
    if parts is None:
        raise ValueError(f"tag v{tag}: expected a version, such as v1.2.3 or v1.2.3rc1")
    return f"{parts[1]}{int(parts[2]) + 1}"


def _packed_version(root: Path) -> str | None:
    """The version that an unpacked sdist says in its PKG-INFO; None where there is none of this project's."""
    try:
        headers = HeaderParser().parsestr((root / "PKG-INFO").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return headers["Version"] if headers["Name"] == DISTRIBUTION else None


def _ask_git(root: Path, *arguments: str) -> str:
    """What git prints. Raises OSError, SubprocessError or ValueError (a file name that is no text)."""
    # Inside a hook GIT_DIR and its like name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Git refuses another user's folder, whose configuration may run programs; the folder's code runs here anyway.
    git = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-c", "core.fsmonitor=false", "-C", str(root)]

    return subprocess.run(
        [*git, *arguments], capture_output=True, text=True, errors="replace", check=True, timeout=20, env=environment
    ).stdout


def _state_by_git(root: Path) -> tuple[str, bool] | None:
    """Commit and state as git tells them; None where there is no git, or it refuses, or nothing is committed."""
    try:
        if Path(_ask_git(root, "rev-parse", "--show-toplevel").removesuffix("\n")).resolve() != root:
            return None
        commit = _ask_git(root, "rev-parse", "HEAD").strip()
        changes = _ask_git(root, "status", "--porcelain", "--untracked-files=all", "-z", "--", ".", NO_SOURCES).split(
            "\0"
        )
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
