"""`resa-bench linear`: its flags, its cases and products."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console

from ... import baselines  # noqa: F401  (registers the rivals)
from ...kernels.linear.best import FILE
from ...kernels.linear.product import KINDS, products
from ...profiling.timing import Plan as TimingPlan
from ..core import flags
from ..core.flags import CASES, METHODS, Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.sweep import matching
from ..model.config import MODELS
from .ahead import Measure, compilable
from .cases import CPU_MODEL, GPU_MODEL, LinearCase, ProductSpec, default_cases
from .choose import write_choice
from .run import run_case
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench linear                                    the default list: on a GPU {GPU_MODEL}, 1 to 2048 rows
  resa-bench linear --rows 16 32 64 --weights int4 fp8
  resa-bench linear --model llama-3.1-70b --kernel ours torch humming
  resa-bench linear --full                             every preset, 1 to 2048 rows
  resa-bench linear --choose runs/h200/linear.jsonl    what --products best takes from now on

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""

MODEL = flags.MODEL.but(
    help=f"presets (default {GPU_MODEL}, on a CPU {CPU_MODEL})",
    many=True,
    default=(),
    choices=tuple(MODELS),
    metavar=None,
)
ROWS = flags.several("--rows", "rows of x: sequences of a step, or tokens of a rectification", CASES,
                     kind=flags.whole(1, 1 << 16), metavar="M")  # fmt: skip
WEIGHTS = flags.WEIGHTS.but(help="plain: of the activations' type; fp8-a8: x in fp8, too", choices=KINDS)
KERNEL = flags.several(
    "--kernel", "products by name; torch: all of its own (default: all of a kind)", METHODS, metavar="NAME"
)
CHOOSE = flags.several(
    "--choose", "from these rows, write which product is the best of each size (decode --products best), and stop",
    flags.RUN, kind=flags.path, metavar="FILE",
)  # fmt: skip
FLAGS = (
    flags.QUICK, flags.FULL, flags.CASE, MODEL, ROWS, WEIGHTS, flags.DTYPE, flags.SEED, KERNEL, CHOOSE,
    *(flag for flag in flags.RUN_FLAGS if flag.name != "no_plots"),
)  # fmt: skip


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench linear` measures. Raises ValueError."""
    known = list(dict.fromkeys(name for asked in options.kernel or products() for name in named(asked)))
    cuda = device.type == "cuda"
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    if cuda and dtype == "fp32":
        raise ValueError("--dtype fp32: on a GPU products are of 16 bits; give bf16 or fp16")
    cases = default_cases(device, options.scale, options.model, options.weights, options.rows, dtype, options.seed)
    cases = matching(cases, options.case, "linear")  # type: ignore[type-var]
    chosen = [ProductSpec(name) for name in known]
    always = [spec for spec in chosen if set(spec.kind.kinds) == set(KINDS)]
    timing = TimingPlan(precision=0.01, budget_s=0.5 if cuda else 2.0, min_samples=15 if cuda else 5)
    return Plan(
        cases,  # type: ignore[arg-type]
        always,  # type: ignore[arg-type]
        further={case.slug: _serving(case, chosen, always) for case in cases},
        measure=Measure(timing, compilable(cases, chosen)),
    )


def named(word: str) -> list[str]:
    """Products of a name, or those of a library by its first word (`torch`). Raises ValueError where there are none."""
    known = products()
    names = [word] if word in known else [name for name in known if name.startswith(f"{word}-")]
    if not names:
        raise ValueError(f"--kernel {word[:60]}: unknown; known are {', '.join(known)}")
    return names


def _serving(case: LinearCase, chosen: list[ProductSpec], always: list[ProductSpec]) -> Any:
    return [spec for spec in chosen if case.kind in spec.kind.kinds and spec not in always]


def choose_instead(options: Options, console: Console) -> int | None:
    """With --choose, write the choice. Raises ValueError: rows that allow none."""
    if not options.choose:
        return None
    devices = write_choice(options.choose)
    console.print(f"{FILE}: {', '.join(devices)}", highlight=False, markup=False, soft_wrap=True)
    return 0


def show_plan(plan: Plan, device: torch.device, console: Console) -> None:
    """Cases with their sizes and products."""
    for case in plan.cases:
        assert isinstance(case, LinearCase)
        names = ", ".join(spec.label for spec in (*plan.specs, *plan.further.get(case.slug, ())))
        shape = case.shape
        console.print(f"{case.slug}  [{shape.rows}, {shape.depth}] x [{shape.columns}, {shape.depth}]^T  ({names})",
                      highlight=False, markup=False)  # fmt: skip


REFERENCE = (
    Part("--rows 1 16 32 64 256 1024 --weights int4 fp8", gpu_minutes=1.5, cpu_minutes=None),
    Part("--rows 1 16 32 64 --weights int4 fp8", name="few", gpu_minutes=None, cpu_minutes=1.0),
)
SUITE = Suite(
    "linear", "a step's matrix products, in 16, 8 and 4 bits, beside libraries", EXAMPLES, FLAGS, plan,
    run_case, print_report, show_plan, instead=choose_instead, reference=REFERENCE,  # type: ignore[arg-type]
)  # fmt: skip
