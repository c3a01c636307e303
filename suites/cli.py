"""The command line, `resa-bench`: a command for each suite, and profile, plots, compare, doctor, flush-demo."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from .. import baselines  # noqa: F401  (registers the rivals)
from .core.runner import INTERRUPTED, Outcome
from .decode.cases import TEXT_PERIODS
from .decode.cli import EXAMPLES as DECODE_EXAMPLES
from .decode.cli import add_decode_arguments, run_decode
from .gsr.cli import EXAMPLES as GSR_EXAMPLES
from .gsr.cli import add_gsr_arguments, run_gsr
from .lossless.cli import EXAMPLES as LOSSLESS_EXAMPLES
from .lossless.cli import add_lossless_arguments, run_lossless
from .maths.cli import EXAMPLES as MATHS_EXAMPLES
from .maths.cli import add_maths_arguments, run_maths
from .micro.cli import EXAMPLES as MICRO_EXAMPLES
from .micro.cli import WINDOWS, add_micro_arguments, run_micro
from .model.smollm import CONFIG as SMOLLM_CONFIG
from .profile.cli import act_profile, add_profile_arguments
from .quality.cli import EXAMPLES as QUALITY_EXAMPLES
from .quality.cli import add_quality_arguments, run_quality
from .tasks.cli import EXAMPLES as TASKS_EXAMPLES
from .tasks.cli import add_tasks_arguments, run_tasks

RunSuite = Callable[[argparse.Namespace, torch.device, str, Console], Outcome | None]


@dataclass(frozen=True, slots=True)
class Suite:
    """A command that measures cases with methods: rows, a table, figures.

    `run` is given the flags, the device, the command line and the console; it returns None where it only planned.
    """

    name: str
    help: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: RunSuite


SUITES = (
    Suite("micro", "one decode step of attention, kernel by kernel", MICRO_EXAMPLES, add_micro_arguments, run_micro),
    Suite("decode", "a whole transformer, token by token", DECODE_EXAMPLES, add_decode_arguments, run_decode),
    Suite(
        "quality", "what a faster step costs on a real model", QUALITY_EXAMPLES, add_quality_arguments, run_quality
    ),
    Suite("tasks", "free decoding, needles and key-copy, beside dense", TASKS_EXAMPLES, add_tasks_arguments, run_tasks),
    Suite(
        "lossless", "dense decoding's own tokens, drafted by sparse steps", LOSSLESS_EXAMPLES, add_lossless_arguments,
        run_lossless,
    ),
    Suite(
        "gsr", "self-refinement: candidates side by side, then one answer from them", GSR_EXAMPLES, add_gsr_arguments,
        run_gsr,
    ),
)  # fmt: skip

BENCH_EXAMPLES = """examples:
  resa-bench bench                                     kernels (`micro`), then decoding (`decode`): default lists
  resa-bench bench --quick                             both in about a minute
  resa-bench bench --only decode                       one half
  resa-bench bench --context 64K 256K --batch 4        these cases in both

Flags that only one half knows (--q-heads, --pattern, --page-size, --case ...) leave the other out; `resa-bench micro
--help` and `resa-bench decode --help` have more. A rerun goes on where the last one stopped; --fresh starts over."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resa-bench", description="What sparse-attention decoding buys: ReSA against dense, Quest and others."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    bench = commands.add_parser(
        "bench", help="the main job: both suites on their default lists, tables, plots", epilog=BENCH_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    add_micro_arguments(bench)
    bench.add_argument("--only", choices=("micro", "decode"), help="one half of the job")
    bench.set_defaults(act=act_bench)
    for suite in SUITES:
        command = commands.add_parser(suite.name, help=suite.help, epilog=suite.examples, formatter_class=raw)
        suite.add_arguments(command)
        command.set_defaults(act=partial(act_suite, suite.run))
    maths = commands.add_parser(
        "maths", help="problems solved under each method: accuracy and length", epilog=MATHS_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    add_maths_arguments(maths)
    maths.set_defaults(act=act_maths)
    profile = commands.add_parser("profile", help="from a slow number to its cause: the case under nsys or ncu")
    add_profile_arguments(profile)
    profile.set_defaults(act=lambda options, console: act_profile(options, choose_device(options.device), console))
    plots = commands.add_parser("plots", help="draw the figures of result files")
    plots.add_argument("results", nargs="+", type=Path, help="JSON Lines files, or folders of them")
    plots.add_argument("--output", type=Path, help="folder of the figures (default: plots/ beside the first file)")
    plots.set_defaults(act=act_plots)
    compare = commands.add_parser(
        "compare", help="same, faster, slower or unclear, row by row; exit status 1 if a whole step got slower"
    )
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    compare.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        help="differences up to this count as the same",
    )
    compare.set_defaults(act=act_compare)
    doctor = commands.add_parser("doctor", help="what is here, what is missing, and the command that brings it")
    doctor.add_argument("--json", action="store_true", help="the same as JSON: group, name, status, found, remedy")
    doctor.set_defaults(act=act_doctor)
    flush = commands.add_parser("flush-demo", help="what the way of flushing the L2 does to a result (needs a GPU)")
    flush.set_defaults(act=act_flush_demo)
    return parser


def choose_device(name: str | None) -> torch.device:
    """Raises ValueError for a device that is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device: got {name!r}, expected cpu, cuda or cuda:N") from None
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"device: got {device.type}, allowed are cuda and cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch finds no GPU here")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def act_bench(options: argparse.Namespace, console: Console) -> int:
    """Both halves; the exit status of the first that failed."""
    kernels_only = options.case or options.q_heads or options.pattern or options.page_size or options.dtype
    kernels_only = kernels_only or (options.model and choose_device(options.device).type == "cpu")  # a model too large
    halves = [act_micro_half] if kernels_only else [act_micro_half, act_decode_half]
    if options.only:
        halves = [{"micro": act_micro_half, "decode": act_decode_half}[options.only]]
    statuses = []
    for half in halves:
        statuses.append(half(options, console))
        if statuses[-1] == INTERRUPTED:
            break
    return next((status for status in statuses if status), 0)


def act_micro_half(options: argparse.Namespace, console: Console) -> int:
    return act_suite(run_micro, options, console)


def act_decode_half(options: argparse.Namespace, console: Console) -> int:
    """The decode suite with those of the main job's flags that it knows."""
    if choose_device(options.device).type == "cpu" and options.context:
        least, most = TEXT_PERIODS * options.rectify_every + 1, SMOLLM_CONFIG.context
        fitting = [c for c in options.context if least <= c <= most]
        if len(fitting) < len(options.context):
            console.print(f"decode: on a CPU contexts of {least} to {most} tokens (SmolLM2); others are left out")
        if not fitting:
            return 0
        options.context = fitting
    flags: list[str] = []
    for name in ("context", "batch", "method"):
        values = getattr(options, name)
        flags += [f"--{name}", *map(str, values)] if values else []
    for name in ("model", "device", "output", "budget_tokens"):
        value = getattr(options, name)
        flags += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    flags += ["--block-size", str(options.block_size[0])] if options.block_size[0] != 16 else []
    flags += ["--rectify-every", str(options.rectify_every)] if options.rectify_every != 32 else []
    flags += ["--window", *map(str, options.window)] if options.window != WINDOWS else []
    flags += ["--ratio", str(options.ratio), "--min-blocks", str(options.min_blocks), "--summary", options.summary]
    flags += ["--pinned-blocks", str(options.pinned_blocks)]
    flags += ["--seed", str(options.seed)]
    for name, on in (("quick", options.scale == "quick"), ("full", options.scale == "full"), ("plan", options.list)):
        flags += [f"--{name}"] if on else []
    flags += [f"--{name}" for name in ("fresh", "no-eager", "no-plots") if getattr(options, name.replace("-", "_"))]
    parsed = build_parser().parse_args(["decode", *flags])
    parsed.arguments = options.arguments
    return act_suite(run_decode, parsed, console)


def act_suite(run: RunSuite, options: argparse.Namespace, console: Console) -> int:
    outcome = run(options, choose_device(options.device), command_line(options.arguments), console)
    if outcome is None:
        return 0
    if not getattr(options, "no_plots", True) and any(row.timed or row.value is not None for row in outcome.rows):
        draw([outcome.path], outcome.path.parent / "plots", console)
    return report(outcome, console)


def act_maths(options: argparse.Namespace, console: Console) -> int:
    return run_maths(options, choose_device(options.device), command_line(options.arguments), console)


def command_line(arguments: list[str]) -> str:
    return "resa-bench " + shlex.join(arguments)


def report(outcome: Outcome, console: Console) -> int:
    """Say how a run ended; its exit status."""
    if outcome.interrupted:
        console.print("[yellow]interrupted:[/] finished cases are kept; the same command goes on from here")
    elif outcome.failures:
        console.print(f"[red]{len(outcome.failures)} rows failed[/] (listed above)")
    return outcome.exit_status


def draw(paths: list[Path], folder: Path, console: Console) -> None:
    from ..plots.figures import draw_all

    for path in draw_all(paths, folder):
        if path.suffix == ".png":
            console.print(f"plot {path}", highlight=False)


def act_plots(options: argparse.Namespace, console: Console) -> int:
    first = options.results[0]
    folder = options.output or (first if first.is_dir() else first.parent) / "plots"
    draw(options.results, folder, console)
    return 0


def act_compare(options: argparse.Namespace, console: Console) -> int:
    from .compare import main as compare_main

    return compare_main(options.a, options.b, options.tolerance, console)


def act_doctor(options: argparse.Namespace, console: Console) -> int:
    from .doctor import doctor

    return doctor(console, choose_device(None), as_json=options.json)


def act_flush_demo(options: argparse.Namespace, console: Console) -> int:
    from .flush_demo import flush_demo

    flush_demo(console)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit status: 0 fine, 1 something failed or got slower, 2 wrong arguments, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    options.arguments = arguments
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        return options.act(options, console)
    except (ValueError, TypeError, FileNotFoundError) as error:
        Console(stderr=True).print(f"[red]resa-bench {options.command}:[/] {escape(str(error))}", highlight=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
