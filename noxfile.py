"""The commands of the README. `nox --no-venv` runs the same sessions with what is installed, installing nothing."""

import os
import shutil
import sys
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["bench"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"  # pip brings what changed; `nox --reuse-venv never` makes the environment anew

ROOT = Path(__file__).parent
PACKAGES = ("kernels", "baselines", "profiling", "suites", "plots", "integrations")
PUBLISHED = (".md", ".png", ".svg", "")  # endings of what the site shows
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def _install(session: nox.Session, *extras: str) -> dict[str, str]:
    """Install the project with extras; without an environment of our own, make it importable. Gives the env to use."""
    if session.virtualenv.is_sandboxed:
        wanted = f".[{','.join(extras)}]" if extras else "."
        session.install("--no-compile", "-c", "constraints.txt", "-e", wanted)  # Python compiles what it imports, once
        return {"PYTHONDONTWRITEBYTECODE": ""}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(_links()), os.environ.get("PYTHONPATH"))))}


def _links() -> Path:
    """A folder that holds the import name: `resa_bench/` with a link to each package."""
    folder = ROOT / "build" / "import"
    (folder / "resa_bench").mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        link = folder / "resa_bench" / name
        if not link.exists():
            link.symlink_to(ROOT / name, target_is_directory=True)
    return folder


def _python(session: nox.Session) -> str:
    """The interpreter to call: the session's, or the one nox runs under."""
    return "python" if session.virtualenv.is_sandboxed else sys.executable


def _suite(session: nox.Session) -> None:
    """Run the command of the session's name with the session's arguments."""
    env = _install(session, *({session.name} & EXTRAS))
    command = [_python(session), "-m", "resa_bench.suites", session.name]
    session.run(*command, *session.posargs, env=env, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """The main job: measure, print tables, draw plots, write report.html. Takes every flag of `resa-bench bench`."""
    _suite(session)


def _help_of(suite: Path) -> str:
    """The first line of a suite's own description: the package is not installed where this runs."""
    text = (suite / "__init__.py").read_text().strip().strip('"').splitlines()[0]
    return f"{text} Takes every flag of `resa-bench {suite.name}`."


def _add_suite(folder: Path) -> None:
    """A session for a suite: each folder that brings a command has one."""

    def run(session: nox.Session) -> None:
        _suite(session)

    run.__doc__ = _help_of(folder)
    nox.session(run, name=folder.name)


for suite_file in sorted((ROOT / "suites").glob("*/suite.py")):
    _add_suite(suite_file.parent)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests; on a CPU the kernels run in Triton's interpreter. Arguments go to pytest."""
    env = _install(session, "test", "maths", "browser")
    cores = os.cpu_count() or 1
    workers = min(4, cores)
    env.setdefault("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(cores // workers)))  # no thread too many
    env["PYTHONDONTWRITEBYTECODE"] = ""  # else each of the processes that tests start compiles all files again
    command = [_python(session), "-m", "pytest", "--benchmark-disable", "-n", str(workers), "--dist", "loadgroup"]
    session.run(*command, *session.posargs, env=env, external=True)


FUZZ = {"COMMANDS": "1000", "FILES": "200", "PORTABLE": "1000", "KERNELS": "100", "KILLS": "30"}
"""How much the fuzz session draws of each kind (tests/fuzz_seeds.py)."""


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random commands, files and settings, suites killed at random moments: hours. Arguments go to pytest."""
    env = _install(session, "test", "maths")
    for kind, number in FUZZ.items():
        name = f"RESA_BENCH_FUZZ_{kind}"
        env[name] = os.environ.get(name, number)
    files = [f"tests/test_{name}.py" for name in ("fuzz_commands", "model_malformed", "fuzz_settings", "fuzz_kills")]
    command = [_python(session), "-m", "pytest", "--benchmark-disable", "--timeout", "7200", *files]
    session.run(*command, *session.posargs, env=env, external=True)


@nox.session
def benchmark(session: nox.Session) -> None:
    """The micro suite under pytest-benchmark (`pytest --benchmark-only`). Arguments go to pytest."""
    env = _install(session, "test")
    session.run(
        _python(session),
        "-m",
        "pytest",
        "--benchmark-only",
        "tests/test_benchmark_micro.py",
        *session.posargs,
        env=env,
        external=True,
    )


@nox.session
def profile(session: nox.Session) -> None:
    """A case under Nsight Systems: nox -s profile -- CASE --method M. `-- ncu CASE` takes Nsight Compute."""
    env = _install(session)
    tool = [] if session.posargs[:1] in (["nsys"], ["ncu"], ["run"]) else ["nsys"]
    session.run(_python(session), "-m", "resa_bench.suites", "profile", *tool, *session.posargs, env=env, external=True)


@nox.session
def plots(session: nox.Session) -> None:
    """Draw the figures of result files: nox -s plots -- results/h200"""
    _suite(session)


@nox.session
def report(session: nox.Session) -> None:
    """One page of result files: nox -s report -- results/h200 -o report.html"""
    _suite(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Figures and numbers of README and docs, from the result files. `-- --check` says what differs from its rows."""
    env = _install(session)
    session.run(_python(session), "-m", "resa_bench.plots.pages", *session.posargs, env=env, external=True)


@nox.session
def site(session: nox.Session) -> None:
    """The docs as a site in build/site (mkdocs-material). `-- serve` shows it while you write."""
    if session.virtualenv.is_sandboxed:
        session.install("mkdocs-material>=9.5")
    pages = ROOT / "build" / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for name in ("README.md", "LICENSE", "docs", "results"):
        for path in [ROOT / name, *(ROOT / name).rglob("*")]:
            if path.is_file() and path.suffix in PUBLISHED:
                copy = pages / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    words = session.posargs or ["build", "--strict"]
    session.run(_python(session), "-m", "mkdocs", *words, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's checks and format, mypy over the packages and the tests, and the arrows between packages."""
    env = _install(session, "lint", "test")
    run = [_python(session), "-m"]
    session.run(*run, "ruff", "check", *session.posargs, ".", env=env, external=True)
    session.run(*run, "ruff", "format", "--check", ".", env=env, external=True)
    _types(session, env)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_links()), env.get("PYTHONPATH"))))
    check_arrows = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    session.run(_python(session), "-c", check_arrows, env=env, external=True)  # its module does nothing under -m


@nox.session
def types(session: nox.Session) -> None:
    """Mypy alone, over the packages and the tests: seconds from its cache (the pre-push hook)."""
    _types(session, _install(session, "lint", "test"))


def _types(session: nox.Session, env: dict[str, str]) -> None:
    _links()  # where mypy finds the import name
    packages = [part for name in PACKAGES for part in ("-p", f"resa_bench.{name}")]
    for arguments in (packages, ["tests"]):
        session.run(_python(session), "-m", "mypy", *arguments, env=env, external=True)


@nox.session
def package(session: nox.Session) -> None:
    """The sdist and the wheel, built into dist/, installed and tried in environments of their own."""
    env = _install(session, "test") | {"RESA_BENCH_DIST": str(ROOT / "dist")}
    command = [_python(session), "-m", "pytest", "--benchmark-disable", "-m", "package", "tests/test_package.py"]
    session.run(*command, *session.posargs, env=env, external=True)


@nox.session
def sanitize(session: nox.Session) -> None:
    """compute-sanitizer's memcheck and racecheck over the kernel tests marked for them (needs a GPU)."""
    env = _install(session, "test")
    for tool in ("memcheck", "racecheck"):
        checker = ["compute-sanitizer", "--tool", tool, "--target-processes", "all", "--error-exitcode", "1"]
        checker += ["--kernel-name-exclude", "kns=cudnn"]  # racecheck finds hazards in cuDNN's own kernel
        checker += ["--report-api-errors", "no"]  # cuda-bindings asks the driver for functions that it may not have
        suite = [_python(session), "-m", "pytest", "--benchmark-disable", "-m", "sanitizer", *session.posargs]
        session.run(*checker, *suite, env=env, external=True)
