"""A suite as a command: plan, run, tables, figures, exit status. The same for every suite that has rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from .exits import UNUSABLE
from .flags import Options
from .ranked import LeadingWorker, follow
from .ranks import Ranks
from .registry import Plan, Suite
from .report import counted
from .results import check_place
from .runner import Outcome, default_folder, run_cases
from .worker import Settings, Worker

Draw = Callable[[list[Path], Path, Console], None]


def run_suite(
    suite: Suite, options: Options, device: torch.device, command: str, console: Console, draw: Draw | None = None
) -> int:
    """Measure what is asked for, print tables, draw figures; the exit status.

    Args:
        draw: makes the figures of result files in a folder, of suites that take --no-plots; None for none.

    Raises:
        ValueError: options that do not go together. OSError: results cannot be written there, known before measuring.
    """
    if suite.act is not None:
        return suite.act(options, device, command, console)
    if suite.instead is not None and (status := suite.instead(options, console)) is not None:
        return status
    ranks = Ranks.from_environment() if suite.shares_model else Ranks.alone(suite.name)
    device = ranks.device(device)
    if not ranks.first:
        console = Console(quiet=True)
    try:
        plan = suite.plan(options, device)
    except (ValueError, OSError):
        if ranks.first:
            raise
        return UNUSABLE  # the first says why
    if options.plan:
        (suite.show_plan or show_plan)(plan, device, console)
        return 0
    settings = Settings(str(device), command, plan.measure, ranks)
    if not ranks.first:
        return follow(settings)
    path = result_path(suite.name, options, device)
    for note in plan.notes:
        console.print(note, highlight=False, markup=False)
    text = f"{counted(len(plan.cases), 'case')} x {counted(len(plan.specs), 'method')} on {device}; results in {path}"
    console.print(text, highlight=False, markup=False)
    check_place(path)
    outcome = run_cases(
        plan.cases, plan.specs, LeadingWorker(settings) if ranks.world > 1 else Worker(settings), path, device, console,
        fresh=plan.fresh or options.fresh, kinds=plan.kinds, further=plan.further,
    )  # fmt: skip
    assert suite.report is not None
    suite.report(outcome.rows, console)
    say_how_it_ended(outcome, console)
    if draw is not None and not getattr(options, "no_plots", True) and any(row.measured for row in outcome.rows):
        draw([outcome.path], outcome.path.parent / "plots", console)
    return outcome.exit_status


def result_path(suite: str, options: Options, device: torch.device) -> Path:
    """Where rows go. Quick rows have fewer samples: they must not count as done when the default list is run."""
    quick = getattr(options, "scale", None) == "quick"
    return (options.output or default_folder(device) / ("quick" if quick else "")) / f"{suite}.jsonl"


def show_plan(plan: Plan, device: torch.device, console: Console) -> None:
    """Cases and methods by name."""
    for case in plan.cases:
        console.print(case.slug, highlight=False, markup=False)
    console.print("methods: " + ", ".join(spec.label for spec in plan.specs), highlight=False, markup=False)


def say_how_it_ended(outcome: Outcome, console: Console) -> None:
    """Rows, minutes, what was resumed, what failed."""
    if outcome.resumed:
        text = f"{outcome.resumed} of {outcome.cases} cases were done already (--fresh measures them again)"
        console.print(text, highlight=False)
    csv = outcome.path.with_suffix(".csv").name
    minutes = outcome.seconds / 60
    text = f"{counted(len(outcome.rows), 'row')} in {outcome.path} and {csv}; {minutes:.1f} minutes"
    console.print(text, highlight=False, markup=False)
    if outcome.lost:
        text = f"{len(outcome.lost)} failures did not take the place of rows that were measured before"
        console.print(f"[yellow]{text}[/]: {escape(outcome.lost[0].reason or '')}", highlight=False)
    if outcome.interrupted:
        console.print("[yellow]interrupted:[/] finished cases are kept; the same command goes on from here")
    elif outcome.failures:
        console.print(f"[red]{len(outcome.failures)} rows failed[/] (listed above)")
