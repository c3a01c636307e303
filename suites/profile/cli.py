"""`resa-bench profile nsys | ncu | run CASE`: their flags, and the case and method that they name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ...kernels import chunk_kernels
from ..core import flags
from ..core.flags import METHODS, Flag, Options, add_flags, options
from ..core.spec import MethodSpec, Names, resa_here
from ..core.sweep import Sweep
from .workload import AnyCase, parse_case

EXAMPLES = """examples:
  resa-bench profile nsys decode-qwen2.5-7b-int4-b1-256k            where a whole model's step goes, and a timeline
  resa-bench profile nsys decode-qwen2.5-7b-int4-b1-256k --method sdpa-cudnn
  resa-bench profile nsys qwen2.5-7b-b1-256k --block-size 64        one layer's attention
  resa-bench profile nsys decode-qwen2.5-7b-int4-b1-256k --perfetto step.json     for ui.perfetto.dev
  resa-bench profile ncu qwen2.5-7b-b1-128k                         counters of each kernel, bytes beside the model's
  nsys profile -o mine resa-bench profile run qwen2.5-7b-b1-256k    what a profiler of yours is to watch

A case is any slug that rows carry (`resa-bench micro --list`, `decode --plan`), or one like them. One method is
profiled, at one setting."""

DEFAULT_GPU, DEFAULT_CPU = "decode-qwen2.5-7b-int4-b1-256k", "qwen2.5-7b-b1-16k"
TARGET_FLAGS = (
    *flags.METHOD_FLAGS,
    Flag("--chunk-kernel", "of rectification (default the fastest)", METHODS, choices=tuple(chunk_kernels())),
    flags.SEED, flags.DEVICE,
)  # fmt: skip
"""What says which case and method, beside the case's name."""
STEPS = flags.STEPS.but(
    kind=flags.whole(1, 4096), default=8, group=flags.RUN, metavar="N", help="replayed steps to record (default 8)"
)
OUTPUT = flags.OUTPUT.but(help="default runs/<device>/<commit>/profile/<case>-<method>")
PERFETTO = Flag(
    "--perfetto", "write the passes as a trace for ui.perfetto.dev (default trace.json beside the tables)",
    kind=flags.path, metavar="FILE", bare=Path("trace.json"),
)  # fmt: skip
FOR_CHILD = (
    Flag("--facts", "where to write what a reader of the trace needs", kind=flags.path, metavar="FILE"),
    flags.switch("--one-by-one", "no replays, of a model one layer (for ncu)"),
)
TOOLS = {
    "nsys": ("Nsight Systems: GPU time by stage, kernels, gaps, the host's share, a timeline (or torch's)",
             (*TARGET_FLAGS, STEPS, OUTPUT, PERFETTO)),
    "ncu": ("Nsight Compute: each kernel's counters, and DRAM bytes beside the compulsory ones",
            (*TARGET_FLAGS, OUTPUT)),
    "run": ("what the other two start: the case inside a capture range, for a profiler of your own",
            (*TARGET_FLAGS, STEPS, *FOR_CHILD)),
}  # fmt: skip
"""The help and the flags of each command."""


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """A parser for each tool: a case, and its flags."""
    tools = parser.add_subparsers(dest="tool", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    for tool, (text, tool_flags) in TOOLS.items():
        command = tools.add_parser(tool, help=text, description=text, epilog=EXAMPLES, formatter_class=raw)
        command.add_argument("case", nargs="?", help=f"default {DEFAULT_GPU}, without a GPU {DEFAULT_CPU}")
        add_flags(command, tool_flags)


def target(chosen: Options, device: torch.device) -> tuple[AnyCase, MethodSpec]:
    """The case and method asked for. Raises ValueError; where the flags ask for several methods, naming them."""
    case = parse_case(chosen.case or (DEFAULT_GPU if device.type == "cuda" else DEFAULT_CPU), device, chosen.seed)
    sweep = Sweep.of(chosen)
    sweep = replace(sweep, names=sweep.names or (resa_here(device),))
    specs = sweep.named() if case.suite == "decode" else sweep.named(dense_layers=None)  # a layer stands alone
    if len(specs) > 1:
        names = Names(specs)
        asked = ", ".join(names[spec] for spec in specs)
        raise ValueError(f"the flags ask for {len(specs)} variants ({asked}); expected one method at one setting")
    return case, replace(specs[0], config=replace(specs[0].config, chunk_kernel=chosen.chunk_kernel))


def target_words(chosen: Options) -> list[str]:
    """The words that hand the same case and method to another `resa-bench profile`."""
    return [*([chosen.case] if chosen.case else []), *flags.words(TARGET_FLAGS, chosen)]


def act_profile(given: Mapping[str, Any], device: torch.device, console: Console) -> int:
    """`resa-bench profile`; the exit status. Raises ValueError."""
    from .commands import profile_ncu, profile_nsys, profile_run

    tool = given["tool"]
    chosen = options(TOOLS[tool][1], given)
    chosen.case = given["case"]
    return {"nsys": profile_nsys, "ncu": profile_ncu, "run": profile_run}[tool](chosen, device, console)
