"""`resa-bench profile nsys | ncu | run CASE`: their flags."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig, chunk_kernels, registered
from ...kernels.config import GQA_POLICIES
from ..micro.cases import QUEST_DENSE_LAYERS, SUMMARIES, SUMMARY_HELP, MethodSpec, summary_settings, usual_policy
from .workload import AnyCase, parse_case

EXAMPLES = """examples:
  resa-bench profile nsys decode-qwen2.5-7b-int4-b1-256k            where a whole model's step goes, and a timeline
  resa-bench profile nsys decode-qwen2.5-7b-int4-b1-256k --method sdpa-cudnn
  resa-bench profile nsys qwen2.5-7b-b1-256k --block-size 64        one layer's attention
  resa-bench profile ncu qwen2.5-7b-b1-128k                         counters of each kernel, bytes beside the model's
  nsys profile -o mine resa-bench profile run qwen2.5-7b-b1-256k    what a profiler of yours is to watch

A case is any slug that rows carry (`resa-bench micro --list`, `decode --plan`), or one like them."""

WINDOW = SparseConfig().window
DEFAULT_GPU, DEFAULT_CPU = "decode-qwen2.5-7b-int4-b1-256k", "qwen2.5-7b-b1-16k"


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    tools = parser.add_subparsers(dest="tool", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    helps = {
        "nsys": "Nsight Systems: GPU time by stage, kernels, gaps, the host's share, a timeline (or torch's)",
        "ncu": "Nsight Compute: each kernel's counters, and DRAM bytes beside the compulsory ones",
        "run": "what the other two start: the case inside a capture range, for a profiler of your own",
    }
    for tool, text in helps.items():
        one = tools.add_parser(tool, help=text, description=text, epilog=EXAMPLES, formatter_class=raw)
        one.add_argument("case", nargs="?", help=f"default {DEFAULT_GPU}, without a GPU {DEFAULT_CPU}")
        one.add_argument("--method", default=None, help="see `resa-bench doctor` (default resa, on a CPU resa-torch)")
        one.add_argument("--block-size", type=int, default=16, metavar="b", help="of ReSA, in tokens")
        one.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio")
        one.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
        one.add_argument("--rectify-every", type=int, default=32, metavar="f", help="tokens between rectifications")
        one.add_argument("--gqa-policy", choices=GQA_POLICIES, help="of Quest (default group-sum)")
        one.add_argument("--window", type=int, default=WINDOW, metavar="w", help="of RetroAttention, in tokens")
        one.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
        one.add_argument(
            "--chunk-kernel", choices=tuple(chunk_kernels()), help="of rectification (default the fastest)"
        )
        one.add_argument("--dense-layers", type=int, default=QUEST_DENSE_LAYERS, help="of Quest in a whole model")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
        if tool != "ncu":
            one.add_argument("--steps", type=int, default=8, help="replayed steps to record")
        if tool == "run":
            one.add_argument(
                "--facts", type=Path, metavar="FILE", help="where to write what a reader of the trace needs"
            )
            one.add_argument("--one-by-one", action="store_true", help="no replays, of a model one layer (for ncu)")
        else:
            one.add_argument(
                "--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>/profile/<case>-<method>"
            )


def target(options: argparse.Namespace, device: torch.device) -> tuple[AnyCase, MethodSpec]:
    """The case and method asked for. Raises ValueError."""
    cuda = device.type == "cuda"
    name = options.method or ("resa" if cuda else "resa-torch")
    if name not in registered():
        raise ValueError(f"--method {name}: unknown; known are {', '.join(registered())}")
    case = parse_case(options.case or (DEFAULT_GPU if cuda else DEFAULT_CPU), device, options.seed)
    config = SparseConfig(
        block_size=options.block_size,
        active_ratio=options.ratio,
        min_blocks=options.min_blocks,
        rectify_every=options.rectify_every,
        **summary_settings(options.summary),
        chunk_kernel=options.chunk_kernel,
        gqa_policy=options.gqa_policy or ("group-sum" if name == "quest" else usual_policy(name)),
        window=options.window,
    )
    layers = options.dense_layers if name == "quest" and case.suite == "decode" else None
    return case, MethodSpec(name, config, layers)


def flags(options: argparse.Namespace) -> list[str]:
    """The words that hand the same case and method to `profile run`."""
    words = [options.case] if options.case else []
    for name in ("method", "gqa_policy", "chunk_kernel", "device"):
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    defaults = {"block_size": 16, "ratio": 0.1, "min_blocks": 16, "rectify_every": 32, "summary": "minmax",
                "dense_layers": QUEST_DENSE_LAYERS, "window": WINDOW, "seed": 0}  # fmt: skip
    for name, default in defaults.items():
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value != default else []
    return words


def act_profile(options: argparse.Namespace, device: torch.device, console: Console) -> int:
    from .commands import profile_ncu, profile_nsys, profile_run

    act = {"nsys": profile_nsys, "ncu": profile_ncu, "run": profile_run}[options.tool]
    return act(options, device, console)
