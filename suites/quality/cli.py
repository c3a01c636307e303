"""`resa-bench quality`: its flags, its cases and methods."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig, registered
from ...kernels.config import SUMMARY_KINDS
from ...profiling.timing import Plan
from ..cases import DTYPES, MethodSpec, named_spec
from ..decode.cli import tokens
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from ..runner import Outcome, default_folder, run_cases
from ..worker import Settings, Worker
from .cases import SOURCES, QualityCase, default_specs
from .table import print_report

EXAMPLES = """examples:
  resa-bench quality                                   SmolLM2-135M: 4K of text, then 512 steps under each method
  resa-bench quality --quick                           1K of text, 64 steps, three methods
  resa-bench quality --steps 1024 --rectify-every 1 16 32 64 128 --method sparse resa-torch
  resa-bench quality --ratio 0.05 --source text own    half the blocks; on text, and on dense's own continuation
  resa-bench quality --model ./checkpoint              a Hugging Face folder or a .gguf file

KL, agreement, loss and the error of keys and values, all against dense decoding fed the same tokens. A rerun goes on
where the last one stopped (same device, commit and output folder); --fresh starts over."""

PERIODS = [1, 16, 32, 128]
WINDOWS = [2, 4, 8]


def add_quality_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which cases")
    which.add_argument("--quick", action="store_const", const="quick", dest="scale", help="a short case, few methods")
    which.add_argument("--model", default=SMOLLM, metavar="NAME|PATH", help="SmolLM2, a folder or a .gguf file")
    which.add_argument(
        "--prompt-tokens", type=tokens, metavar="TOKENS", help="prefilled densely (default 4K, quick 1K)"
    )
    which.add_argument("--steps", type=tokens, help="fed one by one after that (default 512, quick 64)")
    which.add_argument("--batch", type=int, default=2, metavar="B", help="stretches of text")
    which.add_argument("--source", nargs="+", choices=SOURCES, default=["text"], help="what is fed")
    which.add_argument("--dtype", choices=DTYPES, help="default bf16, on a CPU fp32")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", type=int, default=16, metavar="b", help="in tokens")
    how.add_argument("--ratio", nargs="+", type=float, default=[0.1], metavar="r", help="active ratios")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument(
        "--rectify-every", nargs="+", type=int, default=PERIODS, metavar="f", help="of ReSA; 1 is its level"
    )
    how.add_argument("--window", nargs="+", type=int, default=WINDOWS, metavar="w", help="of RetroAttention, in tokens")
    how.add_argument("--summary", choices=SUMMARY_KINDS, default="minmax")
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print cases and methods, and stop")
    run.add_argument("--no-plots", action="store_true")


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[QualityCase]:
    """A case for each source. Raises ValueError for a model without text, or a text over its context."""
    if options.model in MODELS:
        raise ValueError(f"--model {options.model}: random weights say nothing about quality; give a checkpoint")
    config = SMOLLM_CONFIG if options.model == SMOLLM else model_config(options.model)
    quick = options.scale == "quick"
    prompt = options.prompt_tokens or (1024 if quick else 4096)
    steps = options.steps or (64 if quick else 512)
    if steps < max(options.window):
        raise ValueError(f"--steps {steps}: windows of {max(options.window)} tokens need as many steps at least")
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    sources = dict.fromkeys(options.source)
    return [QualityCase(options.model, config, prompt, steps, s, options.batch, dtype, options.seed) for s in sources]


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods at each ratio; with --method those named. Raises ValueError for an unknown one."""
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
        if known[name].is_dense:
            raise ValueError(f"--method {name}: dense decoding is what the others are compared with")
    quick = options.scale == "quick"
    periods = [1, 32] if quick and options.rectify_every == PERIODS else options.rectify_every
    specs: list[MethodSpec] = []
    for ratio in options.ratio:
        base = SparseConfig(
            block_size=options.block_size,
            active_ratio=ratio,
            min_blocks=options.min_blocks,
            summary_kind=options.summary,
        )
        found = default_specs(device, base, periods, options.window, quick=quick and not options.method)
        if options.method:
            found = [s for s in found if s.name in options.method]
            present = {s.name for s in found}
            for name in options.method:
                every = periods if "rectify_every" in known[name].uses else periods[:1]
                windows = options.window if "window" in known[name].uses else options.window[:1]
                if name not in present:
                    found += [
                        named_spec(name, replace(base, rectify_every=f, window=w)) for f in every for w in windows
                    ]
        specs += found
    return list(dict.fromkeys(specs))


def run_quality(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for and print tables; None after `--plan`."""
    cases, specs = choose_cases(options, device), choose_specs(options, device)
    if options.plan:
        for case in cases:
            console.print(case.slug, highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return None
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "quality.jsonl"
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    worker = Worker(Settings(str(device), Plan(), command))
    outcome = run_cases(cases, specs, worker, path, device, console, fresh=options.fresh)
    print_report(outcome.rows, console)
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
