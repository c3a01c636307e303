"""`resa-bench gsr`: its flags, its case and methods."""

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
from ..decode.cases import WEIGHTS
from ..decode.cli import tokens
from ..decode.suite import DecodePlan
from ..micro.cases import DEFAULT_MODEL, DTYPES, SUMMARIES, SUMMARY_HELP, MethodSpec, summary_settings
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .cases import LENGTHS, RUNS, GsrCase, default_specs, scaled
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench gsr                                       on a GPU {DEFAULT_MODEL}, random weights, candidates of 9K to
                                                       18K tokens, timed at points; on a CPU SmolLM2, short, in full
  resa-bench gsr --run full --scale 0.25               every token decoded; lengths, summaries and answer a quarter
  resa-bench gsr --candidates 2 --lengths 9000 18000 --answer 4K --model qwen2.5-14b --weights int4
  resa-bench gsr --method triton-dense resa --points 5 --rectify-every 64

A: candidates from one shared prompt, the batch shrinking as they end. B: one answer, from a prompt that holds the
problem and a summary of each. Seconds to the answer are prefill + A + prefill + B. A rerun goes on where the last one
stopped; --fresh starts over."""

CPU_SCALE = 1 / 128
DEFAULTS = {"summary": 960, "answer": 8192}


def add_gsr_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("the workload, in tokens")
    which.add_argument("--model", metavar="NAME|PATH", help=f"{', '.join((*MODELS, SMOLLM))}, a folder, a .gguf file")
    which.add_argument("--candidates", type=int, metavar="N", help="how many there are (default: as many as lengths)")
    which.add_argument("--lengths", nargs="+", type=tokens, metavar="TOKENS", help="of each candidate, ragged ends")
    which.add_argument("--scale", type=float, help="of default lengths, summary and answer (default 1, on a CPU 1/128)")
    which.add_argument("--prompt-tokens", type=tokens, default=256, metavar="TOKENS", help="the problem, shared")
    which.add_argument("--summary-tokens", type=tokens, metavar="TOKENS", help="of a candidate in the refine prompt")
    which.add_argument("--answer", type=tokens, metavar="TOKENS", help="decoded in phase B")
    which.add_argument("--weights", choices=WEIGHTS, help="default bf16, on a CPU fp32")
    which.add_argument("--dtype", choices=DTYPES, help="of activations and K/V: default bf16, on a CPU fp32")
    which.add_argument("--page-size", type=int, help="of phase A's caches; 0 for contiguous ones (default 256, CPU 0)")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", type=int, default=16, metavar="b", help="of ReSA, in tokens")
    how.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio: share of blocks read")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", type=int, default=32, metavar="f")
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    run = parser.add_argument_group("the run")
    run.add_argument("--run", choices=RUNS, help="decode every token, or time steps at points and integrate")
    run.add_argument("--points", type=int, default=3, help="contexts timed in each stretch of a sampled run")
    run.add_argument("--seconds", type=float, default=0.5, help="decode at least that long at each point")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print the case and methods, and stop")


def choose_case(options: argparse.Namespace, device: torch.device) -> GsrCase:
    """The script asked for. Raises ValueError for lengths that do not fit, or are not as many as candidates."""
    cuda = device.type == "cuda"
    model = options.model or (DEFAULT_MODEL if cuda else SMOLLM)
    config = SMOLLM_CONFIG if model == SMOLLM else model_config(model)
    scale = options.scale if options.scale is not None else 1.0 if cuda else CPU_SCALE
    if not scale > 0:
        raise ValueError(f"--scale: got {scale}, must be above 0")
    lengths = tuple(options.lengths) if options.lengths else scaled(LENGTHS, scale)
    if options.candidates is not None and options.candidates != len(lengths):
        raise ValueError(
            f"--lengths: {len(lengths)} lengths for {options.candidates} candidates; give as many as --candidates"
        )
    summary, answer = scaled(tuple(DEFAULTS.values()), scale)
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    page = options.page_size if options.page_size is not None else 256 if cuda else 0
    return GsrCase(
        model,
        config,
        lengths,
        options.prompt_tokens,
        options.summary_tokens or summary,
        options.answer or answer,
        options.weights or dtype,
        dtype,
        options.run or ("sampled" if cuda else "full"),
        options.points,
        page or None,
        seed=options.seed,
    )


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named. Raises ValueError for an unknown one."""
    base = SparseConfig(
        block_size=options.block_size,
        active_ratio=options.ratio,
        min_blocks=options.min_blocks,
        rectify_every=options.rectify_every,
        **summary_settings(options.summary),
    )
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
    specs = [MethodSpec(name, base) for name in options.method] or default_specs(device, base)
    same = SparseConfig(rectify_every=options.rectify_every)
    return [replace(s, config=same) if known[s.name].is_dense else s for s in dict.fromkeys(specs)]


def run_gsr(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for and print tables; None after `--plan`."""
    case, specs = choose_case(options, device), choose_specs(options, device)
    if options.plan:
        console.print(case.slug, highlight=False)
        console.print(f"candidates of {', '.join(map(str, case.lengths))} tokens after {case.prompt}", highlight=False)
        console.print(f"an answer of {case.answer} tokens after {case.refine}", highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return None
    path = (options.output or default_folder(device)) / "gsr.jsonl"
    console.print(f"{case.slug} x {len(specs)} methods on {device}; results in {path}", highlight=False)
    plan = DecodePlan(seconds=options.seconds, eager=False, breakdown=False)
    worker = Worker(Settings(str(device), Plan(), command, decode=plan))
    outcome = run_cases([case], specs, worker, path, device, console, fresh=options.fresh)
    print_report(outcome.rows, console)
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
