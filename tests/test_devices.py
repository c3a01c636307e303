"""What ran where: the source tree's state, the device's name, clocks and throttle reasons."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from resa_bench.profiling import clocks, device
from resa_bench.profiling.clocks import ClockReader, ClockState, throttle_names, worst
from resa_bench.profiling.device import COMMIT_VARIABLE, describe, device_name, source_state

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        pytest.param(COMMIT, (COMMIT, False), id="clean"),
        pytest.param(f"{COMMIT}-dirty", (COMMIT, True), id="dirty"),
    ],
)
def test_the_variable_tells_the_commit(monkeypatch: pytest.MonkeyPatch, told: str, expected: tuple[str, bool]) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, told)
    assert source_state() == expected


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git tree that the package seems to run from."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setattr(device, "__file__", str(tmp_path / "profiling" / "device.py"))
    (tmp_path / "profiling").mkdir()
    (tmp_path / "profiling" / "device.py").write_text("first\n")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return tmp_path


def test_git_tells_the_commit(tree: Path) -> None:
    commit, dirty = source_state()
    head = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert (commit, dirty) == (head.stdout.strip(), False)


def test_a_changed_tree_is_dirty_and_results_beside_it_are_no_change(tree: Path) -> None:
    (tree / "runs").mkdir()
    (tree / "runs" / "micro.jsonl").write_text("{}\n")
    assert source_state()[1] is False
    (tree / "profiling" / "device.py").write_text("second\n")
    assert source_state()[1] is True


def test_no_tree_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(device, "__file__", str(tmp_path / "device.py"))
    assert source_state() == (None, None)


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    assert source_state() == (None, None)


def test_describe_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, f"{COMMIT}-dirty")
    found = describe(CPU)
    assert (found.commit, found.dirty, found.driver) == (COMMIT, True, None)
    assert (found.torch, found.triton, found.python) == (
        torch.__version__,
        triton.__version__,
        platform.python_version(),
    )
    assert found.device == device_name(CPU)


def test_a_cpu_is_named_with_its_threads() -> None:
    assert re.fullmatch(rf"CPU \S.* \({torch.get_num_threads()} threads\)", device_name(CPU))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        pytest.param(0x0, None, id="none"),
        pytest.param(0x4, "power cap", id="power-cap"),
        pytest.param(0x8, "hardware slowdown", id="hardware-slowdown"),
        pytest.param(0x20, "thermal (software)", id="software-thermal"),
        pytest.param(0x40, "thermal (hardware)", id="hardware-thermal"),
        pytest.param(0x80, "power brake", id="power-brake"),
        pytest.param(0x4 | 0x40, "power cap, thermal (hardware)", id="two"),
        pytest.param(0x1 | 0x2 | 0x10 | 0x100, None, id="idle-and-settings-are-no-faults"),
        pytest.param(0x1 | 0x80, "power brake", id="a-fault-among-others"),
    ],
)
def test_throttle_names(bits: int, expected: str | None) -> None:
    assert throttle_names(bits) == expected


def test_throttle_bits_are_nvmls() -> None:
    nvml = pytest.importorskip("pynvml")
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    bits = {getattr(nvml, f"nvmlClocksThrottleReason{name}", None) for name in names}
    bits |= {getattr(nvml, f"nvmlClocksEventReason{name}", None) for name in names}
    assert set(clocks.THROTTLES) == bits - {None}


def test_clocks_of_a_cpu_are_unknown() -> None:
    assert ClockReader(CPU).read() == ClockState(None, None, None, None, None)


def test_worst_of_several_readings() -> None:
    """Lowest clocks, highest temperature and power, every reason once."""
    states = [
        ClockState(1980, 2619, 41, 310.0, "power cap"),
        ClockState(1755, None, 63, 295.5, "thermal (software), power cap"),
        ClockState(),
    ]
    assert worst(states) == ClockState(1755, 2619, 63, 310.0, "power cap, thermal (software)")
    assert worst([ClockState(), ClockState()]) == ClockState()
