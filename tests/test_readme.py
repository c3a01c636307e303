"""README and docs keep their word: their commands exist and run, their code works, the front page is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench import kernels
from resa_bench.kernels import method as registry
from resa_bench.suites.core.plugins import VARIABLE
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import dense_exact
from resa_bench.suites.micro.inputs import make_inputs
from resa_bench.suites.micro.run import prepare

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOLD = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/results").glob("*.md"))]
"""Pages that tell people what to do; notes tell what was done."""


PUBLISHED = (".md", ".png", ".svg", "")  # endings that nox -s site takes over
# The tests may run under the interpreter; the commands must not: it would time interpreted kernels.
PLAIN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def blocks(language: str, *pages: Path) -> list[str]:
    by_page = (re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in pages or TOLD)
    return [block for of_page in by_page for block in of_page]


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {"README.md"} | {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}


def test_links_lead_somewhere() -> None:
    for page in [*TOLD, *sorted((ROOT / "docs/notes").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if link.startswith(("http://", "https://", "#")):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path
            assert target.exists(), f"{page.name}: {link}"
            assert target.is_dir() or target.suffix in PUBLISHED, f"{page.name}: {link} is not on the site"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_example_method_registers_and_passes_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in blocks("python") if "@register(" in block]
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    exec(compile(example, "docs/adding.md", "exec"), {"__name__": "readme_example"})
    assert "written-out" in kernels.registered()
    case = Case("tiny", ModelShape(4, 2, 64), 2, 100, dtype="fp32")
    inputs = make_inputs(case, torch.device("cpu"), 4)
    checked = prepare(MethodSpec("written-out"), case, inputs, dense_exact(inputs), torch.device("cpu"))
    assert [stage.name for stage in checked.stages] == ["append", "attend"]
    assert checked.check.budget_used <= 1


def test_library_snippet_runs() -> None:
    (snippet,) = [block for block in blocks("python") if "KVCache.allocate" in block]
    names: dict[str, Any] = {}
    exec(compile(snippet, "docs/library.md", "exec"), names)
    assert names["out"].shape == (1, 28, 128)
    assert bool(names["out"].isfinite().all())


def test_snippet_for_transformers_runs() -> None:
    pytest.importorskip("transformers")
    from transformers_models import tiny

    snippet, *_ = [block for block in blocks("python") if "attach(model" in block]  # other pages have more
    model = tiny("llama")
    inputs = {"input_ids": torch.arange(1, 41)[None]}
    exec(compile(snippet.replace("200", "2"), "README.md", "exec"), {"model": model, "inputs": inputs})


@pytest.mark.parametrize("words", ["register_family", "register_metric", "@figure("])
def test_other_examples_of_adding_run(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from resa_bench.plots import registry as figures
    from resa_bench.suites.core import metrics
    from resa_bench.suites.model import families

    for module, name in ((figures, "_figures"), (metrics, "_metrics"), (families, "_families")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    (example,) = [block for block in blocks("python") if words in block]
    exec(compile(example, "docs/adding.md", "exec"), {"__name__": "docs_example"})


def sessions_named() -> set[str]:
    return {name for page in TOLD for name in re.findall(r"nox (?:--no-venv )?-s (\w+)", page.read_text())}


def test_sessions_exist_and_say_what_they_do() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    described = dict(re.findall(r"^[*-] (\w+) -> (.+)$", listed, flags=re.MULTILINE))
    assert sessions_named() <= described.keys()
    assert {"bench", "tests", "plots", "lint", "reference", "docs", "site"} <= described.keys()


def test_subcommands_exist() -> None:
    from resa_bench.suites.cli import build_parser

    parser = build_parser()
    for name in set(re.findall(r"^(?:\S+=\S+ )?resa-bench (\w[\w-]*)", "\n".join(blocks("bash")), flags=re.MULTILINE)):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([name, "--help"])
        assert stop.value.code == 0


@pytest.mark.slow
@pytest.mark.commands
def test_bench_command_leaves_rows_table_and_plots(tmp_path: Path, plugins: str) -> None:
    """The README's first command, short, with what is installed here."""
    methods = ["torch-dense", "resa-torch", "resa-plus"]
    arguments = ["--quick", "--device", "cpu", "--context", "512", "--rectify-every", "4", "--method", *methods]
    arguments += ["--budget-s", "0.5", "--seconds", "0", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "nox", "--no-venv", "-s", "bench", "--", *arguments],
        cwd=ROOT, env=PLAIN_ENVIRONMENT | {VARIABLE: plugins}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "micro.jsonl")
    assert {row.method for row in rows if row.timed} == set(methods)
    decoded = read_rows(tmp_path / "decode.jsonl")  # skipped where SmolLM2 cannot be fetched
    assert {row.method for row in decoded} == set(methods)
    assert all(row.timed or row.status == "skipped" for row in decoded)
    assert all(row.reason for row in rows if row.status == "skipped")
    assert "portable torch path" in done.stdout
    assert (tmp_path / "micro.csv").stat().st_size > 0
    assert {p.suffix for p in (tmp_path / "plots").iterdir()} == {".png", ".svg"}


@pytest.mark.slow
@pytest.mark.commands
def test_tests_command_collects() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nox", "--no-venv", "-s", "tests", "--", "--collect-only", "-q", "tests/test_cli.py"],
        cwd=ROOT, env=PLAIN_ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
