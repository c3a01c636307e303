"""The project's own files: workflows, forms, hooks, citation and metadata agree with one another."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from resa_bench.profiling.source import PACKAGES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
URL = PROJECT["project"]["urls"]["Repository"]
NOXFILE = (ROOT / "noxfile.py").read_text()
YAML = sorted(
    path
    for pattern in (".github/**/*.yml", ".github/**/*.yaml", ".pre-commit-config.yaml", "CITATION.cff")
    for path in ROOT.glob(pattern)
)


def read(name: str) -> dict[Any, Any]:
    content = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(content, dict)
    return content


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yaml_is_read_and_no_key_comes_twice(path: Path) -> None:
    class Unique(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{path.name}: a key twice among {keys}"
            return super().construct_mapping(node, deep)

    assert yaml.load(path.read_text(), Loader=Unique)


@pytest.mark.parametrize("name", ["ci", "gpu"])
def test_workflows_name_sessions_that_there_are(name: str) -> None:
    workflow = read(f".github/workflows/{name}.yml")
    sessions = [s for step in steps(workflow) for s in re.findall(r"nox -s (\w+)", step.get("run", ""))]
    suites = {path.parent.name for path in (ROOT / "suites").glob("*/suite.py")}
    assert sessions
    for session in sessions:
        assert f"def {session}(" in NOXFILE or session in suites
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        assert "@" in step.get("uses", "@")
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert set(job.get("needs", [])) <= set(workflow["jobs"]) or job["needs"] in workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}


def test_every_python_that_the_metadata_names_is_tested() -> None:
    matrix = read(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python-version"]
    named = [c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert matrix == named
    least, below = re.fullmatch(r">=(3\.\d+),<(3\.\d+)", PROJECT["project"]["requires-python"]).groups()  # type: ignore[union-attr]
    assert (least, below) == (named[0], f"3.{int(named[-1].split('.')[1]) + 1}")


def test_the_gpu_lane_starts_by_hand_on_a_runner_of_the_owners() -> None:
    """Never for a pull request: it would run a stranger's code there."""
    workflow = read(".github/workflows/gpu.yml")
    assert set(workflow[True]) == {"workflow_dispatch"}  # YAML 1.1 reads `on` as true
    assert {tuple(job["runs-on"]) for job in workflow["jobs"].values()} == {("self-hosted", "gpu")}
    for step in steps(workflow):  # an input is data: it reaches a script by the environment alone
        assert "${{ inputs" not in step.get("run", "")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("input", "textarea", "dropdown", "markdown")
        assert part["attributes"]["label"]
        assert ("options" in part["attributes"]) == (part["type"] == "dropdown")


def test_hooks_run_the_versions_that_lint_runs() -> None:
    pinned = dict(re.findall(r"^(\w[\w.-]*)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {"ruff-check", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        assert hook.get("additional_dependencies", [f"ruff=={pinned['ruff']}"]) == [f"ruff=={pinned['ruff']}"]


def test_the_citation() -> None:
    """What CFF 1.2.0 requires; cffconvert says that all of it is valid."""
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", PROJECT["project"]["license"])
    assert citation["repository-code"] == URL
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_one_address_in_all_texts() -> None:
    """`https://github.com/OWNER/resa-bench` stands in several files; pyproject.toml says which."""
    for name in ("README.md", "CONTRIBUTING.md", "DEVELOPERS.md", "CHANGELOG.md", "pyproject.toml", "CITATION.cff"):
        addresses = re.findall(r"https://github\.com/[\w.-]+/resa-bench", (ROOT / name).read_text())
        assert set(addresses) <= {URL}, name


def test_the_changelog_keeps_its_format() -> None:
    """Keep a Changelog 1.1.0: unreleased first, then versions by date, each with known kinds of change."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    dates = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d)", release) for release in releases]
    assert all(dates)
    days = [date.fromisoformat(match[1]) for match in dates if match]
    assert days == sorted(days, reverse=True)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_packages_are_the_same_everywhere_and_typed() -> None:
    in_noxfile = re.search(r"^PACKAGES = \(([^)]*)\)", NOXFILE, re.MULTILINE)
    assert in_noxfile
    assert tuple(re.findall(r'"(\w+)"', in_noxfile[1])) == PACKAGES
    assert PROJECT["tool"]["importlinter"]["root_packages"] == [f"resa_bench.{name}" for name in PACKAGES]
    for name in PACKAGES:
        assert (ROOT / name / "py.typed").is_file()
        assert (ROOT / name / "__init__.py").is_file()


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "DEVELOPERS.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link
