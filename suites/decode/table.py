"""The tables a decode run ends with: tokens per second per case and method, where a step's time goes, what was said."""

from __future__ import annotations

from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from ...kernels.config import ceil_div
from ..core.report import (
    BreakEven,
    break_even,
    failed_lines,
    filled_table,
    main_launch,
    new_table,
    number,
    print_break_even,
    print_untimed,
    share,
    speedup,
    titled,
)
from ..core.rows import FAILED, Row
from ..core.spec import Names, steps_of
from ..core.stages import WHOLE_STEPS, heading, place
from ..engine.case import RAGGED, ragged_tokens

COLUMNS = (
    "method", "tokens/s", "ms a token", "p50", "p99", "of floor", "vs best dense", "both at floor", "J a token",
    "peak GB", "largest batch",
)  # fmt: skip
ALIKE = ("model", "batch", "weight_dtype", "dtype", "kv_dtype", "products", "shared_kv", "ranks", "launch", "commit")
EXCHANGED = ("exchange ms", "tokens/s with it", "vs best dense with it")  # modelled, of simulated ranks


PROMPTS = {"synthetic": "synthetic context", RAGGED: "synthetic contexts of many lengths"}


def steps(rows: Sequence[Row]) -> list[Row]:
    """Whole steps with a time."""
    return [r for r in rows if r.suite == "decode" and r.stage == "total" and r.tokens_per_s]


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: a line per method and launch, most tokens per second first."""
    names = names or Names(rows)
    of_case = [r for r in rows if r.case == case]
    first, launch = of_case[0], main_launch(of_case)
    cache = ", one K/V cache shared by all layers" if first.shared_kv else ""
    prompt = PROMPTS.get(first.selection_pattern or "", "text prompt")
    idle = f"; the idle GPU takes {first.idle_watts:.0f} W" if first.idle_watts else ""
    modelled = next((r.exchange_model for r in of_case if r.modelled_tokens_per_s), None)
    columns = COLUMNS if modelled is None else (*COLUMNS, *EXCHANGED)
    title = f"{case}: decoding with {first.weight_dtype} weights, {prompt}{cache}{shared(first)}{idle}"
    lines: list[Sequence[str]] = []
    for row in sorted(steps(of_case), key=lambda r: -(r.tokens_per_s or 0)):
        notes = [row.client] if row.client else []
        notes += [] if row.launch == launch else [str(row.launch)]
        notes += ["fixed length"] if row.fixed_length else []
        lines.append((
            titled(row, names, notes),
            number(row.tokens_per_s, ".1f"),
            number(row.mean_us, ".2f", 1e-3),
            number(row.p50_us, ".2f", 1e-3),
            number(row.p99_us, ".2f", 1e-3),
            share(row.floor_fraction),
            speedup(row.speedup_vs_best_dense),
            number(row.floor_speedup, ".2f", unit="x"),
            number(row.joules_per_token, ".2f"),
            number(row.peak_memory_bytes, ".1f", 1e-9),
            number(row.largest_batch, ".0f"),
            *([] if modelled is None else exchanged(row)),
        ))  # fmt: skip
    table = filled_table(title if modelled is None else f"{title}\nexchange: {modelled}", columns, lines)
    failed_lines(table, of_case, names)
    return table


def shared(row: Row) -> str:
    """What a title says of ranks that share the model."""
    if row.ranks is None:
        return ""
    copies = f", each KV head on {row.kv_replicas}" if (row.kv_replicas or 1) > 1 else ""
    if row.simulated:
        return f"; ONE OF {row.ranks} RANKS alone, without the exchange{copies}"
    return f"; over {row.ranks} ranks{copies}; floor and memory of one, joules of all"


def exchanged(row: Row) -> tuple[str, str, str]:
    """The cells of EXCHANGED."""
    return (
        number(row.modelled_exchange_us, ".2f", 1e-3),
        number(row.modelled_tokens_per_s, ".1f"),
        speedup(row.modelled_speedup),
    )


def breakdown_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table | None:
    """Where each method's step goes, in microseconds; the parts sum to the mean step."""
    names = names or Names(rows)
    parts = [r for r in rows if r.case == case and r.timed and r.stage not in WHOLE_STEPS and r.metric is None]
    if not parts:
        return None
    stages = sorted({r.stage for r in parts}, key=place)
    title = f"{case}: a step's time in microseconds (sums to the mean step)"
    table = new_table(title, ("method", *map(heading, stages)))
    for variant in dict.fromkeys(r.variant for r in parts):
        times = {r.stage: r.mean_us for r in parts if r.variant == variant}
        table.add_row(escape(names.of(variant)), *(number(times.get(stage), ".0f") for stage in stages))
    return table


def ragged_table(rows: Sequence[Row], names: Names | None = None) -> Table | None:
    """Ragged batches beside the uniform ones of as many tokens, which are as much work."""
    names = names or Names(rows)
    columns = ("case", "method", "tokens/s ragged", "tokens/s uniform", "of uniform", "vs best dense", "uniform's")
    table = new_table("ragged batches beside uniform ones of as many tokens", columns, columns[:2])
    totals = steps(rows)
    for row in (r for r in totals if r.selection_pattern == RAGGED):
        tokens = sum(ragged_tokens(row.context, row.batch))
        for other in totals:
            same = all(getattr(row, name) == getattr(other, name) for name in ALIKE) and row.variant == other.variant
            if same and other.selection_pattern == "synthetic" and other.context == ceil_div(tokens, row.batch):
                table.add_row(
                    row.case,
                    escape(names[row]),
                    number(row.tokens_per_s, ".1f"),
                    number(other.tokens_per_s, ".1f"),
                    share((row.tokens_per_s or 0.0) / (other.tokens_per_s or 1.0)),
                    speedup(row.speedup_vs_best_dense),
                    speedup(other.speedup_vs_best_dense),
                )
    return table if table.rows else None


def texts(rows: Sequence[Row], names: Names) -> list[Panel]:
    """What the dense method and ReSA wrote after the longest prompt, to be set side by side."""
    written = [r for r in rows if r.text]
    longest = max((r.context for r in written), default=0)
    shown: dict[str, Panel] = {}
    for row in written:
        is_best = row.best_dense == row.method
        kind = "dense" if is_best else "resa" if steps_of(row.method) == "resa" else None
        if row.context == longest and kind and kind not in shown:
            title = f"{names[row]} after {longest} tokens"
            shown[kind] = Panel(escape(row.text or ""), title=escape(title), width=68)
    return list(shown.values())


def drift_table(rows: Sequence[Row], names: Names) -> Table:
    """What each rectification said about the sparse steps before it (`--drift`)."""
    columns = ("case", "method", "tokens", "KL, nats", "same top token", "K/V change", "most in layer")
    table = new_table("drift by the end of each period, read off its rectification", columns)
    readings = [r for r in rows if r.metric and r.value is not None]
    for case, variant, step in dict.fromkeys((r.case, r.variant, r.step) for r in readings):
        period = [r for r in readings if (r.case, r.variant, r.step) == (case, variant, step)]
        values = {r.metric: r.value or 0.0 for r in period if r.layer is None}
        layers = {r.layer: r.value or 0.0 for r in period if r.layer is not None}
        mean, most = sum(layers.values()) / len(layers), max(layers, key=layers.__getitem__)
        numbers = (f"{values['kl']:.4f}", f"{values['top1']:.0%}", f"{mean:.2%}", f"{most} ({layers[most]:.2%})")
        table.add_row(case, escape(names.of(variant)), str(step), *numbers)
    return table


def crossings(rows: Sequence[Row]) -> dict[tuple[str, ...], BreakEven]:
    """By model, weights, batch and method: the context from which it decodes faster than the best dense one."""
    names, launch = Names(rows), main_launch(rows)
    uniform = (r for r in steps(rows) if r.selection_pattern != RAGGED and not r.client)
    sparse = [r for r in uniform if r.block_size is not None and r.launch == launch]

    def curve(row: Row) -> tuple[str, ...]:
        batch = f"{row.batch}, shared K/V" if row.shared_kv else str(row.batch)
        return row.model, str(row.weight_dtype), batch, names[row]

    return break_even(sparse, curve)


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run."""
    names = Names(rows)
    for case in dict.fromkeys(r.case for r in rows):
        of_case = [r for r in rows if r.case == case]
        if steps(of_case) or any(r.status in FAILED for r in of_case):
            console.print(case_table(case, rows, names))
            parts = breakdown_table(case, rows, names)
            if parts is not None:
                console.print(parts)
    ragged = ragged_table(rows, names)
    if ragged is not None:
        console.print(ragged)
    title = "break-even context (whole steps, against the best dense method)"
    print_break_even(title, ("model", "weights", "batch", "method"), crossings(rows), console)
    if any(r.metric for r in rows):
        console.print(drift_table(rows, names))
    if panels := texts(rows, names):
        console.print(Columns(panels))
    print_untimed(rows, console)
