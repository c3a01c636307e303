"""`resa-bench decode`: its flags, its cases and methods, its plan."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ...kernels import SparseConfig, get_method, registered
from ...kernels.config import GQA_POLICIES
from ...profiling.attached import attached
from ...profiling.ceilings import measure_ceilings
from ...profiling.timing import Plan, make_timer
from ..core.runner import Outcome, default_folder, run_cases
from ..core.worker import Settings, Worker
from ..engine.costs import memory_bytes, plan_costs
from ..engine.measure import EAGER_STEPS
from ..engine.sampling import Sampling
from ..micro.cases import (
    DEFAULT_MODEL,
    DTYPES,
    SUMMARIES,
    SUMMARY_HELP,
    MethodSpec,
    named_spec,
    parse_tokens,
    summary_settings,
)
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .cases import (
    QUEST_DENSE_LAYERS,
    TEXT_PERIODS,
    WEIGHTS,
    DecodeCase,
    default_list,
    default_specs,
    is_study,
    matching,
    study_specs,
)
from .suite import DecodePlan
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench decode                                    the default list: on a GPU {DEFAULT_MODEL} with random weights,
                                                       4K to 256K; on a CPU SmolLM2-135M on real text, 1K to 8K
  resa-bench decode --plan                             memory and floor of each case, without measuring
  resa-bench decode --context 256K --batch 1 4 --weights bf16 int4 --method resa sdpa-cudnn triton-dense
  resa-bench decode --model llama-3.1-8b --context 128K
  resa-bench decode --model ./checkpoint --prompt text --context 8K    a Hugging Face folder or a .gguf file
  resa-bench decode --batch 8 --context 256K --shared-kv               one K/V cache for all layers, as in the paper
  resa-bench decode --rectify-every 16 32 64 128 --method resa triton-dense --context 256K

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""


def tokens(text: str) -> int:
    try:
        return parse_tokens(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which cases")
    scale = which.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", const="quick", dest="scale", help="one or two short cases")
    scale.add_argument("--full", action="store_const", const="full", dest="scale", help="the whole grid, resumable")
    which.add_argument("--case", nargs="+", default=[], metavar="GLOB", help="only cases whose name matches")
    which.add_argument("--context", nargs="+", type=tokens, default=[], metavar="TOKENS", help="e.g. 4K 262144")
    which.add_argument("--batch", nargs="+", type=int, default=[], metavar="B")
    which.add_argument(
        "--model",
        metavar="NAME|PATH",
        help=f"{', '.join((*MODELS, SMOLLM))}, a Hugging Face folder or a .gguf file (presets have random weights)",
    )
    which.add_argument("--weights", nargs="+", choices=WEIGHTS, default=[], help="default bf16, on a CPU fp32")
    which.add_argument("--dtype", choices=DTYPES, help="of activations and K/V: default bf16, on a CPU fp32")
    which.add_argument("--shared-kv", action="store_true", help="one K/V cache for all layers (speed only, not text)")
    which.add_argument("--prompt", choices=("synthetic", "text"), help="what the caches hold: noise, or real text")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", nargs="+", type=int, default=[16], metavar="b", help="of ReSA, in tokens")
    how.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio: share of blocks read")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", nargs="+", type=int, default=[32], metavar="f")
    how.add_argument("--budget-tokens", type=int, help="a budget in tokens for Quest, instead of --ratio")
    how.add_argument("--gqa-policy", choices=GQA_POLICIES, default="group-sum", help="of Quest")
    how.add_argument("--dense-layers", type=int, default=QUEST_DENSE_LAYERS, help="of Quest: first layers left dense")
    how.add_argument(
        "--window", nargs="+", type=int, default=[SparseConfig().window], metavar="w",
        help="of RetroAttention: newest tokens that a step runs, the fed one included",
    )  # fmt: skip
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    how.add_argument("--pinned-blocks", type=int, default=0, metavar="P", help="first blocks that are always read")
    how.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    how.add_argument("--top-p", type=float, default=1.0)
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print each case's memory and floor, and stop")
    run.add_argument("--seconds", type=float, default=2.0, help="decode at least that long (and two periods)")
    run.add_argument("--no-eager", action="store_true", help="leave out the eager rows")
    run.add_argument("--drift", action="store_true", help="ReSA: what each rectification says about the steps before")
    run.add_argument("--no-breakdown", action="store_true", help="leave out the stages")
    run.add_argument("--no-plots", action="store_true")


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[DecodeCase]:
    """The list asked for. Contexts, batches and weights that are not on it are added rather than refused."""
    cuda = device.type == "cuda"
    model = options.model or (DEFAULT_MODEL if cuda else SMOLLM)
    config = SMOLLM_CONFIG if model == SMOLLM else model_config(model)  # its package is fetched when it is needed
    real = model not in MODELS
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    prompt = options.prompt or ("text" if real else "synthetic")
    if prompt == "text" and not real:
        raise ValueError(f"--prompt text: {model} has random weights and no tokenizer; give --model a checkpoint")
    if options.shared_kv and prompt == "text":
        raise ValueError("--shared-kv: layers that share a cache overwrite each other's text; use --prompt synthetic")
    scale = options.scale or "default"
    sampling = Sampling(options.temperature, options.top_p)
    listed = default_list(device, scale, model, config, dtype=dtype, prompt=prompt, seed=options.seed)
    if options.context or options.batch or options.shared_kv:
        contexts = options.context or sorted({c.context for c in listed})
        cases = [
            DecodeCase(model, config, b, c, w, dtype, options.shared_kv, prompt, seed=options.seed)
            for w in options.weights or [dtype]
            for b in options.batch or [1]
            for c in contexts
        ]
    else:
        cases = [c for c in listed if not options.weights or c.weights in options.weights]
    cases = matching([replace(c, sampling=sampling) for c in cases], options.case)
    every = max(*options.rectify_every, *options.window)
    least = (TEXT_PERIODS * every if prompt == "text" else max(every, 2 * EAGER_STEPS)) + 1
    for case in cases:
        if case.context < least:
            raise ValueError(f"--context {case.context}: periods of {every} tokens need a context of {least} at least")
        if prompt == "text" and case.context > config.context:
            raise ValueError(
                f"--context {case.context}: {config.name} handles texts of at most {config.context} tokens"
            )
    return cases


def choose_specs(options: argparse.Namespace, device: torch.device, prompt: str) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, others with default settings too."""
    known = registered()
    base = SparseConfig(
        active_ratio=options.ratio,
        min_blocks=options.min_blocks,
        rectify_every=options.rectify_every[0],
        **summary_settings(options.summary),
        pinned_blocks=options.pinned_blocks,
    )
    specs = default_specs(device, base, options.block_size, prompt)
    if options.scale == "quick" and not options.method:
        specs = [s for s in specs if known[s.name].is_dense or s.name.startswith("resa")]
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
    if options.method:
        present = {s.name for s in specs}
        specs = [s for s in specs if s.name in options.method]
        for name in options.method:
            if name not in present:
                sizes = options.block_size if "block_size" in known[name].uses else options.block_size[:1]
                specs += [named_spec(name, replace(base, block_size=b)) for b in sizes]
    out: list[MethodSpec] = []
    for spec in specs:
        config = spec.config
        if spec.name == "quest":
            config = replace(config, gqa_policy=options.gqa_policy)
            if options.budget_tokens:
                config = replace(config, budget_tokens=options.budget_tokens)
            spec = MethodSpec("quest", config, options.dense_layers)
        every = options.rectify_every if "rectify_every" in known[spec.name].uses else options.rectify_every[:1]
        windows = options.window if "window" in known[spec.name].uses else options.window[:1]
        out += [replace(spec, config=replace(config, rectify_every=f, window=w)) for f in every for w in windows]
    return list(dict.fromkeys(out))


def narrowed(options: argparse.Namespace) -> bool:
    """Whether the user asked for anything but a list as it is."""
    return bool(
        options.case or options.context or options.batch or options.weights or options.method or options.shared_kv
        or options.block_size != [16] or options.rectify_every != [32] or options.window != [SparseConfig().window]
    )  # fmt: skip


def print_plan(
    cases: Sequence[DecodeCase], specs: Sequence[MethodSpec], device: torch.device, console: Console
) -> None:
    """Memory and floors of every case, from shapes and this device's ceilings."""
    console.print("measuring the device's ceilings ...", highlight=False)
    ceilings = measure_ceilings(make_timer(device))
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    title = f"{ceilings.read_gbps:.0f} GB/s read, {ceilings.matrix_tflops:.3g} TFLOP/s"
    table = Table(title=f"floors at {title}; speed-up: what they allow over dense", title_justify="left")
    for name in ("case", "memory GB", "method", "floor ms a token", "tokens/s at most", "speed-up"):
        table.add_column(name, justify="left" if name in ("case", "method") else "right")
    for case in cases:
        need = memory_bytes(case, list(specs))
        fits = total is None or need <= total
        dense = next((s for s in specs if get_method(s.name).is_dense), None)
        dense_us = plan_costs(case, dense, True).floor_us(ceilings) if dense else None
        for i, spec in enumerate(specs):
            is_dense = get_method(spec.name).is_dense
            if is_dense and spec != dense:
                continue  # all dense methods have the same floor
            us = plan_costs(case, spec, is_dense).floor_us(ceilings)
            table.add_row(
                case.slug if i == 0 else "",
                (f"{need / 1e9:.1f}" if fits else f"[red]{need / 1e9:.1f}[/]") if i == 0 else "",
                "dense" if is_dense else spec.label,
                f"{us / 1e3:.2f}",
                f"{case.batch / us * 1e6:.0f}",
                f"{dense_us / us:.2f}x" if dense_us else "",
            )
    console.print(table)
    if total is not None:
        console.print(f"the device has {total / 1e9:.1f} GB; cases in red do not fit and are skipped", highlight=False)


def run_decode(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for, print tables; None after `--plan`."""
    cases = choose_cases(options, device)
    specs = choose_specs(options, device, cases[0].prompt)
    study = not narrowed(options) and (options.scale or "default") == "default" and device.type == "cuda"
    further = {case.slug: study_specs(specs) for case in cases if study and is_study(case)}
    if options.plan:
        print_plan(cases, specs, device, console)
        return None
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "decode.jsonl"
    tool = attached()
    if tool and not options.no_breakdown and device.type == "cuda":
        console.print(f"under {tool}: stages are left out, since two tracers cannot share the GPU", highlight=False)
    traces = not options.no_breakdown and (tool is None or device.type != "cuda")
    plan = DecodePlan(seconds=options.seconds, eager=not options.no_eager, breakdown=traces, drift=options.drift)
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    worker = Worker(Settings(str(device), Plan(), command, decode=plan))
    kinds = [*(["eager"] if plan.eager and device.type == "cuda" else []), *(["gap"] if plan.breakdown else [])]
    outcome = run_cases(
        cases, specs, worker, path, device, console, fresh=options.fresh or options.drift, kinds=kinds, further=further
    )
    print_report(outcome.rows, console)
    if outcome.resumed:
        console.print(f"{outcome.resumed} of {len(cases)} cases were done already (--fresh measures them again)")
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
