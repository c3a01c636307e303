"""Adding from outside the package, as a user would: one file, named in RESA_BENCH_PLUGINS, and every command has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import make_model
from resa_bench.suites.cli import main
from resa_bench.suites.core.plugins import VARIABLE
from resa_bench.suites.core.results import read_rows

PLUGIN = Path(__file__).parent / "plugin_example.py"
TINY = ["--q-heads", "4", "--kv-heads", "2", "--head-dim", "16", "--context", "256", "512", "--budget-s", "0.3"]


@pytest.fixture(autouse=True)
def _beside_the_tests_own(plugins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin, after those that spare a measuring process what no test here reads."""
    monkeypatch.setenv(VARIABLE, f"{plugins},{PLUGIN}")


def resa_bench(*arguments: str) -> str:
    """What a command prints, run with the plugin; it must end well."""
    return python("-m", "resa_bench.suites", *arguments)


def python(*arguments: str) -> str:
    """What Python prints in a process that has the plugin."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_method_joins_every_default_list_and_a_task_its_suite() -> None:
    """One process asks all commands: to import torch takes seconds."""
    commands = ("micro", "decode", "quality", "tasks", "tasks --task one-needle")
    asking = "assert main([*command.split(), '--device', 'cpu', '--plan']) == 0; print('end of a plan')"
    code = f"from resa_bench.suites.cli import main\nfor command in {commands}: {asking}"
    *plans, rest = python("-c", code).split("end of a plan")
    assert ["newest b16" in " ".join(plan.split()) for plan in plans] == [True] * len(commands)
    assert "tasks-smollm2-135m-one-needle-1k-8" in plans[-1]
    assert not rest.strip()


@pytest.mark.slow
def test_a_method_and_a_figure_of_micro(tmp_path: Path) -> None:
    printed = resa_bench(
        "micro", "--device", "cpu", *TINY, "--method", "torch-dense", "newest", "--min-blocks", "4",
        "--output", str(tmp_path),
    )  # fmt: skip
    rows = read_rows(tmp_path / "micro.jsonl")
    assert {(row.method, row.status) for row in rows} == {("torch-dense", "ok"), ("newest", "ok")}
    assert "newest b16 min4" in printed or "newest b16" in printed
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"medians-custom-4-2-16.png", "speedup-custom-4-2-16.png"} <= drawn


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a family that the package does not know: Llama's weights under Mistral's name."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-mistral"
    make_model("llama-llama3").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mistral", "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_a_model_family_and_a_method_decode(checkpoint: Path, tmp_path: Path) -> None:
    printed = resa_bench(
        "decode", "--device", "cpu", "--model", str(checkpoint), "--prompt", "synthetic", "--context", "128",
        "--rectify-every", "4", "--method", "torch-dense", "resa-torch", "newest", "--seconds", "0",
        "--output", str(tmp_path),
    )  # fmt: skip
    rows = read_rows(tmp_path / "decode.jsonl")
    assert {row.method for row in rows if row.tokens_per_s} == {"torch-dense", "resa-torch", "newest"}
    assert {row.model for row in rows} == {"tiny-mistral"}
    assert "newest b16" in printed


def test_without_the_family_our_runner_refuses_the_model(checkpoint: Path) -> None:
    from resa_bench.suites.model.checkpoint import checkpoint_config

    with pytest.raises(ValueError, match="model_type is 'mistral', supported are llama, qwen2, qwen3"):
        checkpoint_config(checkpoint)


@pytest.mark.slow
def test_a_suite_has_its_command_its_rows_and_its_table(tmp_path: Path) -> None:
    """One process for the command and for the list of all commands."""
    words = ["echo", "--device", "cpu", "--method", "torch-dense", "newest", "--output", str(tmp_path)]
    code = f"from resa_bench.suites.cli import main\nassert main({words}) == 0; print('and all:'); main(['--help'])"
    printed, commands = python("-c", code).split("and all:")
    assert "newest b16 echoes 1" in printed
    assert [(row.suite, row.method, row.value) for row in read_rows(tmp_path / "echo.jsonl")] == [
        ("echo", "torch-dense", 1.0), ("echo", "newest", 1.0),
    ]  # fmt: skip
    assert "echo" in commands


def test_a_plugin_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "no_such_module")
    assert main(["doctor"]) == 2
    error = capsys.readouterr().err
    assert " ".join(error.split()).startswith("resa-bench: RESA_BENCH_PLUGINS: no_such_module cannot be imported")
    assert "Traceback" not in error
