"""The command line, `resa-bench`: a command for each suite, and profile, plots, compare, doctor, flush-demo."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from .. import baselines  # noqa: F401  (registers the rivals)
from ..kernels import SparseConfig, registered
from ..kernels.config import GQA_POLICIES, SUMMARY_KINDS
from ..profiling.timing import Plan
from .cases import (
    DEFAULT_MODEL,
    DTYPES,
    PATTERNS,
    PRESETS,
    QUEST_POLICIES,
    Case,
    MethodSpec,
    ModelShape,
    default_cases,
    default_methods,
    filter_cases,
    named_spec,
    retro_spec,
    takes_wide_windows,
    wide_windows,
)
from .decode.cases import TEXT_PERIODS
from .decode.cli import EXAMPLES as DECODE_EXAMPLES
from .decode.cli import add_decode_arguments, run_decode, tokens
from .gsr.cli import EXAMPLES as GSR_EXAMPLES
from .gsr.cli import add_gsr_arguments, run_gsr
from .lossless.cli import EXAMPLES as LOSSLESS_EXAMPLES
from .lossless.cli import add_lossless_arguments, run_lossless
from .maths.cli import EXAMPLES as MATHS_EXAMPLES
from .maths.cli import add_maths_arguments, run_maths
from .model.smollm import CONFIG as SMOLLM_CONFIG
from .profile.cli import act_profile, add_profile_arguments
from .quality.cli import EXAMPLES as QUALITY_EXAMPLES
from .quality.cli import add_quality_arguments, run_quality
from .runner import INTERRUPTED, Outcome, default_folder, run_cases
from .table import print_report
from .tasks.cli import EXAMPLES as TASKS_EXAMPLES
from .tasks.cli import add_tasks_arguments, run_tasks
from .worker import Settings, Worker

BLOCK_SIZES = [16, 32, 64]
WINDOWS = [SparseConfig().window]
MICRO_EXAMPLES = """examples:
  resa-bench micro                                     the default list (3 to 4 minutes on an H100 or on 2 CPU cores)
  resa-bench micro --quick                             two short cases
  resa-bench micro --context 64K 256K --batch 4        these cases, whatever the list
  resa-bench micro --method resa quest sdpa-cudnn      these methods only
  resa-bench micro --q-heads 64 --kv-heads 8 --head-dim 128 --context 128K
  RESA_REFERENCE=/path/to/ReSA resa-bench micro --method resa resa-authors sdpa-cudnn

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""

BENCH_EXAMPLES = """examples:
  resa-bench bench                                     kernels (`micro`), then decoding (`decode`): default lists
  resa-bench bench --quick                             both in about a minute
  resa-bench bench --only decode                       one half
  resa-bench bench --context 64K 256K --batch 4        these cases in both

Flags that only one half knows (--q-heads, --pattern, --page-size, --case ...) leave the other out; `resa-bench micro
--help` and `resa-bench decode --help` have more. A rerun goes on where the last one stopped; --fresh starts over."""


def add_micro_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the micro suite; the main job takes them too."""
    which = parser.add_argument_group("which cases")
    scale = which.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_const", const="quick", dest="scale", help="under a minute on a CPU")
    scale.add_argument("--full", action="store_const", const="full", dest="scale", help="the whole grid, resumable")
    which.add_argument("--case", nargs="+", default=[], metavar="GLOB", help="only cases whose name matches")
    which.add_argument("--context", nargs="+", type=tokens, default=[], metavar="TOKENS", help="e.g. 4K 262144")
    which.add_argument("--batch", nargs="+", type=int, default=[], metavar="B")
    which.add_argument("--model", choices=PRESETS, help=f"model shape (default {DEFAULT_MODEL})")
    which.add_argument("--q-heads", type=int, help="with --kv-heads and --head-dim: a shape of your own")
    which.add_argument("--kv-heads", type=int)
    which.add_argument("--head-dim", type=int)
    which.add_argument("--pattern", choices=PATTERNS, help="where the blocks lie that queries are drawn to")
    which.add_argument("--dtype", choices=DTYPES, help="default bf16 on a GPU, fp32 on a CPU")
    which.add_argument("--page-size", type=int, help="paged cache with pages of this many tokens")
    which.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="see `resa-bench doctor`")
    how.add_argument("--block-size", nargs="+", type=int, default=BLOCK_SIZES, metavar="b", help="of ReSA, in tokens")
    how.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio: share of blocks read")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", type=int, default=32, metavar="f", help="tokens between rectifications")
    how.add_argument("--budget-tokens", type=int, help="a budget in tokens for Quest, instead of --ratio")
    how.add_argument("--gqa-policy", nargs="+", choices=GQA_POLICIES, help="of Quest (default per-head group-sum)")
    how.add_argument(
        "--window", nargs="+", type=int, default=WINDOWS, metavar="w",
        help="of RetroAttention: newest tokens that a step runs (default 2; 4 and 8 too where the list has them)",
    )  # fmt: skip
    how.add_argument("--summary", choices=SUMMARY_KINDS, default="minmax")
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--list", action="store_true", help="print the cases and methods, and stop")
    run.add_argument("--budget-s", type=float, help="most seconds of sampling a case")
    run.add_argument("--no-warm", action="store_true", help="leave out the warm-cache rows")
    run.add_argument("--no-eager", action="store_true", help="leave out the eager rows")
    run.add_argument("--no-plots", action="store_true")


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
    micro = commands.add_parser(
        "micro", help="one decode step of attention, kernel by kernel", epilog=MICRO_EXAMPLES, formatter_class=raw
    )
    decode = commands.add_parser(
        "decode", help="a whole transformer, token by token", epilog=DECODE_EXAMPLES, formatter_class=raw
    )
    add_micro_arguments(bench)
    bench.add_argument("--only", choices=("micro", "decode"), help="one half of the job")
    bench.set_defaults(act=act_bench)
    add_micro_arguments(micro)
    micro.set_defaults(act=act_micro)
    add_decode_arguments(decode)
    decode.set_defaults(act=act_decode)
    quality = commands.add_parser(
        "quality", help="what a faster step costs on a real model", epilog=QUALITY_EXAMPLES, formatter_class=raw
    )
    add_quality_arguments(quality)
    quality.set_defaults(act=act_quality)
    maths = commands.add_parser(
        "maths", help="problems solved under each method: accuracy and length", epilog=MATHS_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    add_maths_arguments(maths)
    maths.set_defaults(act=act_maths)
    lossless = commands.add_parser(
        "lossless", help="dense decoding's own tokens, drafted by sparse steps", epilog=LOSSLESS_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    add_lossless_arguments(lossless)
    lossless.set_defaults(act=act_lossless)
    gsr = commands.add_parser(
        "gsr", help="self-refinement: candidates side by side, then one answer from them", epilog=GSR_EXAMPLES,
        formatter_class=raw,
    )  # fmt: skip
    add_gsr_arguments(gsr)
    gsr.set_defaults(act=act_gsr)
    tasks = commands.add_parser(
        "tasks", help="free decoding, needles and key-copy, beside dense", epilog=TASKS_EXAMPLES, formatter_class=raw
    )
    add_tasks_arguments(tasks)
    tasks.set_defaults(act=act_tasks)
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


def choose_cases(options: argparse.Namespace, device: torch.device) -> list[Case]:
    """The list asked for. Contexts and batches that are not on it are added rather than refused."""
    own = (options.q_heads, options.kv_heads, options.head_dim)
    scale = options.scale or "default"
    if any(value is not None for value in own):
        if None in own:
            raise ValueError("--q-heads, --kv-heads, --head-dim: give all three, or none")
        model, heads = "custom-{}-{}-{}".format(*own), ModelShape(*own)
    else:
        model = options.model or DEFAULT_MODEL
        heads = PRESETS[model]
    dtype = options.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if options.context or options.batch or own != (None, None, None) or options.pattern or options.page_size:
        listed = default_cases(device, scale)
        contexts = options.context or sorted({c.context for c in listed if c.batch == 1})
        batches = options.batch or [1]
        cases = [Case(model, heads, b, c) for b in batches for c in contexts]
    else:
        cases = default_cases(device, scale, model) if scale != "full" or not options.model else [
            c for c in default_cases(device, scale) if c.model == model
        ]  # fmt: skip
    pattern = {"pattern": options.pattern} if options.pattern else {}
    cases = [replace(c, dtype=dtype, seed=options.seed, page_size=options.page_size, **pattern) for c in cases]
    cases = list(dict.fromkeys(filter_cases(cases, options.case)))  # 4K and 4096 are one
    if not cases:
        raise ValueError(f"--case {' '.join(options.case)}: no case matches; see `resa-bench micro --list`")
    for case in cases:
        case.shape  # noqa: B018  (checks the heads)
    return cases


def choose_methods(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, others with default settings too.

    `--quick` takes one block size and one of Quest's policies.
    """
    base = SparseConfig(
        active_ratio=options.ratio,
        min_blocks=options.min_blocks,
        rectify_every=options.rectify_every,
        summary_kind=options.summary,
    )
    quick = options.scale == "quick" and options.block_size == BLOCK_SIZES
    sizes = options.block_size[:1] if quick else options.block_size
    specs = default_methods(device, base, sizes)
    quest = next(s for s in specs if s.name == "quest")
    policies = options.gqa_policy or (QUEST_POLICIES[-1:] if quick else QUEST_POLICIES)
    budget = {"budget_tokens": options.budget_tokens} if options.budget_tokens else {}
    settings = [replace(quest.config, gqa_policy=p, **budget) for p in policies]
    retro = next(s for s in specs if s.name == "retro")
    specs = [s for s in specs if s.name not in ("quest", "retro")] + [MethodSpec("quest", c) for c in settings]
    specs += [retro_spec(retro.config, w) for w in options.window]
    specs = list(dict.fromkeys(specs))  # a setting given twice is one
    if not options.method:
        return specs
    known = registered()
    for name in options.method:
        if name not in known:
            raise ValueError(f"--method {name}: unknown; known are {', '.join(known)}")
    named = [s for s in specs if s.name in options.method]
    present = {s.name for s in named}
    for name in options.method:
        if name not in present:
            blocks = sizes if "block_size" in known[name].uses else sizes[:1]
            windows = options.window if "window" in known[name].uses else options.window[:1]
            named += [named_spec(name, replace(base, block_size=b, window=w)) for b in blocks for w in windows]
    return list(dict.fromkeys(named))


def act_bench(options: argparse.Namespace, console: Console) -> int:
    """Both halves; the exit status of the first that failed."""
    kernels_only = options.case or options.q_heads or options.pattern or options.page_size or options.dtype
    kernels_only = kernels_only or (options.model and choose_device(options.device).type == "cpu")  # a model too large
    halves = [act_micro] if kernels_only else [act_micro, act_decode_half]
    if options.only:
        halves = [{"micro": act_micro, "decode": act_decode_half}[options.only]]
    statuses = []
    for half in halves:
        statuses.append(half(options, console))
        if statuses[-1] == INTERRUPTED:
            break
    return next((status for status in statuses if status), 0)


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
    flags += ["--seed", str(options.seed)]
    for name, on in (("quick", options.scale == "quick"), ("full", options.scale == "full"), ("plan", options.list)):
        flags += [f"--{name}"] if on else []
    flags += [f"--{name}" for name in ("fresh", "no-eager", "no-plots") if getattr(options, name.replace("-", "_"))]
    parsed = build_parser().parse_args(["decode", *flags])
    parsed.arguments = options.arguments
    return act_decode(parsed, console)


def act_decode(options: argparse.Namespace, console: Console) -> int:
    device = choose_device(options.device)
    outcome = run_decode(options, device, command_line(options.arguments), console)
    if outcome is None:
        return 0
    if not options.no_plots and any(row.timed for row in outcome.rows):
        draw([outcome.path], outcome.path.parent / "plots", console)
    return report(outcome, console)


def act_quality(options: argparse.Namespace, console: Console) -> int:
    device = choose_device(options.device)
    outcome = run_quality(options, device, command_line(options.arguments), console)
    if outcome is None:
        return 0
    if not options.no_plots and any(row.value is not None for row in outcome.rows):
        draw([outcome.path], outcome.path.parent / "plots", console)
    return report(outcome, console)


def act_maths(options: argparse.Namespace, console: Console) -> int:
    return run_maths(options, choose_device(options.device), command_line(options.arguments), console)


def act_lossless(options: argparse.Namespace, console: Console) -> int:
    outcome = run_lossless(options, choose_device(options.device), command_line(options.arguments), console)
    return 0 if outcome is None else report(outcome, console)


def act_gsr(options: argparse.Namespace, console: Console) -> int:
    outcome = run_gsr(options, choose_device(options.device), command_line(options.arguments), console)
    return 0 if outcome is None else report(outcome, console)


def act_tasks(options: argparse.Namespace, console: Console) -> int:
    device = choose_device(options.device)
    outcome = run_tasks(options, device, command_line(options.arguments), console)
    if outcome is None:
        return 0
    if not options.no_plots and any(row.value is not None for row in outcome.rows):
        draw([outcome.path], outcome.path.parent / "plots", console)
    return report(outcome, console)


def command_line(arguments: list[str]) -> str:
    return "resa-bench " + shlex.join(arguments)


def report(outcome: Outcome, console: Console) -> int:
    """Say how a run ended; its exit status."""
    if outcome.interrupted:
        console.print("[yellow]interrupted:[/] finished cases are kept; the same command goes on from here")
    elif outcome.failures:
        console.print(f"[red]{len(outcome.failures)} rows failed[/] (listed above)")
    return outcome.exit_status


def act_micro(options: argparse.Namespace, console: Console) -> int:
    device = choose_device(options.device)
    cases, specs = choose_cases(options, device), choose_methods(options, device)
    if options.list:
        for case in cases:
            console.print(f"{case.slug}  (K and V {case.kv_bytes / 1e9:.2f} GB, {case.dtype})", highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return 0
    # Quick rows have fewer samples: they must not count as done when the default list is run.
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "micro.jsonl"
    cuda = device.type == "cuda"
    plan = Plan(
        precision=0.005 if cuda else 0.02,
        budget_s=options.budget_s or (6.0 if cuda else 5.0 if options.scale == "quick" else 25.0),
        min_samples=20 if cuda else 7,
    )
    command = command_line(options.arguments)
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    worker = Worker(Settings(str(device), plan, command, warm=not options.no_warm, eager=not options.no_eager))
    kinds = [kind for kind, left_out in (("warm", options.no_warm), ("eager", options.no_eager)) if not left_out]
    asked = options.scale or options.method or options.case or options.context or options.window != WINDOWS
    retro = [s.config for s in specs if s.name == "retro"]
    further = {c.slug: wide_windows(retro[0]) for c in cases if cuda and not asked and takes_wide_windows(c)}
    outcome = run_cases(
        cases, specs, worker, path, device, console, fresh=options.fresh, kinds=kinds, further=further
    )  # fmt: skip
    print_report(outcome.rows, console)
    if outcome.resumed:
        console.print(f"{outcome.resumed} of {len(cases)} cases were done already (--fresh measures them again)")
    if not options.no_plots and any(row.timed for row in outcome.rows):
        draw([path], folder / "plots", console)
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return report(outcome, console)


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
