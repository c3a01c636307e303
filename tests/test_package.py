"""What people install: the sdist holds what its tests need, the wheel all that the packages need (`nox -s package`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import virtualenv
from packaging.version import Version
from resa_bench.profiling.source import PACKAGES, package_version, source_state

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.package
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RESA_BENCH_COMMIT")}


def run(
    *command: str | Path, cwd: Path, statuses: tuple[int, ...] = (0,), timeout: float = 300, **variables: str
) -> str:
    """What a command prints; a status that is not expected shows all of it."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert result.returncode in statuses, result.stdout + result.stderr
    return result.stdout


def built(kind: str, source: Path, folder: Path) -> Path:
    """A `sdist` or a `wheel` of a source tree, by the build backend itself, without fetching anything."""
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(folder)!r}))"
    return folder / run(sys.executable, "-c", code, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files are left: dist/ of the session `package`."""
    folder = Path(os.environ.get("RESA_BENCH_DIST") or tmp_path_factory.mktemp("dist"))
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("resa_bench-*.whl"), *folder.glob("resa_bench-*.tar.gz")):
        old.unlink()
    return folder


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    """The sdist of this tree."""
    return built("sdist", ROOT, dist)


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's tree."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="module")
def wheel(unpacked: Path, dist: Path) -> Path:
    """The wheel, built from the sdist as installers do."""
    return built("wheel", unpacked, dist)


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment with the wheel alone; its dependencies are those of the one that runs this."""
    folder = tmp_path_factory.mktemp("environment")
    session = virtualenv.cli_run([str(folder), "--no-setuptools", "--no-periodic-update"])
    purelib = Path(session.creator.purelib)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    purelib.joinpath("dependencies.pth").write_text("\n".join(dependencies) + "\n")
    install = (session.creator.exe, "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    run(*install, cwd=folder)
    return Path(session.creator.bin_dir)


def tracked(*suffixes: str) -> set[str]:
    """Files of the packages that git knows, by how their names do not end."""
    files = run("git", "ls-files", "-z", *PACKAGES, cwd=ROOT).split("\0")
    return {file for file in files if file and not file.endswith(suffixes)}


def test_the_version_is_that_of_rows_and_of_the_tree(sdist: Path, wheel: Path) -> None:
    version = Version(str(package_version()))
    assert Version(sdist.name.removeprefix("resa_bench-").removesuffix(".tar.gz")) == version
    assert Version(wheel.name.split("-")[1]) == version


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"resa_bench/{file}" for file in tracked(".md")} <= names
    assert {f"resa_bench/{name}/py.typed" for name in PACKAGES} <= names
    assert not [name for name in names if not name.startswith("resa_bench")]


def test_the_long_description_has_absolute_links_alone(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = HeaderParser().parsestr(archive.read(name).decode())
    links = re.findall(r"\]\(([^)]+)\)", str(metadata.get_payload()))
    assert links
    assert [link for link in links if not link.startswith(("https://", "http://"))] == []
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "MIT"


def test_the_sdist_holds_the_tests_and_what_they_read(unpacked: Path) -> None:
    for file in run("git", "ls-files", "-z", "tests", "docs", cwd=ROOT).split("\0"):
        assert not file or (unpacked / file).is_file(), file
    for file in ("noxfile.py", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"):
        assert (unpacked / file).is_file(), file


def test_tests_run_from_the_sdist(unpacked: Path) -> None:
    """A fast part of them, which reads the tree's own files, without git."""
    folder = unpacked / "build" / "import" / "resa_bench"
    folder.mkdir(parents=True)
    for name in PACKAGES:
        (folder / name).symlink_to(unpacked / name)
    names = ("tests/test_source.py", "tests/test_project.py", "tests/test_rows.py")
    command = (sys.executable, "-m", "pytest", "--benchmark-disable", "-q", "-p", "no:cacheprovider", *names)
    assert " passed" in run(*command, cwd=unpacked, PYTHONPATH=str(folder.parent))


def test_the_installed_command_knows_its_version(bin_folder: Path, tmp_path: Path) -> None:
    assert run(bin_folder / "resa-bench", "--version", cwd=tmp_path).split() == ["resa-bench", str(package_version())]


def test_the_installed_doctor(bin_folder: Path, tmp_path: Path) -> None:
    assert "torch" in run(bin_folder / "resa-bench", "doctor", cwd=tmp_path)


def test_the_installed_suite_measures_a_case(bin_folder: Path, tmp_path: Path) -> None:
    """Rows say version and commit, though the environment lies in no checkout.

    On a busy machine a time may be refused (status 1): reads faster than the ceiling, which was measured meanwhile.
    """
    flags = ("--context", "1K", "--method", "resa-torch", "torch-dense", "--quick", "--no-plots", "--output", "rows")
    run(bin_folder / "resa-bench", "micro", *flags, cwd=tmp_path, statuses=(0, 1))
    code = (
        "from resa_bench.suites.core.results import read_rows; import pathlib, resa_bench.suites as s;"
        "rows = read_rows(pathlib.Path('rows/micro.jsonl'));"
        "print(rows[0].version, rows[0].commit, any(row.timed for row in rows), 'site-packages' in s.__file__)"
    )
    words = run(bin_folder / "python", "-c", code, cwd=tmp_path).split()
    assert words == [package_version(), source_state()[0], "True", "True"]
