"""`resa-bench micro`: its flags, its cases and methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console

from ...kernels import SparseConfig
from ...profiling.timing import Plan as TimingPlan
from ..core import flags
from ..core.flags import CASES, Flag, Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.spec import MethodSpec, other_ways, rival_notes
from ..core.sweep import Sweep, matching
from .cases import (
    BLOCK_SIZES,
    DEFAULT_MODEL,
    PATTERNS,
    PRESETS,
    QUEST_POLICIES,
    Case,
    ModelShape,
    default_cases,
    default_methods,
    further_methods,
)
from .rotation import STATE
from .run import run_case
from .table import print_report

EXAMPLES = """examples:
  resa-bench micro                                     the default list (six minutes on an H200)
  resa-bench micro --quick                             two short cases
  resa-bench micro --context 64K 256K --batch 4        these cases, whatever the list
  resa-bench micro --method resa quest sdpa-cudnn      these methods only
  resa-bench micro --kv-dtype fp8 --context 256K       K and V in e4m3, half the bytes
  resa-bench micro --q-heads 64 --kv-heads 8 --head-dim 128 --context 128K
  RESA_REFERENCE=/path/to/ReSA resa-bench micro --method resa resa-authors sdpa-cudnn

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""

HEADS: dict[str, Any] = dict(kind=flags.whole(1, 4096), metavar="N")
PATTERN = flags.PATTERN.but(
    help=f"where the blocks lie that queries are drawn to; {flags.PATTERN.help}", choices=PATTERNS
)
Q_HEADS = Flag("--q-heads", "with --kv-heads and --head-dim: a shape of your own", CASES, **HEADS)
KV_HEADS = Flag("--kv-heads", "of that shape", CASES, **HEADS)
HEAD_DIM = Flag("--head-dim", "of that shape", CASES, **(HEADS | {"metavar": "D"}))
BUDGET_S = Flag(
    "--budget-s", "most seconds of sampling a case", kind=flags.number(0.0, 86400.0, above=0.0), metavar="S"
)
NO_WARM = flags.switch("--no-warm", "leave out the warm-cache rows")
NO_ROTATION = flags.switch("--no-rotation", "leave out the rows of several layers' steps back to back (on a GPU)")
FLAGS = (
    flags.QUICK, flags.FULL, flags.CASE, flags.CONTEXT, flags.BATCH,
    flags.MODEL.but(choices=tuple(PRESETS), metavar=None, help=f"model shape (default {DEFAULT_MODEL})"),
    Q_HEADS, KV_HEADS, HEAD_DIM, PATTERN, flags.DTYPE, flags.KV_DTYPE, flags.PAGE_SIZE, flags.SEED,
    *(flag for flag in flags.METHOD_FLAGS if flag.name != "dense_layers"),
    *flags.RUN_FLAGS, BUDGET_S, NO_WARM, NO_ROTATION, flags.NO_EAGER,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """How long to sample, and what to leave out."""

    timing: TimingPlan
    warm: bool = True  # also time `total` with a warm cache
    eager: bool = True  # also time `total` launched eagerly, on a GPU
    rotation: bool = False  # also time the steps of several layers back to back


def choose_cases(options: Options, device: torch.device) -> list[Case]:
    """The list asked for. Contexts and batches that are not on it are added rather than refused. Raises ValueError."""
    own = (options.q_heads, options.kv_heads, options.head_dim)
    if any(value is not None for value in own):
        if None in own:
            raise ValueError("--q-heads, --kv-heads, --head-dim: give all three, or none")
        if options.model:
            raise ValueError(f"--model {options.model}: heads are given too; give --model or the heads, not both")
        model, heads = "custom-{}-{}-{}".format(*own), ModelShape(*own)
    else:
        model = options.model or DEFAULT_MODEL
        if model not in PRESETS:
            raise ValueError(f"--model {model}: unknown; shapes are {', '.join(PRESETS)}")
        heads = PRESETS[model]
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    listed = default_cases(device, options.scale)
    if options.context or options.batch or own != (None, None, None) or options.pattern or options.page_size:
        contexts = options.context or sorted({c.context for c in listed if c.batch == 1})
        cases = [Case(model, heads, b, c) for b in options.batch or [1] for c in contexts]
    elif options.scale == "full" and options.model:
        cases = [case for case in listed if case.model == model]
    else:
        cases = default_cases(device, options.scale, model)
    pattern = {"pattern": options.pattern} if options.pattern else {}
    cache = {"page_size": options.page_size or None, "kv_dtype": options.kv_dtype}
    cases = [replace(c, dtype=dtype, seed=options.seed, **cache, **pattern) for c in cases]
    cases = matching(cases, options.case, "micro")
    for case in cases:
        case.shape  # noqa: B018  (checks the heads)
    return cases


def choose_methods(options: Options, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, each as its name means in every command.

    `--quick` takes one block size and one of Quest's policies.
    """
    sweep = Sweep.of(options)
    quick = options.scale == "quick"
    sizes = sweep.values("block_size", *(BLOCK_SIZES[:1] if quick else BLOCK_SIZES))
    if sweep.names:
        return sweep.named(dense_layers=None)  # a layer stands alone
    policies = sweep.values("gqa_policy", *(QUEST_POLICIES[-1:] if quick else QUEST_POLICIES))
    base = replace(sweep.base(), gqa_policy=SparseConfig().gqa_policy)
    return default_methods(device, base, sizes, policies, sweep.values("window"))


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench micro` measures. Raises ValueError."""
    cases, specs = choose_cases(options, device), choose_methods(options, device)
    cuda = device.type == "cuda"
    timing = TimingPlan(
        precision=0.005 if cuda else 0.02,
        budget_s=options.budget_s or (6.0 if cuda else {"quick": 5.0, "full": 25.0}.get(options.scale, 15.0)),
        min_samples=20 if cuda else 7,
    )
    left_out = {
        "warm": options.no_warm, "eager": options.no_eager or not cuda, STATE: options.no_rotation or not cuda,
    }  # fmt: skip
    as_listed = options.scale == "default" and not options.context  # --case picks from the list
    settings = Sweep.of(options)
    plain = as_listed and not (settings.names or settings.summaries or "window" in settings.given)
    config = next((spec.config for spec in specs if spec.name == "resa"), SparseConfig())

    def further(case: Case) -> list[MethodSpec]:
        others = [] if settings.names or case.kv_dtype else other_ways(case.shape, specs, device)
        return [*others, *(further_methods(case, config, device) if plain else ())]

    return Plan(
        cases,
        specs,
        further={case.slug: further(case) for case in cases if cuda},
        kinds=[kind for kind, left in left_out.items() if not left],
        notes=rival_notes(specs),
        measure=Measure(timing, warm=not left_out["warm"], eager=not left_out["eager"], rotation=not left_out[STATE]),
    )


def show_plan(plan: Plan, device: torch.device, console: Console) -> None:
    """Cases with the size of their caches, and methods."""
    for case in plan.cases:
        assert isinstance(case, Case)
        console.print(
            f"{case.slug}  (K and V {case.kv_bytes / 1e9:.2f} GB, {case.kv_dtype or case.dtype})", highlight=False
        )
    console.print("methods: " + ", ".join(spec.label for spec in plan.specs), highlight=False, markup=False)


REFERENCE = (Part(gpu_minutes=6.0, cpu_minutes=4.0),)
SUITE = Suite(
    "micro", "one decode step of attention, kernel by kernel", EXAMPLES, FLAGS, plan, run_case, print_report, show_plan,
    reference=REFERENCE,
)  # fmt: skip
