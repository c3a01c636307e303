"""`resa-bench gsr`: its flags, its case and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console

from ...kernels.linear.best import OURS
from ...profiling.device import device_name
from ..core import command, flags
from ..core.flags import CASES, Flag, Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.spec import MethodSpec, dense_here, joining, make_spec
from ..core.sweep import Sweep
from ..engine import products
from ..engine.case import config_of, default_dtype, share_of
from ..engine.measure import DecodePlan
from ..micro.cases import DEFAULT_MODEL
from ..model.config import MODELS
from ..model.smollm import NAME as SMOLLM
from .break_even import CHOOSES, model_of, predict
from .cases import (
    LENGTHS,
    PAGE_SIZE,
    POINTS,
    RUNS,
    GsrCase,
    Segment,
    default_methods,
    scaled,
    script,
    segments,
    summary_tokens,
)
from .run import run_case
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench gsr                                       on a GPU {DEFAULT_MODEL}, random weights, candidates of 9K to
                                                       18K tokens, timed at points; on a CPU SmolLM2, short, in full
  resa-bench gsr --run full --scale 0.25               every token decoded; lengths, summaries and answer a quarter
  resa-bench gsr --candidates 2 --lengths 9000 18000 --answer 4K --model qwen2.5-14b --weights int4
  resa-bench gsr --candidates 16 --weights int4 --products best        16 candidates of 9K to 18K
  resa-bench gsr --method triton-dense resa --points 5 --rectify-every 64

A: candidates from one shared prompt, the batch shrinking as they end. B: one answer, from a prompt that holds the
problem and a summary of each. Seconds to the answer are prefill + A + prefill + B. A rerun goes on where the last one
stopped; --fresh starts over."""

CPU_SCALE = 1 / 128
SUMMARY, ANSWER = 960, 8192  # tokens at scale 1
FLAGS = (
    flags.MODEL.but(help=f"{', '.join((*MODELS, SMOLLM))}, a folder, a .gguf file"),
    Flag("--candidates", "how many there are (default: as many as lengths; without lengths a multiple of 4, four of "
         "which end at a time)", CASES, kind=flags.whole(1, 4096), metavar="N"),
    flags.several("--lengths", "of each candidate, ragged ends", repeats=True, kind=flags.tokens, metavar="TOKENS"),
    Flag("--scale", "of default lengths, summary and answer (default 1, on a CPU 1/128)", CASES, to="size",
         kind=flags.number(above=0.0)),
    flags.PROMPT_TOKENS.but(default=256, help="the problem, shared (default 256)"),
    Flag("--summary-tokens", "of a candidate in the refine prompt", CASES, kind=flags.tokens, metavar="TOKENS"),
    Flag("--answer", "decoded in phase B", CASES, kind=flags.tokens, metavar="TOKENS"),
    flags.WEIGHTS.but(many=False, default=None),
    flags.DTYPE,
    products.FLAG,
    flags.PAGE_SIZE.but(help="of phase A's caches; 0 for contiguous ones (default 256, on a CPU 0)"),
    flags.SEED,
    *flags.METHOD_FLAGS,
    Flag("--run", "decode every token, or time steps at points and integrate", choices=RUNS),
    Flag("--points", "contexts timed in each stretch of a sampled run (default 3)", kind=flags.whole(1, 1024)),
    flags.switch("--always-sparse", "sparse steps also in phases for which dense ones are predicted to be as fast"),
    flags.SECONDS.but(default=0.5, help="decode at least that long at each point (default 0.5)"),
    flags.DEVICE, flags.OUTPUT, flags.FRESH, flags.PLAN,
)  # fmt: skip


def choose_case(options: Options, device: torch.device) -> GsrCase:
    """The script asked for. Raises ValueError for lengths that do not fit, or are not as many as candidates."""
    cuda = device.type == "cuda"
    model = options.model or (DEFAULT_MODEL if cuda else SMOLLM)
    scale = options.size or (1.0 if cuda else CPU_SCALE)
    lengths = options.lengths or scaled(script(options.candidates or len(LENGTHS)), scale)
    if options.candidates is not None and options.candidates != len(lengths):
        raise ValueError(
            f"--lengths: {len(lengths)} lengths for {options.candidates} candidates; give as many as --candidates"
        )
    summary, answer = scaled((SUMMARY, ANSWER), scale)
    summary = min(summary, summary_tokens(len(lengths), options.prompt_tokens))
    run = options.run or ("sampled" if cuda else "full")
    if options.points is not None and run == "full":
        raise ValueError(f"--points {options.points}: a full run decodes every token; points need --run sampled")
    dtype = options.dtype or default_dtype(device)
    config = share_of(config_of(model))
    if options.products != OURS:
        products.check_flag(config, dtype, device, [options.weights or dtype])
    page = options.page_size if options.page_size is not None else PAGE_SIZE if cuda else 0
    return GsrCase(
        model, config, lengths, options.prompt_tokens, options.summary_tokens or summary,
        options.answer or answer, options.weights or dtype, dtype, run,
        options.points or POINTS, page or None, seed=options.seed, products=options.products,
        always_sparse=options.always_sparse,
    )  # fmt: skip


def choose_specs(options: Options, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, each as its name means everywhere."""
    sweep = Sweep.of(options)
    if sweep.names:
        return sweep.named()
    listed = replace(sweep, names=default_methods(device)).named()
    return [*listed, *joining("gsr", device, listed, sweep.base())]


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench gsr` measures. Raises ValueError."""
    measure = DecodePlan(seconds=options.seconds, eager=False, breakdown=False)
    return Plan([choose_case(options, device)], choose_specs(options, device), measure=measure)


def planned_steps(case: GsrCase, specs: Sequence[MethodSpec], device: torch.device) -> list[str]:
    """How a method that takes the faster way will run each phase, a line each; none where no rows say it."""
    model = None if case.always_sparse else model_of(device_name(device))
    chooses = next((spec for spec in specs if spec.name == CHOOSES), None)
    if model is None or chooses is None:
        return []
    dense = make_spec(dense_here(device), chooses.config)
    phases = (
        ("candidates", case.prompt, segments(case.lengths)),
        ("answer", case.refine, [Segment(1, 0, case.answer)]),
    )
    predictions = ((phase, predict(model, case, chooses, dense, prompt, script)) for phase, prompt, script in phases)
    return [f"{chooses.label}, {phase}: {predicted.steps}" for phase, predicted in predictions if predicted is not None]


def show_plan(plan: Plan, device: torch.device, console: Console) -> None:
    """The case, its lengths, and methods."""
    for case in plan.cases:
        assert isinstance(case, GsrCase)
        console.print(f"candidates of {', '.join(map(str, case.lengths))} tokens after {case.prompt}", highlight=False)
        console.print(f"an answer of {case.answer} tokens after {case.refine}", highlight=False)
        for line in planned_steps(case, plan.specs, device):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    command.show_plan(plan, device, console)


SUITE = Suite(
    "gsr", "self-refinement: candidates side by side, then one answer from them", EXAMPLES, FLAGS, plan, run_case,
    print_report, show_plan, shares_model=True,
    reference=(
        Part("--candidates 16 --weights int4 --seconds 0.3", gpu_minutes=2.2, cpu_minutes=None),
        Part(name="short", gpu_minutes=None, cpu_minutes=1.5),
    ),
)  # fmt: skip
