"""The command line: what it lists, refuses and returns."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_cases import ON_CPU, row
from resa_bench.kernels import AttentionShape, TorchDense, register, registered
from resa_bench.plots import figures
from resa_bench.suites.cli import build_parser, main
from resa_bench.suites.core.results import append as append_case
from resa_bench.suites.core.rows import Row
from resa_bench.suites.micro.cases import PRESETS


def parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def subcommands() -> list[str]:
    return list(parsers())


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    """Cases and methods of `resa-bench micro --list`."""
    assert main(["micro", "--list", *ON_CPU, *arguments]) == 0
    cases, methods = capsys.readouterr().out.split("methods: ")
    return [line.split()[0] for line in cases.splitlines()], " ".join(methods.split()).split(", ")


# --- help and refusals ------------------------------------------------------------------------------------------------


def test_subcommands() -> None:
    assert {"bench", "micro", "plots", "compare", "doctor"} <= set(subcommands())


@pytest.mark.parametrize("command", ["", *subcommands()])
def test_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: resa-bench {command}".rstrip())
    assert "--help" in out
    if not command:
        assert all(name in out for name in subcommands())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--method", "nope"], "--method nope: unknown; known are resa-torch, torch-dense,", id="method"),
        pytest.param(["--method", "quest", "--window", "4"], "--window: no method here has this setting", id="setting"),
        pytest.param(["--method", "oracle", "--summary", "meanstd"], "--summary: no method here has", id="summary"),
        pytest.param(["--case", "nope"], "--case nope: no case matches; see `resa-bench micro --list`", id="case"),
        pytest.param(["--case", "[/b]"], "--case [/b]: no case matches", id="case-with-brackets"),
        pytest.param(["--q-heads", "8"], "--q-heads, --kv-heads, --head-dim: give all three, or none", id="heads"),
        pytest.param(
            ["--q-heads", "8", "--kv-heads", "2", "--head-dim", "64", "--model", "llama-3.1-8b"],
            "--model llama-3.1-8b: heads are given too; give --model or the heads, not both",
            id="model-and-heads",
        ),
        pytest.param(
            ["--q-heads", "5", "--kv-heads", "2", "--head-dim", "64"],
            "q_heads: got 5, must be a multiple of kv_heads (2)",
            id="group",
        ),
        pytest.param(
            ["--q-heads", "4", "--kv-heads", "2", "--head-dim", "99"], "head_dim: got 99, allowed are", id="head-dim"
        ),
        pytest.param(["--block-size", "48"], "block_size: got 48, allowed are 8, 16, 32, 64, 128", id="block-size"),
        pytest.param(["--device", "gpu"], "device: got 'gpu', expected cpu, cuda or cuda:N", id="no-such-device"),
        pytest.param(["--device", "mps"], "device: got mps, allowed are cuda and cpu", id="another-device"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Exit status 2 and what was wrong, what is allowed; nothing is measured."""
    device = [] if "--device" in arguments else ON_CPU
    assert main(["micro", *device, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"resa-bench micro: {message}" in " ".join(captured.err.split()) or message in " ".join(captured.err.split())


def test_an_unknown_method_is_told_every_known_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["micro", "--method", "resa-torch", "nope", *ON_CPU]) == 2
    known = " ".join(capsys.readouterr().err.split()).split("known are ")[1].split(", ")
    assert set(known) == set(registered())


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        pytest.param(["--model", "nope"], list(PRESETS), id="model"),
        pytest.param(["--dtype", "fp64"], ["bf16", "fp16", "fp32"], id="dtype"),
        pytest.param(["--pattern", "zeros"], ["random", "clustered", "recent"], id="pattern"),
        pytest.param(["--gqa-policy", "nope"], ["group-mean", "group-sum", "per-head", "all-heads"], id="policy"),
        pytest.param(["--context", "4M"], ["got '4M', expected tokens such as 4096 or 4K"], id="context"),
        pytest.param(["--quick", "--full"], ["not allowed with"], id="two-scales"),
        pytest.param(["--context", "0"], ["got 0, must be 1 to 16384K tokens"], id="context-0"),
        pytest.param(["--batch", "0"], ["got 0, must be 1 to 4096"], id="batch-0"),
        pytest.param(["--page-size", "-1"], ["page-size"], id="page-size"),
        pytest.param(["--ratio", "1.5"], ["got 1.5, must be above 0 to 1"], id="ratio"),
        pytest.param(["--rectify-every", "0"], ["got 0, must be 1 to 65536"], id="rectify"),
    ],
)
def test_argparse_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], allowed: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["micro", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert arguments[0] in error
    assert all(name in error for name in allowed)


@pytest.mark.parametrize("word", ["", "a\0b", "\ud800"])
@pytest.mark.parametrize("command", ["plots", "report", "compare x", "export --format flashinfer-trace -o y", "micro"])
def test_what_is_no_path(command: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command.split(), *(["--output"] if command == "micro" else []), word]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "expected a path" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(subcommands()))
def test_two_dashes_are_no_value(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse makes an empty list of `--batch=--`, whatever the flag takes."""
    flags = [a.option_strings[-1] for a in parsers()[command]._actions if a.option_strings and a.nargs != 0]
    for flag in flags:
        with pytest.raises(SystemExit) as stop:
            main([command, f"{flag}=--"])
        assert stop.value.code == 2
        assert f"{flag}: got '--', expected a value" in capsys.readouterr().err


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["micro", "--device", "cuda"]) == 2
    assert "cuda was asked for, but torch finds no GPU here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_status_of_the_process() -> None:
    """`python -m resa_bench.suites` passes the status on."""
    command = [sys.executable, "-m", "resa_bench.suites", "micro", "--method", "nope", *ON_CPU]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--method nope: unknown" in done.stderr
    assert "Traceback" not in done.stderr


# --- lists ------------------------------------------------------------------------------------------------------------


def test_default_list(capsys: pytest.CaptureFixture[str]) -> None:
    cases, methods = listed(capsys)
    assert cases == [f"qwen2.5-7b-b1-{k}k" for k in (4, 16, 64)]
    assert {"resa-torch b16", "resa-torch b32", "resa-torch b64", "torch-dense", "quest b16 per-head"} <= set(methods)


@pytest.mark.parametrize(
    ("arguments", "cases"),
    [
        pytest.param(["--quick"], ["qwen2.5-7b-b1-4k", "qwen2.5-7b-b1-16k"], id="quick"),
        pytest.param(["--case", "*-64k"], ["qwen2.5-7b-b1-64k"], id="glob"),
        pytest.param(["--quick", "--model", "qwen3-8b"], ["qwen3-8b-b1-4k", "qwen3-8b-b1-16k"], id="model"),
        pytest.param(
            ["--context", "1K", "3000", "--batch", "2", "4"],
            ["qwen2.5-7b-b2-1k", "qwen2.5-7b-b2-3000", "qwen2.5-7b-b4-1k", "qwen2.5-7b-b4-3000"],
            id="grid",
        ),
        pytest.param(["--context", "4K", "4096"], ["qwen2.5-7b-b1-4k"], id="one-context-twice"),
        pytest.param(
            ["--q-heads", "64", "--kv-heads", "8", "--head-dim", "128", "--context", "2K"],
            ["custom-64-8-128-b1-2k"],
            id="own-shape",
        ),
        pytest.param(
            ["--context", "2K", "--pattern", "recent", "--page-size", "32"],
            ["qwen2.5-7b-b1-2k-recent-page32"],
            id="pattern-and-pages",
        ),
    ],
)
def test_listed_cases(capsys: pytest.CaptureFixture[str], arguments: list[str], cases: list[str]) -> None:
    assert listed(capsys, *arguments)[0] == cases


@pytest.mark.parametrize(
    ("arguments", "methods"),
    [
        pytest.param(["--method", "torch-dense"], ["torch-dense"], id="dense"),
        pytest.param(
            ["--method", "resa-torch", "--block-size", "16", "128"], ["resa-torch b16", "resa-torch b128"], id="sizes"
        ),
        pytest.param(
            ["--method", "resa-torch", "--block-size", "16", "16"], ["resa-torch b16"], id="one-setting-twice"
        ),
        pytest.param(
            ["--method", "quest", "--gqa-policy", "all-heads", "--summary", "meanstd"],
            ["quest b16 all-heads meanstd"],
            id="quest",
        ),
        pytest.param(["--method", "sparse", "sparse", "--block-size", "32"], ["sparse b32"], id="not-in-the-defaults"),
    ],
)
def test_listed_methods(capsys: pytest.CaptureFixture[str], arguments: list[str], methods: list[str]) -> None:
    assert listed(capsys, *arguments)[1] == methods


def test_listing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["micro", "--list", *ON_CPU]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("registry")
def test_methods_says_what_runs_here_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason is printed whole, brackets and all."""

    @register("elsewhere")
    class Elsewhere(TorchDense):
        @classmethod
        def unavailable(cls, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> str | None:
            return "no such module; pip install -e '.[quantum]'"

    main(["doctor"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(registered()) <= set(lines)
    assert "no such module" in lines["elsewhere"]
    assert "pip install -e '.[quantum]'" in lines["elsewhere"]
    assert "sparse, ready" in lines["resa-torch"]


@pytest.mark.parametrize(
    ("b", "arguments", "status"),
    [
        pytest.param(row(100), [], 0, id="same"),
        pytest.param(row(90), [], 0, id="faster"),
        pytest.param(row(110), [], 1, id="slower"),
        pytest.param(row(110), ["--tolerance", "0.2"], 0, id="slower-within-the-tolerance"),
        pytest.param(row(None, status="failed", reason="x"), [], 1, id="newly-failed"),
        pytest.param(row(100, context=4096), [], 2, id="nothing-to-compare"),
    ],
)
def test_compare(tmp_path: Path, b: Row, arguments: list[str], status: int) -> None:
    append_case(tmp_path / "a.jsonl", [row(100)])
    append_case(tmp_path / "b.jsonl", [b])
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), *arguments]) == status


def test_compare_takes_no_such_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "a.jsonl", "b.jsonl", "--tolerance", "2"])
    assert "--tolerance: got 2, must be 0 to 1" in " ".join(capsys.readouterr().err.split())


def test_compare_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_case(tmp_path / "a.jsonl", [row(100)])
    assert main(["compare", str(tmp_path / "a.jsonl"), str(tmp_path / "none.jsonl")]) == 2
    captured = capsys.readouterr()
    assert "no result file at" in captured.out + captured.err


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        pytest.param([], "plots", id="beside-the-file"),
        pytest.param(["--output", "elsewhere"], "elsewhere", id="where-told"),
    ],
)
def test_plots_go_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], folder: str) -> None:
    drawn: list[tuple[list[Path], Path]] = []

    def draw_all(paths: list[Path], folder: Path) -> list[Path]:
        drawn.append((paths, folder))
        return []

    monkeypatch.setattr(figures, "draw_all", draw_all)
    monkeypatch.chdir(tmp_path)
    Path("micro.jsonl").touch()
    assert main(["plots", "micro.jsonl", *arguments]) == 0
    assert drawn == [([Path("micro.jsonl")], Path(folder))]
