"""What a user adds from outside the package, one of each kind: a method, a model, a metric, a figure, a task, a suite.

tests/test_adding.py names this file in RESA_BENCH_PLUGINS and looks for each in rows, tables and figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from resa_bench.kernels import AttentionShape, SparseConfig, register
from resa_bench.kernels.pipeline import SparseMethod
from resa_bench.kernels.selectors import Blocks, Selector, register_selector
from resa_bench.plots.data import FigureSet
from resa_bench.plots.registry import figure
from resa_bench.suites.core import flags
from resa_bench.suites.core.bench import Bench, Report, RowMaker
from resa_bench.suites.core.flags import Options
from resa_bench.suites.core.metrics import Metric, Steps, register_metric
from resa_bench.suites.core.registry import Plan, Suite, register_suite
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import MethodSpec, Names
from resa_bench.suites.core.sweep import Sweep
from resa_bench.suites.model.families import Family, register_family
from resa_bench.suites.tasks.questions import question_task
from resa_bench.suites.tasks.samples import Sample, Writer
from rich.console import Console

# --- a selector, and a method that is named after it -----------------------------------------------------------------


@register_selector("newest")
class NewestBlocks(Selector):
    """The newest blocks, whatever was asked; one list for all heads."""

    ranked = False

    def rows(self, shape: AttentionShape, config: SparseConfig) -> int:
        return 1

    def choose(self, blocks: Blocks) -> torch.Tensor:
        held, count, index = blocks.counts(blocks.sequences)
        return (index >= held - count) & (index < held)

    def score_bytes(self, shape: AttentionShape, config: SparseConfig, element: int, tokens: int) -> int:
        return 0


@register("newest")
class Newest(SparseMethod):
    """The newest blocks and nothing else."""

    uses = ("block_size", "active_ratio", "min_blocks")
    ranks_by = "newest"


# --- a model family, a metric, a figure -------------------------------------------------------------------------------

register_family(Family("mistral"))  # Llama's tensors under another name


def same_three(steps: Steps) -> torch.Tensor:
    """1 where both rank the same three tokens first."""
    pairs = (x.topk(3).indices.sort(-1).values for x in (steps.dense, steps.method))
    return (next(pairs) == next(pairs)).all(-1).float()


register_metric(Metric(name="top3", of=same_three, heading="same three", form=".1%"))


@figure("medians", suite="micro")
def medians(figures: FigureSet) -> Figure:
    """A dot a row."""
    fig = Figure()
    fig.subplots().plot([row.median_us or 0.0 for row in figures.rows], "o")
    return fig


# --- a task ---------------------------------------------------------------------------------------------------------


@question_task("one-needle", "the number is in the answer", samples=8, answer_tokens=8)
def one_needle(writer: Writer) -> Sample:
    """A number, somewhere in a text."""
    (number,) = writer.numbers(1)
    return Sample(
        introduction="Remember the number in this text.\n\n", facts=(f"\nThe number is {number}.\n",),
        question="\n\nWhich number was it?", beginning="The number is", answers=(number,), reply=f" {number}",
    )  # fmt: skip


# --- a suite ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EchoCase:
    """Nothing but a name."""

    suite: ClassVar[str] = "echo"
    at_a_time: ClassVar[int | None] = None

    dtype: str = "fp32"
    seed: int = 0

    @property
    def slug(self) -> str:
        return "echo-1"

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(1, 4, 2, 16)

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32

    def columns(self) -> dict[str, Any]:
        return {
            "suite": self.suite, "model": "none", "case": self.slug, "context": 1, "batch": 1, "q_heads": 4,
            "kv_heads": 2, "head_dim": 16, "dtype": self.dtype, "seed": self.seed,
        }  # fmt: skip


def plan(options: Options, device: torch.device) -> Plan:
    return Plan([EchoCase(seed=options.seed)], Sweep.of(options).named())


def run_case(case: EchoCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report) -> list[Row]:
    make_row = RowMaker(case, bench)
    return [make_row(spec, metric="echo", value=1.0, status="ok") for spec in specs]


def print_report(rows: Sequence[Row], console: Console) -> None:
    names = Names(rows)
    for row in rows:
        console.print(f"{names[row]} echoes {row.value:g}")


FLAGS = (flags.SEED, *flags.METHOD_FLAGS, *flags.RUN_FLAGS)
register_suite(Suite("echo", "says what it was told", "examples: none", FLAGS, plan, run_case, print_report))
