"""The command line, `resa-bench`: a command for each suite of the registry, and profile, plots, compare, doctor ..."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import baselines  # noqa: F401  (registers the rivals)
from ..profiling.source import package_version
from .advise.command import EXAMPLES as ADVISE_EXAMPLES
from .advise.command import FLAGS as ADVISE_FLAGS
from .advise.command import act as advise
from .core import flags
from .core.command import result_path, run_suite
from .core.exits import CLOSED, DONE, INTERRUPTED, UNUSABLE, epilog, tell
from .core.flags import Flag, add_flags, options
from .core.plugins import load_plugins
from .core.ranks import Ranks
from .core.registry import Suite, suites
from .core.results import check_folder
from .core.terminal import console_for, leave_closed_streams, prepare_streams
from .core.verdict import TOLERANCE
from .decode.suite import FLAGS as DECODE_FLAGS
from .decode.suite import PATTERN as DECODE_PATTERN
from .decode.suite import least_context
from .explain.command import EXAMPLES as EXPLAIN_EXAMPLES
from .explain.command import FLAGS as EXPLAIN_FLAGS
from .explain.command import WHAT_HELP
from .explain.command import act as explain
from .micro.cases import DEFAULT_MODEL, PRESETS
from .micro.suite import FLAGS as MICRO_FLAGS
from .model.smollm import CONFIG as SMOLLM_CONFIG
from .profile.cli import act_profile, add_profile_arguments

Given = dict[str, Any]
"""What was given on a command line, by name; what was not given is left out."""

BENCH_EXAMPLES = """examples:
  resa-bench bench                                     kernels (`micro`), then decoding (`decode`): default lists
                                                       (on a CPU: attention at 4K, 16K, 64K; SmolLM2 at 1K, 8K)
  resa-bench bench --quick                             both in under two minutes
  resa-bench bench --only decode                       one half
  resa-bench bench --context 64K 256K --batch 4        these cases in both

Takes the flags of both halves. Which cases one half alone knows (--q-heads, --pattern, --page-size, --case ...), it
runs alone; `resa-bench micro --help` and `resa-bench decode --help` have more. A rerun goes on where the last one
stopped; --fresh starts over."""

REPORT_EXAMPLES = """examples:
  resa-bench report runs/cpu/commit                    report.html beside the rows of a run
  resa-bench report results/h200 -o h200.html          published rows
  resa-bench report before after -o two.html           two runs side by side: same, faster, slower or unclear
  resa-bench report runs/h200/commit runs/h200/commit/profile     with the timeline of a profiled step"""

HALVES = ("micro", "decode")
ONLY = Flag("--only", "one half of the job", choices=HALVES)


def bench_flags() -> list[Flag]:
    """The flags of both halves, each once, as the first half that has it says it."""
    return list({flag.name + str(flag.constant): flag for flag in (*DECODE_FLAGS, *MICRO_FLAGS)}.values())


class ShowVersion(argparse.Action):
    """`--version`: asks git only when it is given."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"{parser.prog} {package_version() or 'of unknown version'}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a parsed namespace holds `act`, `command` and what was given."""
    parser = argparse.ArgumentParser(
        prog="resa-bench",
        description="What sparse-attention decoding buys: ReSA against dense, Quest and others.",
        epilog=epilog(),
        formatter_class=(raw := argparse.RawDescriptionHelpFormatter),
    )
    parser.add_argument("--version", action=ShowVersion, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)
    help_text = "the main job: both suites on their default lists, tables, plots"
    bench = commands.add_parser("bench", help=help_text, epilog=epilog(BENCH_EXAMPLES), formatter_class=raw)
    add_flags(bench, [flag.but(choices=()) if flag.name == "model" else flag for flag in (*bench_flags(), ONLY)])
    bench.set_defaults(act=act_bench)
    for suite in suites().values():
        command = commands.add_parser(suite.name, help=suite.help, epilog=epilog(suite.examples), formatter_class=raw)
        add_flags(command, suite.flags)
        command.set_defaults(act=partial(act_suite, suite))
    profile = commands.add_parser("profile", help="from a slow number to its cause: the case under nsys or ncu")
    add_profile_arguments(profile)
    profile.set_defaults(act=act_profile_command)
    place = flags.argument(flags.path)
    plots = commands.add_parser("plots", help="draw the figures of result files")
    plots.add_argument("results", nargs="+", type=place, help="JSON Lines files, or folders of them")
    plots.add_argument("--output", type=place, help="folder of the figures (default: plots/ beside the first file)")
    plots.set_defaults(act=act_plots)
    help_text = "one page of result files: opens in any browser, fetches nothing"
    report = commands.add_parser("report", help=help_text, epilog=epilog(REPORT_EXAMPLES), formatter_class=raw)
    report.add_argument("results", nargs="+", type=place, help="JSON Lines files, or folders of them (traces too)")
    report.add_argument("-o", "--output", type=place, help="the page (default: report.html beside the first file)")
    report.set_defaults(act=act_report)
    compare = commands.add_parser(
        "compare", help="same, faster, slower or unclear, row by row; exit status 1 if a whole step got slower"
    )
    compare.add_argument("a", type=place)
    compare.add_argument("b", type=place)
    tolerance = "differences up to this count as the same"
    compare.add_argument("--tolerance", type=flags.argument(flags.number(0.0, 1.0)), default=TOLERANCE, help=tolerance)
    compare.add_argument("--markdown", action="store_true", help="a verdict for a pull request")
    compare.set_defaults(act=act_compare)
    advice = commands.add_parser(
        "advise", help="does it pay for my model? from measured rows, no GPU needed",
        epilog=epilog(ADVISE_EXAMPLES), formatter_class=raw,
    )  # fmt: skip
    add_flags(advice, ADVISE_FLAGS)
    advice.set_defaults(act=act_advise)
    explained = commands.add_parser(
        "explain", help="from the kernel's speed-up to the model's, part by part", epilog=epilog(EXPLAIN_EXAMPLES),
        formatter_class=raw,
    )  # fmt: skip
    explained.add_argument("what", help=WHAT_HELP)
    add_flags(explained, EXPLAIN_FLAGS)
    explained.set_defaults(act=act_explain)
    export = commands.add_parser("export", help="rows in the format of another tool")
    export.add_argument("results", nargs="+", type=place, help="JSON Lines files")
    export.add_argument("--format", choices=("flashinfer-trace",), required=True, help="flashinfer-bench's dataset")
    export.add_argument("-o", "--output", type=place, required=True, help="a new folder")
    export.set_defaults(act=act_export)
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
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        there = {0: "no GPU", 1: "one GPU"}.get(count, f"{count} GPUs")
        raise ValueError(f"device: {name} was asked for, but torch finds {there} here")
    return torch.device("cuda", device.index or 0)


def act_bench(given: Given, console: Console) -> int:
    """Both halves, or those that know all of the cases asked for; the exit status of the first that failed."""
    device = choose_device(given.get("device"))
    halves = [given["only"]] if given.get("only") else [name for name in HALVES if concerns(name, given, device)]
    statuses = []
    for name in halves:
        half = for_decode(given, device, console) if name == "decode" and not given.get("only") else given
        statuses.append(act_suite(suites()[name], half, console) if half is not None else 0)
        if statuses[-1] == INTERRUPTED:
            break
    if INTERRUPTED not in statuses:
        report_bench(halves, given, device, console)
    return next((status for status in statuses if status), DONE)


def report_bench(halves: list[str], given: Given, device: torch.device, console: Console) -> None:
    """Write the page of the folder that holds both halves' rows; where that fails, say so: the rows are safe."""
    chosen = options(bench_flags(), given)
    files = [result_path(half, chosen, device) for half in halves]
    if chosen.plan or chosen.no_plots or not any(file.is_file() for file in files):
        return
    folder = files[0].parent
    try:
        write_page([folder], folder / "report.html", console)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        console.print(f"no report: {reason}", style="yellow", highlight=False, markup=False)


def write_page(paths: list[Path], output: Path, console: Console) -> None:
    """Write the page of result files and say where it is."""
    from ..plots.report.page import write_report

    page = write_report(paths, output)
    console.print(f"report {page} ({page.stat().st_size / 1e3:.0f} kB)", highlight=False, markup=False, soft_wrap=True)


def concerns(half: str, given: Given, device: torch.device) -> bool:
    """Whether a half knows every flag that says which cases are wanted, and the pattern."""
    own = {flag.name for flag in suites()[half].flags}
    cases = {flag.name for flag in bench_flags() if flag.group == flags.CASES}
    if half == "decode" and device.type == "cpu" and given.get("model"):
        return False  # a model too large
    if half == "micro" and given.get("model", DEFAULT_MODEL) not in PRESETS:
        return False  # a checkpoint
    if given.get("pattern") and half == "decode" and given["pattern"] not in DECODE_PATTERN.choices:
        return False
    one_half_only = {"case", "dtype"} if half == "decode" else set()  # names of kernels' cases
    return not (cases & set(given)) - own and not one_half_only & set(given)


def for_decode(given: Given, device: torch.device, console: Console) -> Given | None:
    """The values for the second half: on a CPU the contexts that its model has; None if there are none of them."""
    if device.type != "cpu" or not given.get("context"):
        return given
    period = max((*given.get("rectify_every", (32,)), *given.get("window", (2,))))
    least, most = least_context("text", period), SMOLLM_CONFIG.context
    fitting = [context for context in given["context"] if least <= context <= most]
    if len(fitting) < len(given["context"]):
        console.print(f"decode: on a CPU contexts of {least} to {most} tokens (SmolLM2); others are left out")
    return given | {"context": fitting} if fitting else None


def act_suite(suite: Suite, given: Given, console: Console) -> int:
    """Run a suite with what was given, its own defaults elsewhere."""
    chosen = options(suite.flags, given)
    device = choose_device(chosen.device)
    return run_suite(suite, chosen, device, command_line(given["arguments"]), console, draw)


def command_line(arguments: list[str]) -> str:
    """What rows record as the command that repeats them."""
    return "resa-bench " + shlex.join(arguments)


def draw(paths: list[Path], folder: Path, console: Console) -> None:
    """Draw the figures of result files; a line for each. Rows that allow no figure are no fault."""
    from ..plots.figures import NoFigure, draw_all

    try:
        for path in draw_all(paths, folder):
            if path.suffix == ".png":
                console.print(f"plot {path}", highlight=False, markup=False)
    except NoFigure as reason:
        console.print(f"no figure: {reason}", highlight=False, markup=False)


def act_profile_command(given: Given, console: Console) -> int:
    """`resa-bench profile`."""
    Ranks.alone("profile")
    return act_profile(given, choose_device(given.get("device")), console)


def act_plots(given: Given, console: Console) -> int:
    """`resa-bench plots`: raises ValueError where no figure can be drawn, since it is all that was asked for."""
    from ..plots.figures import draw_all

    first = given["results"][0]
    folder = given["output"] or (first if first.is_dir() else first.parent) / "plots"
    check_folder(folder)
    for path in draw_all(given["results"], folder):
        if path.suffix == ".png":
            console.print(f"plot {path}", highlight=False, markup=False)
    return 0


def act_report(given: Given, console: Console) -> int:
    """`resa-bench report`."""
    first = given["results"][0]
    folder = first if first.is_dir() else first.parent
    write_page(given["results"], given["output"] or folder / "report.html", console)
    return 0


def act_compare(given: Given, console: Console) -> int:
    """`resa-bench compare`."""
    from .compare import compare_files

    return compare_files(given["a"], given["b"], given["tolerance"], console, given["markdown"])


def act_advise(given: Given, console: Console) -> int:
    """`resa-bench advise`."""
    return advise(options(ADVISE_FLAGS, given), console)


def act_explain(given: Given, console: Console) -> int:
    """`resa-bench explain`."""
    return explain(given["what"], options(EXPLAIN_FLAGS, given), console)


def act_export(given: Given, console: Console) -> int:
    """`resa-bench export`."""
    from .export.flashinfer_trace import export_files

    dataset = export_files(given["results"], given["output"])
    traces = sum(map(len, dataset.traces.values()))
    text = f"{traces} traces of {len(dataset.definitions)} definitions in {given['output']}"
    console.print(text, highlight=False, markup=False)
    for reason, count in dataset.left_out.most_common():
        console.print(f"left out: {count} rows ({reason})", highlight=False, markup=False)
    return 0


def act_doctor(given: Given, console: Console) -> int:
    """`resa-bench doctor`."""
    from .doctor import doctor

    return doctor(console, choose_device(None), as_json=given["json"])


def act_flush_demo(given: Given, console: Console) -> int:
    """`resa-bench flush-demo`."""
    from .flush_demo import flush_demo

    flush_demo(console)
    return 0


def run_command(act: Callable[[Given, Console], int], given: Given) -> int:
    """Run a command. What ends it is told by `exits.tell`: errors from outside are one line."""
    errors = console_for(sys.stderr)
    name = f"resa-bench {given['command']}"
    try:
        return act(given, console_for())
    except KeyboardInterrupt:
        errors.print(f"{name}: interrupted; finished cases are kept", highlight=False)
        return INTERRUPTED
    except BrokenPipeError:
        leave_closed_streams()
        return CLOSED
    except Exception as error:
        return tell(error, name, errors)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. The exit status is one of `exits.MEANINGS`."""
    prepare_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        load_plugins()
    except ValueError as error:
        console_for(sys.stderr).print(f"resa-bench: {error}", style="red", highlight=False, markup=False)
        return UNUSABLE
    parser = build_parser()
    for word in arguments:
        if word.startswith("--") and word.endswith("=--"):  # argparse drops the value, and gives an empty list
            parser.error(f"argument {word[:-3]}: got '--', expected a value")
    given = vars(parser.parse_args(arguments))
    return run_command(given.pop("act"), given | {"arguments": arguments})


if __name__ == "__main__":
    sys.exit(main())
