"""A CPU or GPU that others use: from fake readings, and on this machine with a process that keeps it busy."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from resa_bench.profiling import contention as module
from resa_bench.profiling.contention import (
    CpuLoad,
    Watch,
    cgroup_quota,
    contention,
    cpu_load,
    cpu_reason,
    gpu_reason,
    others_busy,
    quota_reason,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
OURS = {10, 11}


@pytest.mark.parametrize(
    ("threads", "cpus", "others", "contended"),
    [
        pytest.param(2, 2, 0.3, False, id="a-monitor"),
        pytest.param(2, 2, 1.0, True, id="one-busy-and-no-room"),
        pytest.param(1, 2, 1.0, False, id="one-busy-on-the-other-cpu"),
        pytest.param(1, 2, 1.9, True, id="both-busy"),
        pytest.param(4, 64, 20.0, False, id="much-room"),
        pytest.param(4, 64, 40.0, True, id="more-than-half-of-a-large-machine"),
        pytest.param(8, 4, 0.4, False, id="more-threads-than-cpus"),
        pytest.param(2, 2, None, False, id="not-known"),
    ],
)
def test_others_on_the_cpus(threads: int, cpus: int, others: float | None, contended: bool) -> None:
    reason = cpu_reason(threads, cpus, others)
    assert (reason is not None) == contended
    if reason:
        assert reason.startswith(f"other processes keep {others:.1f} of {cpus} CPUs busy, beside {threads} thread")


@pytest.mark.parametrize(
    ("threads", "cpus", "quota", "reason"),
    [
        (4, 8, None, None),
        (4, 8, 4.0, None),
        (4, 8, 1.5, "a cgroup quota of 1.5 CPUs holds back 4 threads"),
        (1, 8, 0.5, "a cgroup quota of 0.5 CPUs holds back 1 thread"),
        (4, 1, None, "4 threads share 1 CPU"),
    ],
)
def test_less_than_our_threads_need(threads: int, cpus: int, quota: float | None, reason: str | None) -> None:
    assert quota_reason(threads, cpus, quota) == reason


@pytest.mark.parametrize(
    ("processes", "percent", "present", "reason"),
    [
        pytest.param([10], {10: 99}, True, None, id="alone"),
        pytest.param([10, 70], {10: 60, 70: 37}, True, "took up to 37 % of the GPU's time (process 70)", id="busy"),
        pytest.param([10, 70], {10: 99, 70: 1}, True, None, id="idle"),
        pytest.param([70], {70: 90}, False, "took up to 90 %", id="busy-before-we-are-there"),
        pytest.param([10, 70], {70: 90}, True, "took up to 90 %", id="busy-while-we-are-not"),
        pytest.param([10, 70, 80], None, True, "hold the GPU (process 70, 80)", id="use-not-told"),
        pytest.param([5000], {5000: 99}, True, None, id="ours-under-the-hosts-id"),
        pytest.param([5000, 6000], {5000: 99, 6000: 40}, True, "(process 6000)", id="one-more-beside-it"),
        pytest.param(range(70, 76), None, False, "(process 70, 71, 72 and 3 more)", id="many"),
        pytest.param(None, None, True, None, id="nothing-told"),
        pytest.param([], {}, True, None, id="nobody"),
        pytest.param(None, {10: 50, 70: 50}, True, "(process 70)", id="processes-not-told"),
    ],
)
def test_others_on_the_gpu(
    processes: list[int] | None, percent: dict[int, int] | None, present: bool, reason: str | None
) -> None:
    answer = gpu_reason(processes, percent, OURS, present)
    assert answer is None if reason is None else reason in str(answer)


def test_what_others_kept_busy_is_what_we_did_not() -> None:
    before, after = CpuLoad(100.0, 10.0, 0.0), CpuLoad(107.0, 13.0, 2.0)
    assert others_busy(before, after) == pytest.approx(2.0)
    assert others_busy(before, CpuLoad(100.0, 10.0, 2.0)) == 0.0
    assert others_busy(before, CpuLoad(101.0, 12.0, 2.0)) == 0.0  # ticks are coarse
    assert others_busy(before, before) is None
    assert others_busy(before, CpuLoad(90.0, 10.0, 2.0)) is None
    assert others_busy(None, after) is None


def test_busy_time_is_of_the_cpus_we_may_use_and_of_the_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1}, raising=False)
    monkeypatch.setattr(module, "TICKS_PER_SECOND", 100)
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\ncpu1 100 200 300 7000 8000 10 20 70 0 0\nintr 1\n"
    )
    load = cpu_load(stat)
    assert load is not None
    assert load.busy_s == pytest.approx(7.0)


@pytest.mark.parametrize("text", [None, "", "cpu0 0 0 0 0 0 0 0 0\n", "cpu0 a b\n", "cpu0 1 2\n"])
def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert cpu_load(tmp_path / "stat") is None


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2-in-a-container"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="v2-none"),
        pytest.param("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0, id="v2-above"),
        pytest.param("0::/a\n", {"a/cpu.max": "400000 100000", "cpu.max": "100000 100000"}, 1.0, id="v2-the-least"),
        pytest.param(
            "4:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            0.5,
            id="v1",
        ),
        pytest.param(
            "1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, id="v1-none"
        ),
        pytest.param("0::/gone\n", {}, None, id="no-files"),
        pytest.param("nonsense\n", {"cpu.max": "x y z"}, None, id="nonsense"),
    ],
)
def test_the_quota_of_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "membership").write_text(membership)
    assert cgroup_quota(tmp_path / "root", tmp_path / "membership") == quota
    assert cgroup_quota(tmp_path, tmp_path / "none") is None


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two CPUs, two threads, nobody else; tests change what is seen at the end of a watch."""
    readings = SimpleNamespace(loads=[CpuLoad(0.0, 0.0, 0.0), CpuLoad(2.0, 2.0, 1.0)], average=0.0)
    monkeypatch.setattr(module, "cpu_load", lambda: readings.loads.pop(0) if readings.loads else None)
    monkeypatch.setattr(module, "load_average", lambda: readings.average)
    monkeypatch.setattr(module, "usable_cpus", lambda: 2)
    monkeypatch.setattr(module, "cgroup_quota", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return readings


def test_a_watch_over_a_quiet_machine(quiet: SimpleNamespace) -> None:
    assert Watch(CPU).reason() is None


def test_a_watch_sees_what_others_did_meanwhile(quiet: SimpleNamespace) -> None:
    quiet.loads[1] = CpuLoad(3.5, 2.0, 1.0)
    assert Watch(CPU).reason() == "other processes keep 1.5 of 2 CPUs busy, beside 2 threads of ours"


def test_the_load_average_answers_where_nothing_else_does(quiet: SimpleNamespace) -> None:
    quiet.loads, quiet.average = [], 3.6
    assert Watch(CPU).reason() == "other processes keep 1.6 of 2 CPUs busy, beside 2 threads of ours"
    quiet.average = 2.0
    assert Watch(CPU).reason() is None


def test_several_reasons_are_one_line(quiet: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.loads[1] = CpuLoad(3.5, 2.0, 1.0)
    monkeypatch.setattr(module, "cgroup_quota", lambda: 0.5)
    reason = Watch(CPU).reason()
    assert reason == (
        "a cgroup quota of 0.5 CPUs holds back 2 threads; "
        "other processes keep 1.5 of 2 CPUs busy, beside 2 threads of ours"
    )


def test_a_gpu_asks_nvml_and_needs_one_cpu(quiet: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet.loads[1] = CpuLoad(2.4, 1.0, 1.0)
    nvml = SimpleNamespace(compute_processes=lambda: [os.getpid(), 1], process_utilisation=lambda since_us: {1: 80})
    monkeypatch.setattr(module, "Nvml", lambda device: nvml)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert Watch(GPU).reason() == "other processes took up to 80 % of the GPU's time (process 1)"


def test_this_machine_gives_an_answer() -> None:
    reason = contention(CPU, 0.05)
    assert reason is None or "\n" not in reason
