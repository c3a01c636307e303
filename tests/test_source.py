"""Which sources a number comes from: checkouts of this project, copies inside other repositories, wheels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version
from resa_bench.profiling import device, source
from resa_bench.profiling.source import (
    BUILT,
    COMMIT_VARIABLE,
    built_stamp,
    package_version,
    source_hash,
    source_state,
    source_tag,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROJECT = '[project]\nname = "resa-bench"\n'


def git(folder: Path, *arguments: str) -> str:
    words = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def commit_all(folder: Path) -> str:
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD")


def lay_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages, one file each, under `root`; this process seems to run from them."""
    for package in source.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "code.py").write_text(f"{package}\n")
    monkeypatch.setattr(source, "__file__", str(root / "profiling" / "source.py"))
    return root


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variable nor the installed package of the machine that runs the tests answers."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of this project with one commit."""
    root = lay_out(tmp_path / "own", monkeypatch)
    (root / "pyproject.toml").write_text(PROJECT)
    commit_all(root)
    return root


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package in the ignored environment of another project, which is a repository."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\n')
    (tmp_path / ".gitignore").write_text("site\n")
    commit_all(tmp_path)
    return lay_out(tmp_path / "site" / "resa_bench", monkeypatch)


def test_the_package_of_these_tests_has_a_version() -> None:
    Version(str(package_version()))  # raises where it is none by PEP 440


@pytest.mark.parametrize(
    ("tags", "version"),
    [
        pytest.param([], r"0\.1\.0\.dev3\+gHEAD", id="no-tag"),
        pytest.param(["v1.2.3"], r"1\.2\.4\.dev2\+gHEAD", id="two-commits-later"),
        pytest.param(["v2.0rc1"], r"2\.0rc2\.dev2\+gHEAD", id="after-a-candidate"),
        pytest.param(["v3"], r"4\.dev2\+gHEAD", id="one-number"),
        pytest.param(["results-2026"], r"0\.1\.0\.dev3\+gHEAD", id="a-tag-of-something-else"),
    ],
)
def test_the_version_follows_from_tags(checkout: Path, tags: list[str], version: str) -> None:
    for tag in tags:
        git(checkout, "tag", tag)
    for number in range(2):
        (checkout / "kernels" / "code.py").write_text(f"{number}\n")
        commit_all(checkout)
    pattern = version.replace("HEAD", git(checkout, "rev-parse", "HEAD")[:10])
    assert re.fullmatch(pattern, str(package_version()))
    (checkout / "kernels" / "code.py").write_text("changed\n")
    assert re.fullmatch(pattern + r"\.dirty", str(package_version()))
    assert Version(str(package_version()))


def test_the_version_at_a_tag(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    assert package_version() == "1.2.3"
    (checkout / "kernels" / "code.py").write_text("changed\n")
    head = git(checkout, "rev-parse", "HEAD")[:10]
    assert package_version() == f"1.2.4.dev0+g{head}.dirty"
    assert Version("1.2.3") < Version(f"1.2.4.dev0+g{head}.dirty") < Version("1.2.4")


def test_the_version_of_an_unpacked_sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(tmp_path, monkeypatch)
    (root / "pyproject.toml").write_text(PROJECT)
    assert package_version() == "0.1.0.dev0"
    (root / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: resa-bench\nVersion: 7.8.9\n\ntext\n")
    assert package_version() == "7.8.9"
    (root / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: other\nVersion: 7.8.9\n\ntext\n")
    assert package_version() == "0.1.0.dev0"


def test_the_version_of_an_exported_tree_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay_out(tmp_path, monkeypatch)
    (root / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setenv(COMMIT_VARIABLE, COMMIT)
    assert package_version() == "0.1.0.dev0+g0123456789"


def test_device_offers_them_too() -> None:
    assert device.source_state is source_state
    assert device.source_tag is source_tag


@pytest.mark.parametrize(
    ("variable", "state", "tag"),
    [
        pytest.param(COMMIT, (COMMIT, False), r"0123456789", id="clean"),
        pytest.param(f"{COMMIT}-dirty", (COMMIT, True), r"0123456789-dirty-[0-9a-f]{6}", id="dirty"),
    ],
)
def test_the_variable_names_the_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, variable: str, state: tuple[str, bool], tag: str
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, variable)
    assert source_state() == state
    assert re.fullmatch(tag, source_tag())


def test_a_clean_checkout(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert source_state() == (head, False)
    assert (source_tag(), package_version()) == (head[:10], f"0.1.0.dev1+g{head[:10]}")


@pytest.mark.parametrize("name", ["kernels/code.py", "kernels/a method.py", "kernels/step.cu"])
def test_a_changed_or_new_source_is_another_tag(checkout: Path, name: str) -> None:
    head, clean = git(checkout, "rev-parse", "HEAD"), source_tag()
    (checkout / name).write_text("first\n")
    first = source_tag()
    (checkout / name).write_text("second\n")
    assert source_state() == (head, True)
    assert len({clean, first, source_tag()}) == 3
    assert re.fullmatch(rf"{head[:10]}-dirty-[0-9a-f]{{6}}", first)


def test_results_beside_the_sources_are_no_change(checkout: Path) -> None:
    (checkout / "runs").mkdir()
    (checkout / "runs" / "micro.jsonl").write_text("{}\n")
    assert source_state()[1] is False


def test_another_projects_repository_is_not_asked(installed: Path) -> None:
    assert source_state() == (None, None)
    before = source_tag()
    (installed / "kernels" / "code.py").write_text("another suite\n")
    assert source_tag() != before
    assert re.fullmatch(r"unversioned-[0-9a-f]{12}", before)


def test_a_vendored_copy_is_not_the_repository_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one with its pyproject.toml, tracked by the repository."""
    root = lay_out(tmp_path / "vendored", monkeypatch)
    (root / "pyproject.toml").write_text(PROJECT)
    commit_all(tmp_path)
    assert source_state() == (None, None)
    assert source_tag() == f"0.1.0.dev0-{source_hash()}"


def test_the_root_of_a_repository_of_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, monkeypatch)
    (tmp_path / "pyproject.toml").write_text(PROJECT.replace("resa-bench", "other"))
    commit_all(tmp_path)
    assert source_state() == (None, None)


def test_a_linked_folder_leads_to_its_checkout(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "import").mkdir()
    (tmp_path / "import" / "profiling").symlink_to(checkout / "profiling")
    monkeypatch.setattr(source, "__file__", str(tmp_path / "import" / "profiling" / "source.py"))
    (checkout / "profiling" / "source.py").touch()
    assert source_state()[0] == git(checkout, "rev-parse", "HEAD")


def test_a_hook_of_another_repository(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git names the repository that a hook runs for in GIT_DIR."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    commit_all(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert source_state() == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give a folder away")
def test_a_checkout_of_another_users(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 12345, 12345)
    with pytest.raises(subprocess.CalledProcessError):  # git refuses
        git(checkout, "status")
    assert source_state() == (head, False)
    (checkout / "kernels" / "code.py").write_text("changed\n")
    assert source_state() == (head, True)


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
@pytest.mark.parametrize("linked", [False, True], ids=["checkout", "worktree"])
@pytest.mark.parametrize("detached", [False, True], ids=["branch", "detached"])
def test_without_git_its_files_tell_the_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, linked: bool, detached: bool
) -> None:
    """Whether the sources were changed is then not known, and the tag names their hash."""
    head = git(checkout, "rev-parse", "HEAD")
    if linked:
        git(checkout, "worktree", "add", "-q", str(tmp_path / "linked"))
        checkout = tmp_path / "linked"
        monkeypatch.setattr(source, "__file__", str(checkout / "profiling" / "source.py"))
    if detached:
        git(checkout, "checkout", "-q", "--detach")
    if packed:
        git(checkout, "pack-refs", "--all")
    monkeypatch.setenv("PATH", "")
    assert source_state() == (head, None)
    assert source_tag() == f"{head[:10]}-{source_hash()}"


@pytest.mark.parametrize("breakage", ["empty", "torn reference", "no commit"])
def test_a_repository_that_says_nothing(checkout: Path, breakage: str) -> None:
    shutil.rmtree(checkout / ".git")
    if breakage == "no commit":
        git(checkout, "init", "-q")
    else:
        (checkout / ".git").mkdir()
        (checkout / ".git" / "HEAD").write_bytes(b"" if breakage == "empty" else b"ref: refs/heads/\xff")
    assert source_state() == (None, None)
    assert source_tag() == f"0.1.0.dev0-{source_hash()}"


def test_a_built_wheel_knows_its_commit(checkout: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    stamp = installed / "profiling" / BUILT
    with monkeypatch.context() as building:
        building.setattr(source, "__file__", str(checkout / "profiling" / "source.py"))
        stamp.write_text(built_stamp())
    assert source_state() == (head, False)
    assert source_tag() == head[:10]
    (installed / "kernels" / "code.py").write_text("changed\n")
    assert source_state() == (head, True)


@pytest.mark.parametrize("stamp", ["", "one two", "unknown unknown 0"])
def test_a_stamp_that_says_nothing(installed: Path, stamp: str) -> None:
    (installed / "profiling" / BUILT).write_text(stamp)
    assert source_state() == (None, None)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["this-folder", "another-copy"])
def test_installed_from_a_repositorys_address(
    installed: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    origin = json.dumps({"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": COMMIT}})
    place = installed.parent.parent if elsewhere else installed.parent
    distribution = SimpleNamespace(
        version="7.8.9", read_text=lambda name: origin, locate_file=lambda name: place / name
    )
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)
    assert source_state() == (None if elsewhere else COMMIT, None)
    assert package_version() == (None if elsewhere else "7.8.9")
    assert source_tag() == f"{'unversioned' if elsewhere else COMMIT[:10]}-{source_hash()}"


def test_the_hash_is_of_sources_alone(installed: Path) -> None:
    before = source_hash()
    (installed / "kernels" / "__pycache__").mkdir()
    (installed / "kernels" / "__pycache__" / "code.pyc").write_text("x")
    (installed / "kernels" / "notes.md").write_text("x")
    assert source_hash() == before
    (installed / "kernels" / "code.py").rename(installed / "kernels" / "renamed.py")
    assert source_hash() != before
