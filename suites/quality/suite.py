"""`resa-bench quality`: its flags, its cases and methods."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig, registered
from ...kernels.config import GQA_POLICIES
from ...profiling.timing import Plan
from ..core.runner import Outcome, default_folder, run_cases
from ..core.worker import Settings, Worker
from ..decode.cli import tokens
from ..micro.cases import (
    DEFAULTS,
    DTYPES,
    QUEST_DENSE_LAYERS,
    QUEST_POLICIES,
    SUMMARIES,
    SUMMARY_HELP,
    MethodSpec,
    named_spec,
    summary_settings,
)
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .cases import LEVEL, SOURCES, QualityCase, default_specs
from .table import print_report

EXAMPLES = """examples:
  resa-bench quality                                   SmolLM2-135M: 4K of text, then 512 steps under each method
  resa-bench quality --quick                           1K of text, 64 steps, three methods
  resa-bench quality --steps 1024 --rectify-every 1 32 128 --method sparse resa-torch
  resa-bench quality --ratio 0.05 0.1 0.2 --source text own    on text, and on dense's own continuation of it
  resa-bench quality --method sparse oracle --spread-weight 0.2 1 4            mean/std summaries beside min/max
  resa-bench quality --model ./checkpoint              a Hugging Face folder or a .gguf file
  resa-bench quality --stepwise --method resa          token by token: on a GPU with the kernels, as graphs

KL, agreement, loss, the error of keys and values, and the share of attention that selected blocks hold (recall), all
against dense decoding fed the same tokens. Methods whose steps can be evaluated together are, unless --stepwise. A
rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What a list runs where no flag says otherwise."""

    prompt: int = 4096  # tokens
    steps: int = 512
    source: tuple[str, ...] = ("text",)
    ratio: tuple[float, ...] = (0.1,)
    block_size: tuple[int, ...] = (16, 32, 64)
    rectify_every: tuple[int, ...] = (LEVEL, 16, 32, 64, 128)
    gqa_policy: tuple[str, ...] = QUEST_POLICIES
    dense_layers: tuple[int, ...] = (0, QUEST_DENSE_LAYERS)
    window: tuple[int, ...] = (2, 8)
    spread_weight: tuple[float, ...] = (0.5,)
    pinned_blocks: tuple[int, ...] = (0, 1)
    summary_dtype: tuple[str | None, ...] = (None, "fp8")


GRIDS = {
    "quick": Grid(prompt=1024, steps=64, rectify_every=(LEVEL, 32)),
    "default": Grid(),
    "full": Grid(
        steps=1024, source=SOURCES, ratio=(0.05, 0.1, 0.2), gqa_policy=GQA_POLICIES,
        window=(2, 4, 8),
        spread_weight=(0.2, 0.5, 1.0, 2.0, 4.0),
    ),
}  # fmt: skip


def add_quality_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which cases")
    scale = which.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", const="quick", dest="scale", help="a short case, few methods")
    scale.add_argument("--full", action="store_const", const="full", dest="scale", help="the whole grid, for a GPU")
    which.add_argument("--model", default=SMOLLM, metavar="NAME|PATH", help="SmolLM2, a folder or a .gguf file")
    which.add_argument(
        "--prompt-tokens", type=tokens, metavar="TOKENS", help="prefilled densely (default 4K, quick 1K)"
    )
    which.add_argument("--steps", type=tokens, help="fed after that (default 512, quick 64, full 1K)")
    which.add_argument("--batch", type=int, default=2, metavar="B", help="stretches of text")
    which.add_argument("--source", nargs="+", choices=SOURCES, help="what is fed (default text; full both)")
    which.add_argument("--dtype", choices=DTYPES, help="default bf16, on a CPU fp32")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument(
        "--block-size", nargs="+", type=int, metavar="b", help="in tokens; all but the first of ReSA alone"
    )
    how.add_argument("--ratio", nargs="+", type=float, metavar="r", help="active ratios (default 0.1)")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", nargs="+", type=int, metavar="f", help="of ReSA; 1 is its level")
    how.add_argument("--gqa-policy", nargs="+", choices=GQA_POLICIES, help="of Quest (default per-head group-sum)")
    how.add_argument("--dense-layers", nargs="+", type=int, metavar="N", help="of Quest (default 0, and 2 once)")
    how.add_argument("--window", nargs="+", type=int, metavar="w", help="of RetroAttention, in tokens (default 2 8)")
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    how.add_argument("--spread-weight", nargs="+", type=float, metavar="c", help="of mean/std (default 0.5)")
    how.add_argument(
        "--pinned-blocks", nargs="+", type=int, metavar="P", help="first blocks, always read (default 0 1)"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument(
        "--stepwise", action="store_true", help="decode token by token, on a GPU with the kernels; no recall"
    )
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print cases and methods, and stop")
    run.add_argument("--no-plots", action="store_true")


def grid(options: argparse.Namespace) -> Grid:
    """The list asked for, with what the flags set in its place."""
    names = (
        "source", "ratio", "block_size", "rectify_every", "gqa_policy", "dense_layers", "window", "spread_weight",
        "pinned_blocks",
    )  # fmt: skip
    chosen = {name: tuple(dict.fromkeys(getattr(options, name))) for name in names if getattr(options, name)}
    if options.method:  # what is named runs as it is set
        chosen = {"block_size": (DEFAULTS.block_size,), "dense_layers": (0,), "pinned_blocks": (0,)} | chosen
        chosen["summary_dtype"] = ()
    numbers = {"prompt": options.prompt_tokens, "steps": options.steps}
    chosen |= {name: value for name, value in numbers.items() if value is not None}
    return replace(GRIDS[options.scale or "default"], **chosen)  # type: ignore[arg-type]


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[QualityCase]:
    """A case for each source. Raises ValueError for a model without text, or a text over its context."""
    model = options.model
    if model in MODELS:
        raise ValueError(f"--model {model}: random weights say nothing about quality; give a checkpoint")
    config = SMOLLM_CONFIG if model == SMOLLM else model_config(model)
    if Path(model).is_dir() and not (Path(model) / "tokenizer.json").exists():
        raise ValueError(f"--model {model}: has no tokenizer.json, which the texts need; put the model's there")
    chosen = grid(options)
    if any(spec.config.window > chosen.steps for spec in choose_specs(options, device) if "window" in spec.columns()):
        raise ValueError(f"--steps {chosen.steps}: windows of {max(chosen.window)} tokens need as many steps at least")
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    return [
        QualityCase(
            model, config, chosen.prompt, chosen.steps, source, options.batch, dtype, options.seed, options.stepwise
        )
        for source in chosen.source
    ]


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods at each ratio; with --method those named. Raises ValueError for an unknown one."""
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
        if known[name].is_dense:
            raise ValueError(f"--method {name}: dense decoding is what the others are compared with")
    chosen, quick = grid(options), options.scale == "quick"
    for layers in chosen.dense_layers:
        if layers < 0:
            raise ValueError(f"--dense-layers: got {layers}, must be 0 or more")
    specs: list[MethodSpec] = []
    for base in _bases(options, chosen):
        found = default_specs(
            device, base, chosen.block_size, chosen.rectify_every, chosen.gqa_policy, chosen.dense_layers,
            chosen.window, chosen.spread_weight, chosen.pinned_blocks, chosen.summary_dtype,
            quick=quick and not options.method,
        )  # fmt: skip
        if options.method:
            found = [s for s in found if s.name in options.method]
            present = {s.name for s in found}
            for name in options.method:
                every = chosen.rectify_every if "rectify_every" in known[name].uses else chosen.rectify_every[:1]
                windows = chosen.window if "window" in known[name].uses else chosen.window[:1]
                if name not in present:
                    found += [
                        named_spec(name, replace(base, rectify_every=f, window=w)) for f in every for w in windows
                    ]
        specs += found
    return list(dict.fromkeys(specs))


def _bases(options: argparse.Namespace, chosen: Grid) -> Iterator[SparseConfig]:
    """The settings that all methods share, one after another: each ratio, and with mean/std each c."""
    spreads = chosen.spread_weight if options.summary.startswith("meanstd") else (DEFAULTS.spread_weight,)
    for ratio, spread in product(chosen.ratio, spreads):
        yield SparseConfig(
            block_size=chosen.block_size[0],
            active_ratio=ratio,
            min_blocks=options.min_blocks,
            **summary_settings(options.summary),
            spread_weight=spread,
        )


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
