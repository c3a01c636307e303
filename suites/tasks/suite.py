"""`resa-bench tasks`: its flags, its cases and methods."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig, registered
from ...profiling.timing import Plan
from ..core.runner import Outcome, default_folder, run_cases
from ..core.worker import Settings, Worker
from ..decode.cli import tokens
from ..micro.cases import DTYPES, SUMMARIES, SUMMARY_HELP, MethodSpec, summary_settings
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .cases import TASKS, TaskCase, default_list, default_specs, dense_spec
from .table import print_report

EXAMPLES = """examples:
  resa-bench tasks                                     SmolLM2-135M: free decoding, a needle, key-copy, all methods
  resa-bench tasks --quick                             a short case of each, three methods
  resa-bench tasks --task needle --context 1K 2K 4K 7K --samples 8
  resa-bench tasks --task divergence --temperature 0 0.6 --steps 256 --rectify-every 16 32 64 128
  resa-bench tasks --model ./checkpoint --full         a Hugging Face folder or a .gguf file

Prompts are prefilled densely; what follows them, questions included, is decoded by the method, step by step. Dense
decoding's own score stands first. A rerun goes on where the last one stopped (same device, commit and output folder);
--fresh starts over."""

PERIODS = [16, 32, 128]


def add_tasks_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which cases")
    scale = which.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", const="quick", dest="scale", help="short cases, few methods")
    scale.add_argument("--full", action="store_const", const="full", dest="scale", help="contexts to 7K, many prompts")
    which.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    which.add_argument("--model", default=SMOLLM, metavar="NAME|PATH", help="SmolLM2, a folder or a .gguf file")
    which.add_argument("--context", nargs="+", type=tokens, default=[], metavar="TOKENS", help="of the prompts")
    which.add_argument("--steps", type=tokens, help="decoded freely (default 128, quick 48, full 512)")
    which.add_argument("--samples", type=int, help="batches of prompts, haystacks, lists (default 1, 2, 2; full more)")
    which.add_argument(
        "--temperature", nargs="+", type=float, default=[0.0], metavar="T",
        help="of free decoding: 0 is greedy, above it noise is shared by all methods",
    )  # fmt: skip
    which.add_argument("--dtype", choices=DTYPES, help="default bf16, on a CPU fp32")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", type=int, default=16, metavar="b", help="in tokens")
    how.add_argument("--ratio", nargs="+", type=float, default=[0.1], metavar="r", help="active ratios")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", nargs="+", type=int, default=PERIODS, metavar="f", help="of ReSA")
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    how.add_argument("--pinned-blocks", type=int, default=0, metavar="P", help="first blocks that are always read")
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print cases and methods, and stop")
    run.add_argument("--no-plots", action="store_true")


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[TaskCase]:
    """The list asked for. Raises ValueError for a model without text, or a context that it does not handle."""
    if options.model in MODELS:
        raise ValueError(f"--model {options.model}: random weights find no needle; give a checkpoint")
    if options.samples is not None and options.samples < 1:
        raise ValueError(f"--samples: got {options.samples}, must be at least 1")
    config = SMOLLM_CONFIG if options.model == SMOLLM else model_config(options.model)
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    cases = default_list(
        options.scale or "default", options.model, config, tasks=options.task, contexts=options.context,
        samples=options.samples, steps=options.steps, temperatures=options.temperature, dtype=dtype, seed=options.seed,
    )  # fmt: skip
    return list(dict.fromkeys(cases))


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """Dense decoding, then the default methods at each ratio; with --method those named. Raises ValueError."""
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
        if known[name].is_dense:
            raise ValueError(f"--method {name}: dense decoding is measured anyway, as what the others are beside")
    quick = options.scale == "quick"
    periods = [32] if quick and options.rectify_every == PERIODS else options.rectify_every
    specs = [dense_spec(device)]
    for ratio in options.ratio:
        base = SparseConfig(
            block_size=options.block_size,
            active_ratio=ratio,
            min_blocks=options.min_blocks,
            **summary_settings(options.summary),
            pinned_blocks=options.pinned_blocks,
        )
        found = default_specs(device, base, periods, quick=quick and not options.method)
        if options.method:
            present = {s.name for s in found}
            found = [s for s in found if s.name in options.method]
            for name in options.method:
                every = periods if "rectify_every" in known[name].uses else periods[:1]
                if name not in present:
                    found += [MethodSpec(name, replace(base, rectify_every=f)) for f in every]
        specs += found
    return list(dict.fromkeys(specs))


def run_tasks(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for and print tables; None after `--plan`."""
    cases, specs = choose_cases(options, device), choose_specs(options, device)
    if options.plan:
        for case in cases:
            console.print(case.slug, highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return None
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "tasks.jsonl"
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    worker = Worker(Settings(str(device), Plan(), command))
    outcome = run_cases(cases, specs, worker, path, device, console, fresh=options.fresh)
    print_report(outcome.rows, console)
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
