"""Every snippet of docs/your-model.md, in order, on a tiny checkpoint."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers_models import tiny

pytest.importorskip("transformers", minversion="5.20")

from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.cli import main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "your-model.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("  #")[0].strip() for kind, text in SNIPPETS if kind == "bash" for line in text.splitlines()]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model with a tokenizer of letters, as ./checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({"<pad>": 0} | {chr(32 + i): i + 1 for i in range(95)}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "checkpoint"
    tiny("llama", max_position_embeddings=8192).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="~").save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.usefixtures("checkpoint")
def test_the_python_snippets(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for kind, text in SNIPPETS:
        if kind == "python":
            exec(compile(text, "docs/your-model.md", "exec"), names)
    assert names["tokens"].shape[0] == 2
    assert names["second"].shape[1] > names["both"].shape[1]
    assert names["logits"].shape[:2] == (1, 1)
    printed = capsys.readouterr().out.strip()
    assert f"print(error)  # {printed}" in PAGE


@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("resa-bench")])
def test_the_commands_are_planned(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resa_bench.suites.decode.suite.measure_ceilings", lambda timer: Ceilings(1e3, 1e3, 1.0))
    assert main([*shlex.split(command)[1:], "--plan"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("checkpoint")
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="pip install -e '.[lm-eval]'")
def test_the_harness_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate", reason="pip install -e '.[lm-eval]'")
    from resa_bench.integrations.lm_eval.__main__ import lm_eval as harness

    (command,) = [c for c in COMMANDS if "integrations.lm_eval" in c]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *shlex.split(command)[3:], "--device", "cpu"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    harness()
    assert "resa_needles" in capsys.readouterr().out


def test_the_extras_are_those_of_pyproject() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"pip install -e '\.\[([\w-]+)\]'", PAGE)
    assert asked
    assert set(asked) <= set(project["optional-dependencies"])
