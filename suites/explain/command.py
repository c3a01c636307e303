"""`resa-bench explain`: the table of a waterfall, from the rows of a result file or of a GPU's committed results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ...kernels import registered
from ..advise.evidence import RESULTS, available_gpus, decode_files, source_of
from ..core import flags
from ..core.flags import Options
from ..core.report import main_launch, new_table, number
from ..core.results import read_rows
from ..core.rows import Row
from ..core.settings import MODEL_SETTINGS
from ..core.spec import Names, make_spec, steps_of
from ..core.waterfall import Waterfall, waterfall
from ..engine.case import RAGGED

EXAMPLES = """examples:
  resa-bench explain decode-qwen2.5-7b-int4-b1-256k          a case of the committed results
  resa-bench explain runs/<device>/<commit>/decode.jsonl     every case of a file of yours
  resa-bench explain results/h200/decode.jsonl.gz --method quest
  resa-bench plots results/h200                              the same as a figure: decode-waterfall-*.png"""

WHAT_HELP = "a decode case of results/<gpu> (a wrong name lists them), or a result file or folder"
METHOD = flags.METHOD.but(help="the sparse method (default: ReSA's forms that the case has)", many=False, default=None)
FLAGS = (flags.CASE.but(help="of a file: only cases whose name matches"), METHOD, flags.GPU)


@dataclass(frozen=True, slots=True)
class Explained:
    """A waterfall, and what leads into it: the kernel of one layer alone, where a row of the micro suite has it.

    Attributes:
        source, kernel_source: where a reader finds the rows; the kernel's is empty where there is none.
    """

    waterfall: Waterfall
    source: str
    kernel: Row | None = None
    kernel_source: str = ""


def act(what: str, options: Options, console: Console) -> int:
    """Print a table for each case; the exit status. Raises ValueError where there is nothing to explain."""
    files, case = look_up(what, options)
    decoded = {path: [row for row in read_rows(path) if row.suite == "decode"] for path in files}
    micro = {path: [row for row in read_rows(path) if row.suite == "micro"] for path in micro_files(files)}
    latest: dict[tuple[str, str], Explained] = {}
    for path, rows in decoded.items():
        for fall in waterfalls(rows, options.method):
            step = fall.sparse
            if case in (None, step.case) and matches(step.case, options.case):
                entry = explained(fall, path, micro)
                key = (step.case, step.method)
                latest[key] = max(latest.get(key, entry), entry, key=lambda e: _rank(e.waterfall))
    if not latest:
        totals = [row for rows in decoded.values() for row in rows if row.stage == "total"]
        is_layer = any(row.case == what for rows in micro.values() for row in rows)
        raise ValueError(why_nothing(what, case, options, totals, is_layer=is_layer))
    names = Names([entry.waterfall.sparse for entry in latest.values()])
    for entry in latest.values():
        print_waterfall(entry, names, console)
    return 0


def why_nothing(what: str, case: str | None, options: Options, totals: Sequence[Row], *, is_layer: bool) -> str:
    """What to say where no waterfall is left: which of the things asked for is not there, and what is.

    Args:
        totals: whole steps of the files.
        is_layer: whether `what` is a case of the micro suite.
    """
    cases = sorted({row.case for row in totals})
    asked = [name for name in cases if case in (None, name) and matches(name, options.case)]
    if asked and options.method:
        there = sorted({row.method for row in totals if row.case in asked and not row.variant.is_dense})
        return f"--method {options.method[:60]}: no step of it beside a dense one; methods there: {', '.join(there)}"
    if case is None and not asked and cases:
        return f"--case {' '.join(options.case)}: no case matches; cases there: {', '.join(cases)}"
    why = "one layer, not a model" if is_layer else "no such case with a dense and a sparse step in one run"
    return f"{what}: {why}; cases there: {', '.join(cases) or 'none'}"


def explained(fall: Waterfall, file: Path, micro: Mapping[Path, Sequence[Row]]) -> Explained:
    """A waterfall of a file's rows, with the kernel's row from the nearest file: its own folder's, that above, another.

    Args:
        micro: rows of the micro suite, by file.
    """
    near = (file.parent, file.parent.parent)
    source = source_of(fall.sparse, file)
    for path in sorted(micro, key=lambda other: near.index(other.parent) if other.parent in near else len(near)):
        if kernel := kernel_of(fall.sparse, micro[path]):
            return Explained(fall, source, kernel, source_of(kernel, path))
    return Explained(fall, source)


def _rank(fall: Waterfall) -> tuple[bool, bool, str]:
    """What a method's name alone means comes before its other settings, then rows with stages, then the latest run."""
    step = fall.sparse
    meant = step.method in registered() and make_spec(step.method).variant == step.variant
    return meant, fall.attention is not None, step.started_at or ""


def look_up(what: str, options: Options) -> tuple[list[Path], str | None]:
    """The files to read, and the one case that is meant. Raises ValueError for a GPU without rows."""
    path = Path(what)
    if path.is_dir():
        return decode_files(path), None
    if path.is_file():
        return [path], None
    files = decode_files(RESULTS / options.gpu)
    if not files:
        known = ", ".join(available_gpus()) or "none (a wheel holds no results: name a file)"
        raise ValueError(f"{what}: is no file, and --gpu {options.gpu} has no decode rows; rows are there of: {known}")
    return files, what if what.startswith("decode-") else f"decode-{what}"


def matches(case: str, globs: Sequence[str]) -> bool:
    """Whether a case's name matches one of the globs, or holds it; any where there are none."""
    return not globs or any(Path(case).match(glob) or glob in case for glob in globs)


def micro_files(files: Iterable[Path]) -> list[Path]:
    """Files of the micro suite beside result files, or in the folder above."""
    folders = dict.fromkeys(folder for path in files for folder in (path.parent, path.parent.parent))
    return list(dict.fromkeys(path for folder in folders for path in sorted(folder.glob("micro.jsonl*"))))


def waterfalls(rows: Sequence[Row], method: str | None = None) -> list[Waterfall]:
    """Of every sparse step that has its run's best dense step beside it.

    Args:
        method: of the sparse steps; None for ReSA's forms.
    """
    runs: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.timed and not row.client and not row.metric:
            runs[row.case, row.commit, row.started_at].append(row)
    falls = []
    for run in runs.values():
        launch = main_launch(run)
        totals = [row for row in run if row.stage == "total" and row.mean_us and row.launch == launch]
        dense = min((r for r in totals if r.variant.is_dense), key=lambda r: r.mean_us or 0.0, default=None)
        if dense is None:
            continue
        for step in totals:
            wanted = step.method == method if method else steps_of(step.method) in ("resa", "resa-torch")
            if wanted and not step.variant.is_dense:
                falls.append(waterfall(dense, step, stages_us(run, dense), stages_us(run, step)))
    return falls


def stages_us(run: Sequence[Row], step: Row) -> dict[str, float]:
    """The stages of a step, by name."""
    same = (row for row in run if row.stage != "total" and row.variant == step.variant and row.launch == step.launch)
    return {row.stage: row.mean_us for row in same if row.mean_us is not None}


ALIKE = ("q_heads", "kv_heads", "head_dim", "batch", "context", "dtype", "kv_dtype", "paged", "launch")


def kernel_of(step: Row, micro: Sequence[Row]) -> Row | None:
    """The step of one layer alone with the same heads, batch, context and method, from a cold cache in a graph."""
    for row in micro:
        is_cold_step = (row.stage, row.cache_state) == ("total", "cold") and row.speedup_vs_best_dense
        if is_cold_step and _of_a_layer(row) == _of_a_layer(step):
            return row
    return None


def _of_a_layer(step: Row) -> tuple[object, ...]:
    """What a layer's step is told from others by: without the settings of a model alone, as its dense layers."""
    settings = [entry for entry in step.variant.settings if entry[0] not in MODEL_SETTINGS]
    is_ragged = step.selection_pattern == RAGGED
    return step.variant.method, settings, is_ragged, *(getattr(step, name) for name in ALIKE)


def print_waterfall(explained: Explained, names: Names, console: Console) -> None:
    """The table, and the sentence that it comes to."""
    fall, kernel = explained.waterfall, explained.kernel
    name, rival = names[fall.sparse], fall.dense.method
    columns = ("part of a step", f"{rival}, us", f"{name}, us", "speed-up so far", "model without this part")
    table = new_table(f"{fall.sparse.case}: from the kernel to the model ({explained.source})", columns, columns[:1])
    if kernel is not None:
        ratio = kernel.speedup_vs_best_dense or 1.0
        layer_us = kernel.median_us or 0.0
        cells = (f"{ratio * layer_us:.1f}", f"{layer_us:.1f}", f"{ratio:.2f}x")
        table.add_row(f"one layer's kernel alone (best dense: {kernel.best_dense})", *cells, "")
    for part in fall.parts:
        cells = (f"{part.dense_us:.0f}", f"{part.sparse_us:.0f}", f"{part.so_far:.2f}x")
        title = f"attention, {fall.sparse.layers} layers" if part.name == "attention" else f"+ {part.name}"
        table.add_row(title, *cells, number(part.without, ".2f", unit="x"))
    whole = (fall.dense.mean_us or 0.0, fall.sparse.mean_us or 0.0)
    table.add_row("[bold]the whole step[/]", *(f"{us:.0f}" for us in whole), f"[bold]{fall.speedup:.2f}x[/]", "")
    console.print(table)
    if kernel is not None:
        console.print(f"the kernel alone: {explained.kernel_source}", highlight=False, markup=False, soft_wrap=True)
    console.print(sentence(explained, escape(name)), highlight=False)


def sentence(explained: Explained, name: str) -> str:
    """What the table comes to."""
    fall, kernel = explained.waterfall, explained.kernel
    attention, heaviest = fall.attention, fall.heaviest
    if attention is None:
        return f"{name}: the model is {fall.speedup:.2f}x; the rows have no stages, so all of it is remainder"
    first, start = "attention", attention.so_far
    if kernel is not None:
        first, start = "the kernel", kernel.speedup_vs_best_dense or 1.0
    share = heaviest.sparse_us / (fall.sparse.mean_us or 1.0)
    return (
        f"{name}: {first} is {start:.2f}x, the model {fall.speedup:.2f}x. What holds it back most: {heaviest.name}, "
        f"{share:.0%} of the sparse step; without it the model would be {heaviest.without:.2f}x"
    )
