"""`resa-bench tasks`: its flags, its cases and methods."""

from __future__ import annotations

import torch

from ..core import flags
from ..core.flags import CASES, Flag, Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.spec import MethodSpec, unique
from ..core.sweep import Sweep
from ..engine.case import default_dtype, model_notes, real_model
from ..model.smollm import NAME as SMOLLM
from .cases import GRID, TaskCase, default_specs, dense_spec
from .lists import default_list
from .registry import task_kinds
from .run import run_case
from .table import print_report

EXAMPLES = """examples:
  resa-bench tasks                                     SmolLM2-135M: free decoding, a needle, key-copy, all methods
  resa-bench tasks --quick                             a short case of each, three methods
  resa-bench tasks --task multi-key variables qa --context 4K 16K --model ./checkpoint
  resa-bench tasks --task needle --context 1K 2K 4K 7K --samples 8
  resa-bench tasks --task divergence --temperature 0 0.6 --steps 256 --rectify-every 16 32 64 128
  resa-bench tasks --model ./checkpoint --full         a Hugging Face folder or a .gguf file

Prompts are prefilled densely; what follows them, questions included, is decoded by the method, step by step. Dense
decoding's own score stands first. Generated tasks need pip install -e '.[tasks]', which is wonderwords; their
samples follow from --seed and are kept in the cache folder. A rerun goes on where the last one stopped (same device,
commit and output folder); --fresh starts over."""


def _task(word: str) -> str:
    """A kind: a task's name, one of a plugin's among them."""
    if word not in task_kinds():
        raise ValueError(f"got {word[:40]!r}, known are {', '.join(task_kinds())}")
    return word


GENERATED = "multi-key multi-query multi-value variables frequent-words qa"
TASK = flags.several(
    "--task", f"divergence needle copy, and as RULER's {GENERATED} (default: all on a GPU, the first three on a CPU)",
    kind=_task, metavar="NAME",
)  # fmt: skip
SAMPLES = Flag(
    "--samples", "batches of prompts, haystacks, lists, samples (--plan shows the list's)", CASES,
    kind=flags.whole(1, 1 << 20), metavar="N",
)  # fmt: skip
FLAGS = (
    flags.QUICK, flags.FULL, TASK,
    flags.MODEL.but(default=SMOLLM, help="SmolLM2, a folder or a .gguf file"),
    flags.CONTEXT.but(help="of the prompts"),
    flags.STEPS.but(help="decoded freely (default 128, quick 48, full 512)"),
    SAMPLES,
    flags.TEMPERATURE.but(
        many=True, default=(0.0,), help="of free decoding: 0 is greedy, above it noise is shared by all methods"
    ),
    flags.DTYPE, flags.SEED, *flags.method_flags(GRID), *flags.RUN_FLAGS,
)  # fmt: skip


def choose_cases(options: Options, device: torch.device) -> list[TaskCase]:
    """The list asked for. Raises ValueError for a model without text, or a context that it does not handle."""
    cases = default_list(
        options.scale, device, options.model, real_model(options.model, "random weights find no needle"),
        tasks=options.task, contexts=options.context, samples=options.samples, steps=options.steps,
        temperatures=options.temperature,
        dtype=options.dtype or default_dtype(device), seed=options.seed,
    )  # fmt: skip
    return list(dict.fromkeys(cases))


def choose_specs(options: Options, device: torch.device) -> list[MethodSpec]:
    """Dense decoding, then the default methods at the settings given; with --method those named. Raises ValueError."""
    sweep, quick = Sweep.of(options), options.scale == "quick"
    specs = sweep.named()
    for spec in specs:
        if spec.is_dense:
            raise ValueError(f"--method {spec.name}: dense decoding is measured anyway, as what the others are beside")
    if not sweep.names:
        listed = GRID | ({"rectify_every": (32,)} if quick else {})
        grid = {name: sweep.values(name, *values) for name, values in listed.items()}
        specs = [spec for base in sweep.bases(apart=grid) for spec in default_specs(device, base, grid, quick=quick)]
    return [dense_spec(device), *unique(specs)]


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench tasks` measures. Raises ValueError."""
    specs = choose_specs(options, device)
    cases = choose_cases(options, device)
    return Plan(cases, specs, notes=model_notes(options.model))


EXPECTED = {"divergence": (1.0, 9.0), "needle --samples 2": (0.9, 9.0), "copy --context 1K 4K": (0.9, 9.0)}
"""Minutes of each task in the reference run: on an H100, and on two CPU cores."""
REFERENCE = tuple(
    Part(f"--task {task}", name=task.split()[0], gpu_minutes=gpu, cpu_minutes=cpu, timed=False)
    for task, (gpu, cpu) in EXPECTED.items()
)
SUITE = Suite(
    "tasks", "free decoding, needles and key-copy, beside dense", EXAMPLES, FLAGS, plan, run_case, print_report,
    reference=REFERENCE,
)  # fmt: skip
