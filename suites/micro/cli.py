"""`resa-bench micro`: its flags, its cases and methods, the run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig, registered
from ...kernels.config import GQA_POLICIES
from ...profiling.timing import Plan
from ..core.runner import Outcome, default_folder, run_cases
from ..core.worker import Settings, Worker
from ..decode.cli import tokens
from .cases import (
    DEFAULT_MODEL,
    DEFAULTS,
    DTYPES,
    PATTERNS,
    PRESETS,
    QUEST_POLICIES,
    SUMMARIES,
    SUMMARY_HELP,
    Case,
    MethodSpec,
    ModelShape,
    default_cases,
    default_methods,
    filter_cases,
    further_methods,
    named_spec,
    retro_spec,
    summary_settings,
)
from .table import print_report

BLOCK_SIZES = [16, 32, 64]
WINDOWS = [SparseConfig().window]
EXAMPLES = """examples:
  resa-bench micro                                     the default list (5 minutes on an H100)
  resa-bench micro --quick                             two short cases
  resa-bench micro --context 64K 256K --batch 4        these cases, whatever the list
  resa-bench micro --method resa quest sdpa-cudnn      these methods only
  resa-bench micro --q-heads 64 --kv-heads 8 --head-dim 128 --context 128K
  RESA_REFERENCE=/path/to/ReSA resa-bench micro --method resa resa-authors sdpa-cudnn

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""


def add_micro_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the micro suite; the main job takes them too."""
    which = parser.add_argument_group("which cases")
    scale = which.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", const="quick", dest="scale", help="under a minute on a CPU")
    scale.add_argument("--full", action="store_const", const="full", dest="scale", help="the whole grid, resumable")
    which.add_argument("--case", nargs="+", default=[], metavar="GLOB", help="only cases whose name matches")
    which.add_argument("--context", nargs="+", type=tokens, default=[], metavar="TOKENS", help="e.g. 4K 262144")
    which.add_argument("--batch", nargs="+", type=int, default=[], metavar="B")
    which.add_argument("--model", choices=PRESETS, help=f"model shape (default {DEFAULT_MODEL})")
    which.add_argument("--q-heads", type=int, help="with --kv-heads and --head-dim: a shape of your own")
    which.add_argument("--kv-heads", type=int)
    which.add_argument("--head-dim", type=int)
    which.add_argument("--pattern", choices=PATTERNS, help="where the blocks lie that queries are drawn to")
    which.add_argument("--dtype", choices=DTYPES, help="default bf16 on a GPU, fp32 on a CPU")
    which.add_argument("--page-size", type=int, help="paged cache with pages of this many tokens")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", nargs="+", type=int, default=BLOCK_SIZES, metavar="b", help="of ReSA, in tokens")
    how.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio: share of blocks read")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", type=int, default=32, metavar="f", help="tokens between rectifications")
    how.add_argument("--budget-tokens", type=int, help="a budget in tokens for Quest, instead of --ratio")
    how.add_argument("--gqa-policy", nargs="+", choices=GQA_POLICIES, help="of Quest (default per-head group-sum)")
    how.add_argument(
        "--window", nargs="+", type=int, default=WINDOWS, metavar="w",
        help="of RetroAttention: newest tokens that a step runs (default 2; 4 and 8 too where the list has them)",
    )  # fmt: skip
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    how.add_argument("--pinned-blocks", type=int, default=0, metavar="P", help="first blocks that are always read")
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--list", action="store_true", help="print the cases and methods, and stop")
    run.add_argument("--budget-s", type=float, help="most seconds of sampling a case")
    run.add_argument("--no-warm", action="store_true", help="leave out the warm-cache rows")
    run.add_argument("--no-eager", action="store_true", help="leave out the eager rows")
    run.add_argument("--no-plots", action="store_true")


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """The list asked for. Contexts and batches that are not on it are added rather than refused."""
    own = (options.q_heads, options.kv_heads, options.head_dim)
    scale = options.scale or "default"
    if any(value is not None for value in own):
        if None in own:
            raise ValueError("--q-heads, --kv-heads, --head-dim: give all three, or none")
        model, heads = "custom-{}-{}-{}".format(*own), ModelShape(*own)
    else:
        model = options.model or DEFAULT_MODEL
        heads = PRESETS[model]
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if options.context or options.batch or own != (None, None, None) or options.pattern or options.page_size:
        listed = default_cases(device, scale)
        contexts = options.context or sorted({c.context for c in listed if c.batch == 1})
        batches = options.batch or [1]
        cases = [Case(model, heads, b, c) for b in batches for c in contexts]
    else:
        cases = default_cases(device, scale, model) if scale != "full" or not options.model else [
            c for c in default_cases(device, scale) if c.model == model
        ]  # fmt: skip
    pattern = {"pattern": options.pattern} if options.pattern else {}
    cases = [replace(c, dtype=dtype, seed=options.seed, page_size=options.page_size, **pattern) for c in cases]
    cases = list(dict.fromkeys(filter_cases(cases, options.case)))  # 4K and 4096 are one
    if not cases:
        raise ValueError(f"--case {' '.join(options.case)}: no case matches; see `resa-bench micro --list`")
    for case in cases:
        case.shape  # noqa: B018  (checks the heads)
    return cases


def choose_methods(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, others with default settings too.

    `--quick` takes one block size and one of Quest's policies.
    """
    base = SparseConfig(
        active_ratio=options.ratio,
        min_blocks=options.min_blocks,
        rectify_every=options.rectify_every,
        **summary_settings(options.summary),
        pinned_blocks=options.pinned_blocks,
    )
    quick = options.scale == "quick" and options.block_size == BLOCK_SIZES
    sizes = options.block_size[:1] if quick else options.block_size
    specs = default_methods(device, base, sizes)
    quest = next(s for s in specs if s.name == "quest")
    policies = options.gqa_policy or (QUEST_POLICIES[-1:] if quick else QUEST_POLICIES)
    budget = {"budget_tokens": options.budget_tokens} if options.budget_tokens else {}
    settings = [replace(quest.config, gqa_policy=p, **budget) for p in policies]
    retro = next(s for s in specs if s.name == "retro")
    specs = [s for s in specs if s.name not in ("quest", "retro")] + [MethodSpec("quest", c) for c in settings]
    specs += [retro_spec(retro.config, w) for w in options.window]
    specs = list(dict.fromkeys(specs))  # a setting given twice is one
    if not options.method:
        return specs
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
    named = [s for s in specs if s.name in options.method]
    present = {s.name for s in named}
    for name in options.method:
        if name not in present:
            blocks = sizes if "block_size" in known[name].uses else sizes[:1]
            windows = options.window if "window" in known[name].uses else options.window[:1]
            named += [named_spec(name, replace(base, block_size=b, window=w)) for b in blocks for w in windows]
    return list(dict.fromkeys(named))


def run_micro(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for, print tables; None after `--list`."""
    cases, specs = choose_cases(options, device), choose_methods(options, device)
    if options.list:
        for case in cases:
            console.print(f"{case.slug}  (K and V {case.kv_bytes / 1e9:.2f} GB, {case.dtype})", highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return None
    # Quick rows have fewer samples: they must not count as done when the default list is run.
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "micro.jsonl"
    cuda = device.type == "cuda"
    plan = Plan(
        precision=0.005 if cuda else 0.02,
        budget_s=options.budget_s or (6.0 if cuda else 5.0 if options.scale == "quick" else 25.0),
        min_samples=20 if cuda else 7,
    )
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    worker = Worker(Settings(str(device), plan, command, warm=not options.no_warm, eager=not options.no_eager))
    kinds = [kind for kind, left_out in (("warm", options.no_warm), ("eager", options.no_eager)) if not left_out]
    asked = options.scale or options.method or options.case or options.context or options.window != WINDOWS
    asked = asked or options.summary != DEFAULTS.summary_kind
    usual = next((s.config for s in specs if s.name == "resa"), DEFAULTS)
    further = {c.slug: further_methods(c, usual) for c in cases if cuda and not asked}
    outcome = run_cases(
        cases, specs, worker, path, device, console, fresh=options.fresh, kinds=kinds, further=further
    )  # fmt: skip
    print_report(outcome.rows, console)
    if outcome.resumed:
        console.print(f"{outcome.resumed} of {len(cases)} cases were done already (--fresh measures them again)")
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
