"""The tables a GSR run ends with: both phases of each method and the time to the answer; steps by batch and context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.report import failed_lines, new_table, number, print_untimed, speedup, titled
from ..core.rows import Row
from ..core.spec import Names, Variant
from .break_even import DENSE, PAYS

PHASES = {"candidates": "for the candidates", "refine": "for the answer"}
STEPS = ("candidates_step", "refine_step")
COLUMNS = (
    "method", "prompt", "A tokens/s", "A s", "vs dense", "B ms a token", "B s", "vs dense", "answer s", "vs dense",
)  # fmt: skip


def case_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table:
    """One case: a line per method, the earliest answer first."""
    names = names or Names(rows)
    of_case = [r for r in rows if r.case == case]
    first = of_case[0]
    prefills = [
        f"{r.context} tokens {r.value:.2f} s" for r in of_case if r.stage == "prefill" and r.variant == first.variant
    ]
    how = "every token decoded" if first.selection_pattern == "prompt" else "steps timed at points, integrated"
    prefilled = f"; prefills (in the time to the answer of all): {', '.join(prefills)}" if prefills else ""
    title = f"{case}: {first.batch} candidates, {first.weight_dtype} weights, {how}{prefilled}"
    table = new_table(title, COLUMNS, ("method", "prompt"))
    timed = {(r.variant, r.stage): r for r in of_case if r.timed}
    answers = [r for r in of_case if r.stage == "answer" and r.timed]
    for row in sorted(answers, key=lambda r: r.value or 0.0):
        a, b = (timed.get((row.variant, stage)) for stage in ("candidates", "refine"))
        table.add_row(
            titled(row, names, [f"{phase} dense" for phase in phases_kept_dense(row, timed)]),
            "shared" if row.paged else "copied",
            number(a.tokens_per_s if a else None, ".1f"),
            number(a.value if a else None, ".1f"),
            speedup(a.speedup_vs_best_dense if a else None),
            number(b.mean_us if b else None, ".2f", 1e-3),
            number(b.value if b else None, ".1f"),
            speedup(b.speedup_vs_best_dense if b else None),
            number(row.value, ".1f"),
            speedup(row.speedup_vs_best_dense),
        )
    failed_lines(table, of_case, names)
    return table


def phases_kept_dense(answer: Row, timed: Mapping[tuple[Variant, str], Row]) -> list[str]:
    """The phases (A, B) that a sparse method ran by dense steps, since these were predicted to be as fast."""
    letters = zip("AB", PHASES, strict=True)
    return [letter for letter, phase in letters if timed[answer.variant, phase].way == DENSE]


def dense_lines(rows: Sequence[Row], names: Names) -> list[str]:
    """Why a sparse method ran a phase by dense steps, a line each."""
    kept = (r for r in rows if r.timed and r.stage in PHASES and r.way == DENSE)
    return [f"{r.case}: {names[r]} {PHASES[r.stage]}: {r.reason}" for r in kept]


def steps_table(case: str, rows: Sequence[Row], names: Names | None = None) -> Table | None:
    """Milliseconds a step by candidates at work and context, a column a method."""
    names = names or Names(rows)
    steps = [r for r in rows if r.case == case and r.stage in STEPS and r.mean_us]
    if not steps:
        return None
    variants = list(dict.fromkeys(r.variant for r in steps))
    columns = ("phase", "at work", "context", *(escape(names.of(variant)) for variant in variants))
    table = new_table(f"{case}: milliseconds a step, rectification amortised in", columns, ("phase",))
    for stage, batch, context in dict.fromkeys((r.stage, r.batch, r.context) for r in steps):
        means = {r.variant: r.mean_us for r in steps if (r.stage, r.batch, r.context) == (stage, batch, context)}
        phase = "A" if stage == STEPS[0] else "B"
        table.add_row(phase, str(batch), str(context), *(number(means.get(v), ".2f", 1e-3) for v in variants))
    return table


@dataclass(frozen=True, slots=True)
class Choice:
    """Which way each phase should go, by its rows.

    Attributes:
        ratios: by phase, of the fastest sparse method to the best dense one.
        sparse: phases that run sparse: those at least PAYS faster.
        seconds: to the answer with these phases sparse and the others dense.
        dense_seconds: with both dense.
    """

    dense: Row
    rival: Row
    ratios: dict[str, float]
    sparse: tuple[str, ...]
    seconds: float
    dense_seconds: float


def choose(rows: Sequence[Row]) -> Choice | None:
    """Of one case; None where no sparse method stands beside a dense one with both phases timed.

    The rule: a phase runs sparse where the sparse method with the earliest answer is at least PAYS faster there than
    the dense method with the earliest answer. Else it stays dense, which costs no quality.
    """
    timed = {(r.variant, r.stage): r for r in rows if r.timed and r.value}
    answers = [r for r in timed.values() if r.stage == "answer" and all((r.variant, p) in timed for p in PHASES)]
    kinds = [[r for r in answers if r.variant.is_dense is dense] for dense in (True, False)]
    if not all(kinds):
        return None
    dense, rival = (min(kind, key=lambda r: r.value or 0.0) for kind in kinds)
    times = {phase: [timed[r.variant, phase].value or 0.0 for r in (dense, rival)] for phase in PHASES}
    ratios = {phase: dense_s / sparse_s for phase, (dense_s, sparse_s) in times.items()}
    sparse = tuple(phase for phase, ratio in ratios.items() if ratio >= 1 + PAYS)
    saved = sum(times[phase][0] - times[phase][1] for phase in sparse)
    whole = dense.value or 0.0
    return Choice(dense, rival, ratios, sparse, whole - saved, whole)


def choice_line(rows: Sequence[Row], names: Names) -> str | None:
    """What to run in one case, in a sentence."""
    chosen = choose(rows)
    if chosen is None:
        return None
    kept = {r.stage for r in rows if r.variant == chosen.rival.variant and r.way == DENSE}
    ways = [
        f"{name} {names[chosen.rival] if phase in chosen.sparse else names[chosen.dense]} "
        f"({'dense steps of ' if phase in kept else ''}{names[chosen.rival]}: {chosen.ratios[phase]:.2f}x)"
        for phase, name in PHASES.items()
    ]
    gain = f"{chosen.dense_seconds / chosen.seconds:.2f}x as early as all dense" if chosen.sparse else "all dense"
    rule = f"sparse where it is at least {PAYS:.0%} faster, else dense"
    return f"{rows[0].case}: choose {', '.join(ways)}; the answer after {chosen.seconds:.1f} s, {gain} ({rule})"


def print_report(rows: Sequence[Row], console: Console) -> None:
    """All tables of a run."""
    names = Names(rows)
    for case in dict.fromkeys(row.case for row in rows):
        console.print(case_table(case, rows, names))
        steps = steps_table(case, rows, names)
        if steps is not None:
            console.print(steps)
        for reason in dense_lines([row for row in rows if row.case == case], names):
            console.print(reason, highlight=False, markup=False, soft_wrap=True)
        line = choice_line([row for row in rows if row.case == case], names)
        if line is not None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    print_untimed(rows, console)
