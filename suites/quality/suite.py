"""`resa-bench quality`: its flags, its cases and methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...kernels.config import GQA_POLICIES
from ..core import flags
from ..core.analysis import LEVEL
from ..core.flags import Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.settings import SETTINGS
from ..core.spec import PINNED, MethodSpec, unique
from ..core.sweep import Sweep
from ..engine.case import default_dtype, model_notes, real_model, share_of
from ..engine.texts import SEVERAL, TEXTS
from ..model.smollm import NAME as SMOLLM
from .cases import PIN, SOURCES, QualityCase, default_specs
from .rivals import rival_specs
from .run import run_case
from .table import print_report

EXAMPLES = """examples:
  resa-bench quality                                   SmolLM2-135M: 8 x 4K of text, then steps under each method
  resa-bench quality --quick                           1K of text, 64 steps, three methods
  resa-bench quality --steps 1024 --rectify-every 1 32 128 --method sparse resa-torch
  resa-bench quality --ratio 0.05 0.1 0.2 --source text own    on text, and on dense's own continuation of it
  resa-bench quality --method sparse oracle --summary minmax meanstd --spread-weight 0.2 1 4
  resa-bench quality --compare-selectors               bytes read against KL: every selector, and rivals
  resa-bench quality --kv-dtype fp8                    K and V in e4m3: dense and the methods, against 16-bit dense
  resa-bench quality --model ./checkpoint              a Hugging Face folder or a .gguf file
  resa-bench quality --stepwise --method resa          token by token: on a GPU with the kernels, as graphs

KL, agreement, loss, the error of keys and values, and the share of attention that selected blocks hold (recall), all
against dense decoding fed the same tokens. Methods whose steps can be evaluated together are, unless --stepwise. A
rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""

SOURCE = flags.several("--source", "what is fed (default text; full both)", choices=SOURCES)
WHICH_TEXTS = flags.several(
    "--texts", f"that stretches are cut from, in turn (default {' '.join(SEVERAL)}; essays are fetched once)",
    choices=tuple(TEXTS), default=SEVERAL,
)  # fmt: skip
STEPWISE = flags.switch("--stepwise", "decode token by token, on a GPU with the kernels; no recall")
KV_DTYPE = flags.KV_DTYPE.but(
    help="of every method's K and V, dense decoding's too, against dense in --dtype; fp8: e4m3, each KV head's scale "
    "chosen by the first 512 tokens of all prompts"
)
COMPARE = flags.switch("--compare-selectors", "every selector and rival, in place of the default list")
GRID: dict[str, tuple[Any, ...]] = {
    "block_size": (16, 8, 32, 64),
    "rectify_every": (LEVEL, 16, 32, 64, 128),
    "gqa_policy": ("per-head", "group-sum"),
    "dense_layers": (0, 2),
    "window": (2, 8),
    "spread_weight": (0.5,),
    PIN: (SETTINGS[PIN].default, PINNED[PIN]),
    "summary_dtype": (None, "fp8"),
}
FULL_GRID = GRID | {
    "active_ratio": (0.05, 0.1, 0.2), "gqa_policy": GQA_POLICIES, "window": (2, 4, 8),
    "spread_weight": (0.2, 0.5, 1.0, 2.0, 4.0),
}  # fmt: skip
FLAGS = (
    flags.QUICK, flags.FULL,
    flags.MODEL.but(default=SMOLLM, help="SmolLM2, a folder or a .gguf file"),
    flags.PROMPT_TOKENS.but(help="prefilled densely (default 4K, quick 1K)"),
    flags.STEPS.but(help="fed after that (default 512, on a CPU 192; quick 64, full 1K)"),
    flags.BATCH.but(many=False, default=None, help="stretches of text (default 8, quick 2)"),
    SOURCE, WHICH_TEXTS, flags.DTYPE, KV_DTYPE, flags.SEED, COMPARE, *flags.method_flags(GRID), STEPWISE,
    *flags.RUN_FLAGS,
)  # fmt: skip


GPU_STEPS, CPU_STEPS = 512, 192  # of the default list


@dataclass(frozen=True, slots=True)
class Scale:
    """What a list runs where no flag says otherwise; `grid`: values of settings."""

    prompt: int = 4096  # tokens
    steps: int | None = None  # 512 on a GPU, 192 on a CPU
    batch: int = 8  # stretches of text
    sources: tuple[str, ...] = SOURCES[:1]
    grid: dict[str, tuple[Any, ...]] = field(default_factory=lambda: GRID)


SCALES = {
    "quick": Scale(prompt=1024, steps=64, batch=2, grid=GRID | {"rectify_every": (LEVEL, 32)}),
    "default": Scale(),
    "full": Scale(steps=1024, sources=SOURCES, grid=FULL_GRID),
}


def choose_cases(options: Options, device: torch.device, specs: Sequence[MethodSpec]) -> list[QualityCase]:
    """A case for each source. Raises ValueError for a model without text, or a text over its context."""
    scale, model = SCALES[options.scale], options.model
    config = share_of(real_model(model, "random weights say nothing about quality"))
    if Path(model).is_dir() and not (Path(model) / "tokenizer.json").exists():
        raise ValueError(f"--model {model}: has no tokenizer.json, which the texts need; put the model's there")
    default_steps = GPU_STEPS if device.type == "cuda" else CPU_STEPS
    steps, window = options.steps or scale.steps or default_steps, max(spec.window for spec in specs)
    if window > steps:
        raise ValueError(f"--steps {steps}: windows of {window} tokens need as many steps at least")
    dtype, prompt = options.dtype or default_dtype(device), options.prompt_tokens or scale.prompt
    batch = options.batch or scale.batch
    texts = options.texts[:batch]
    return [
        QualityCase(
            model, config, prompt, steps, source, batch, dtype, options.seed, options.stepwise, texts, options.kv_dtype
        )
        for source in options.source or scale.sources
    ]


def choose_specs(options: Options, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, each as its name means everywhere.

    Raises:
        ValueError: an unknown method, or a dense one.
    """
    sweep = Sweep.of(options)
    specs = sweep.named()
    for spec in specs:
        if spec.is_dense:
            raise ValueError(f"--method {spec.name}: dense decoding is what the others are compared with")
    if options.compare_selectors:
        if sweep.names or sweep.given.get("selector"):
            raise ValueError("--compare-selectors: is a list of its own; leave out --method and --selector")
        return [spec for base in sweep.bases() for spec in rival_specs(device, base)]
    if sweep.names:
        return specs
    listed = SCALES[options.scale].grid
    grid = {name: sweep.values(name, *values) for name, values in listed.items()}
    for shared in sweep.bases(apart=listed):
        for ratio in grid.get("active_ratio", (shared.active_ratio,)):
            for spread in grid["spread_weight"] if shared.summary_kind == "meanstd" else (shared.spread_weight,):
                base = replace(shared, active_ratio=ratio, spread_weight=spread)
                specs += default_specs(device, base, grid, quick=options.scale == "quick")
    return unique(specs)


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench quality` measures. Raises ValueError."""
    specs = choose_specs(options, device)
    cases = choose_cases(options, device, specs)
    return Plan(cases, specs, notes=model_notes(options.model))


LONG = "--steps 1K --source text own --rectify-every 1 16 32 128 --pinned-blocks 0 1 --method sparse resa oracle"
REFERENCE = (
    Part("--steps 160", gpu_minutes=1.1, cpu_minutes=9.5, timed=False),
    Part(LONG, name="long", gpu_minutes=0.6, cpu_minutes=None, timed=False),
    Part("--compare-selectors", name="selectors", gpu_minutes=1.1, cpu_minutes=None, file="selectors", timed=False),
)
SUITE = Suite(
    "quality", "what a faster step costs on a real model", EXAMPLES, FLAGS, plan, run_case, print_report,
    shares_model=True, reference=REFERENCE,
)  # fmt: skip
