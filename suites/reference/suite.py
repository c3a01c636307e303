"""`resa-bench reference`: its flags, what it lists, where it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from rich.console import Console

from ...profiling.device import source_hash, source_state
from ..core import flags
from ..core.flags import Flag, Options
from ..core.manifest import Manifest, Sources, read_manifest
from ..core.registry import Plan, Suite
from ..core.report import new_table
from ..core.runner import default_folder
from ..core.spread import print_spread
from .chip import describe_chip, describe_versions, folder_name
from .join import join
from .parts import Step, choose, steps, total_minutes, usual_machine
from .run import Reference

EXAMPLES = """examples:
  resa-bench reference                                 every suite, into results/<device>/ (25 minutes on an H200)
  resa-bench reference --list                          its parts, with expected minutes, and which are done
  resa-bench reference --part micro decode             these parts, or all parts of these suites
  resa-bench reference --minutes 9                     start no part that would end later; stop what still runs then
  resa-bench reference --chip 2                        another chip of the kind, into results/<device>/chip2
  CUDA_VISIBLE_DEVICES=1 resa-bench reference --part decode gsr --output runs/second      a second card's parts
  resa-bench reference --join runs/second --output results/h100                            and they join the others
  resa-bench reference --spread results/h200 results/h200/chip2      how far the two differ, row by row

One compressed file a suite, and manifest.json: commit, chip, versions, commands, minutes, and the hash of each file.
A rerun goes on where the last one stopped, on another machine too, as long as it has the output folder. A part that
was run from another commit is run again; `--part` runs some and leaves the others as they are. On a GPU the parts that
time nothing run side by side. Exit status: 0 all done, 1 a part failed, 130 parts are left."""

PART = flags.several("--part", "these parts only", metavar="NAME")
LIST = flags.PLAN.but(help="print the parts, and stop")
MINUTES = Flag("--minutes", "how long this call may take", kind=flags.number(0.0, 1e6, above=0.0), metavar="N")
CHIP = Flag("--chip", "which chip of the kind this is", kind=flags.whole(1, 64), default=1, metavar="N")
ALLOW_DIRTY = flags.switch("--allow-dirty", "run from changed sources; the manifest says so")
SPREAD = flags.several(
    "--spread", "print how far the runs in these folders differ, and stop", flags.RUN, kind=flags.path, metavar="DIR"
)
JOIN = flags.several(
    "--join",
    "take into --output the parts that runs in these folders have done, and stop",
    flags.RUN,
    kind=flags.path,
    metavar="DIR",
)
FLAGS = (
    PART, LIST, MINUTES, CHIP, ALLOW_DIRTY, JOIN, SPREAD, flags.DEVICE,
    flags.OUTPUT.but(help="default results/<device>[/chip<N>]"),
    flags.FRESH.but(help="remove what the output's manifest lists, and start over"),
)  # fmt: skip


def output_folder(options: Options, device: torch.device) -> Path:
    """Where results are published."""
    if options.output is not None:
        return Path(options.output)
    return Path("results") / folder_name(device) / (f"chip{options.chip}" if options.chip > 1 else "")


def checked_sources(allow_dirty: bool) -> Sources:
    """Which sources run. Raises ValueError for changed or unknown ones, unless they are allowed."""
    commit, dirty = source_state()
    if not allow_dirty and (commit is None or dirty is not False):
        what = "no commit is known" if commit is None else "the sources were changed" if dirty else "may be changed"
        raise ValueError(
            f"a reference run is of one commit, but {what}; commit first, or name the commit of an exported tree in "
            "RESA_BENCH_COMMIT, or give --allow-dirty"
        )
    return Sources(commit, dirty, source_hash())


def remove_listed(manifest: Manifest, output: Path) -> None:
    """Remove what a manifest lists; other files stay."""
    for name in manifest.files:
        (output / name).unlink(missing_ok=True)


def act(options: Options, device: torch.device, command: str, console: Console) -> int:
    """List, compare, or run; the exit status.

    Raises:
        ValueError: changed sources, unknown parts, an output folder of another chip.
    """
    if options.spread:
        print_spread(options.spread, console)
        return 0
    if options.join:
        if options.output is None:
            raise ValueError("--join: give the folder that takes the parts in by --output DIR")
        for folder, taken in join([Path(folder) for folder in options.join], Path(options.output)).items():
            console.print(f"{folder}: {', '.join(taken) or 'nothing new'}", highlight=False, soft_wrap=True)
        return 0
    order = steps(device)
    chosen = choose(order, options.part)
    sources = checked_sources(options.allow_dirty or options.plan)
    output, work = output_folder(options, device), default_folder(device) / "reference"
    manifest = read_manifest(output)
    if options.fresh and not options.plan:
        remove_listed(manifest, output)
        shutil.rmtree(work, ignore_errors=True)
        manifest = Manifest()
    chip = describe_chip(device)
    names = {held["name"] for held in manifest.chips}
    if names - {chip["name"]}:
        raise ValueError(
            f"{output} holds a run on {', '.join(sorted(names))}, this is {chip['name']}; give another --output"
        )
    run = Reference(
        order, output, work, device, sources, manifest, chip, describe_versions(device), console, options.device
    )
    if options.plan:
        print_parts(run, chosen, console)
        return 0
    return run.run(chosen, options.minutes)


def print_parts(run: Reference, chosen: list[Step], console: Console) -> None:
    """Names, expected minutes, state, commands."""
    expected = [step.part.minutes(run.device.type) or 0.0 for step in chosen]
    in_all = total_minutes(chosen, run.device.type)
    title = f"{len(chosen)} parts, about {in_all:.0f} minutes on {usual_machine(run.device.type)}; into {run.output}"
    table = new_table(title, ("part", "minutes", "took", "state", "command"), ("part", "state", "command"))
    for step, minutes in zip(chosen, expected, strict=True):
        record = run.manifest.parts.get(step.name)
        state = "left" if record is None else "done" if run.is_done(step) else record.status
        if record is not None and record.sources != run.sources:
            state += f" at {(record.commit or 'no commit')[:10]}"
        took = f"{record.minutes:.1f}" if record is not None else ""
        words = " ".join(step.words(run.work, run.device_name)[:-2])
        table.add_row(step.name, f"{minutes:g}", took, state, words)
    console.print(table)


def plan(options: Options, device: torch.device) -> Plan:
    """Its parts plan for themselves."""
    return Plan([], [])


SUITE = Suite(
    "reference", "every suite at one commit, published with a manifest", EXAMPLES, FLAGS, plan, act=act, reference=()
)
