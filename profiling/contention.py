"""Who else uses the device while something is timed: other processes on the CPUs or the GPU, a quota on our own.

A median can be eight times off with nothing to show for it but a wide interval. `Watch` looks from its beginning to
the question, so that the reason belongs to the case it was asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .nvml import Nvml

_cuda: Any = torch.cuda  # whose functions have types in some versions only

TOLERATED_CPUS = 0.5
"""CPUs that others may keep busy where there is no room: a desktop, a terminal, a monitor."""

TOLERATED_PERCENT = 5
"""Of the multiprocessors' time that another process may take."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True, slots=True)
class CpuLoad:
    """CPU seconds so far: `busy` on the CPUs that this process may use (those a hypervisor took too), `own` in it."""

    busy_s: float
    own_s: float
    at_s: float  # wall clock


class Watch:
    """Looks at the CPUs and the GPU of `device` from now on."""

    def __init__(self, device: torch.device) -> None:
        self._threads = 1 if device.type == "cuda" else torch.get_num_threads()
        self._load = cpu_load()
        self._load_average = load_average()
        self._nvml = Nvml(device)
        self._since_us = int(time.time() * 1e6)

    def reason(self) -> str | None:
        """Why times taken since this watch began may be off, in one line; None where nothing speaks for it."""
        cpus = usable_cpus()
        others = others_busy(self._load, cpu_load())
        if others is None and self._load_average is not None:
            others = max(self._load_average - self._threads, 0.0)  # may be our own of a minute ago
        reasons = (
            quota_reason(self._threads, cpus, cgroup_quota()),
            cpu_reason(self._threads, cpus, others),
            self._gpu_reason(),
        )
        return "; ".join(reason for reason in reasons if reason) or None

    def _gpu_reason(self) -> str | None:
        processes, percent = self._nvml.compute_processes(), self._nvml.process_utilisation(self._since_us)
        ours = {os.getpid(), os.getppid()}  # the measuring process, and the command that started it
        return gpu_reason(processes, percent, ours, present=_cuda.is_initialized())


def contention(device: torch.device, seconds: float = 0.1) -> str | None:
    """Who else uses `device` within the next `seconds`, in which the caller runs nothing; one line, or None."""
    watch = Watch(device)
    time.sleep(seconds)
    return watch.reason()


def cpu_reason(threads: int, cpus: int, others: float | None) -> str | None:
    """Whether others leave `threads` of ours room.

    Args:
        cpus: that we may use.
        others: CPUs that others keep busy, on the average; None where that is not known.
    """
    room = max(min(cpus - threads, cpus / 2), 0)  # half of the CPUs take half of the memory's rate, too
    if others is None or others <= room + TOLERATED_CPUS:
        return None
    return f"other processes keep {others:.1f} of {cpus} CPUs busy, beside {_count(threads, 'thread')} of ours"


def quota_reason(threads: int, cpus: int, quota: float | None) -> str | None:
    """Whether `threads` of ours may run at once, on so many CPUs and under a cgroup's quota (in CPUs)."""
    if quota is not None and quota < min(threads, cpus):
        return f"a cgroup quota of {quota:g} CPUs holds back {_count(threads, 'thread')}"
    if cpus < threads:
        return f"{threads} threads share {_count(cpus, 'CPU')}"
    return None


def gpu_reason(
    processes: Collection[int] | None, percent: Mapping[int, int] | None, ours: Collection[int], present: bool
) -> str | None:
    """Who else is on the GPU, told by what they take of it, or where that is not known by their being there.

    Args:
        processes: ids of those that hold a compute context; None where NVML does not tell.
        percent: of the multiprocessors' time, by process id; None where NVML does not tell.
        ours: ids of our own processes.
        present: whether this process holds a context. In a container NVML gives it an id that we do not know: if none
            of `ours` is there, the busiest process counts as ours.
    """
    percent = percent or {}
    pids = sorted({*(processes or ()), *percent}, key=lambda pid: (percent.get(pid, 0), pid))
    others = [pid for pid in pids if pid not in ours]
    if present and len(others) == len(pids):
        others = others[:-1]
    if percent:
        others = [pid for pid in others if percent.get(pid, 0) > TOLERATED_PERCENT]
    if not others:
        return None
    names = ", ".join(map(str, sorted(others)[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    if percent:
        return f"other processes took up to {max(percent[pid] for pid in others)} % of the GPU's time (process {names})"
    return f"other processes hold the GPU (process {names})"


def cpu_load(stat: Path = Path("/proc/stat")) -> CpuLoad | None:
    """CPU seconds so far; None where the system does not tell (no Linux, or a sandbox that shows zeros)."""
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    busy = 0.0
    try:
        for line in stat.read_text().splitlines():
            name, *figures = line.split()
            if name in allowed:
                user, nice, system, _, _, interrupt, soft_interrupt, steal = (int(figure) for figure in figures[:8])
                busy += (user + nice + system + interrupt + soft_interrupt + steal) / TICKS_PER_SECOND
    except (OSError, ValueError):
        return None
    own = os.times()
    own_s = own.user + own.system + own.children_user + own.children_system
    return CpuLoad(busy, own_s, time.monotonic()) if busy else None


def others_busy(before: CpuLoad | None, after: CpuLoad | None) -> float | None:
    """CPUs that other processes kept busy between two readings, on the average; None where that is not known."""
    if before is None or after is None or after.at_s <= before.at_s or after.busy_s < before.busy_s:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(others_s, 0.0) / (after.at_s - before.at_s)


def load_average() -> float | None:
    """Processes that ran or wanted to in the last minute, on the average; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that control groups allow this process, the least of all groups around it; None without a quota."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    quotas: list[float] = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if not controllers:  # version 2: one tree
            quotas += (_quota(folder / "cpu.max", None) for folder in _upwards(root, path))
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / controllers, path) + _upwards(root / "cpu", path):
                quotas.append(_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return min((quota for quota in quotas if quota > 0), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The group's folder and all above it, up to the root (the only one that a container shows)."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _quota(quota: Path, period: Path | None) -> float:
    """CPUs that a group's files allow; 0 where they say nothing or `max` (-1 in version 1)."""
    try:
        words = quota.read_text().split() + (period.read_text().split() if period else [])
        return max(int(words[0]) / int(words[1]), 0.0)
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return 0.0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
