"""`resa-bench advise`: its flags, what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from ..core import flags
from ..core.flags import RUN, Options
from ..core.report import new_table
from ..core.spec import MethodSpec, unique
from ..core.sweep import Sweep
from ..decode.cases import DecodeCase
from ..engine.case import check_types, config_of
from ..model.config import MODELS
from .answer import Advisor, Answer
from .evidence import read_measured
from .model import Unpredictable
from .validate import BAND, Errors, Level, quantile_of

EXAMPLES = """examples:
  resa-bench advise --model qwen3-14b --context 8K 32K 128K --batch 1 8 32
  resa-bench advise --model ./checkpoint --weights int4 --context 128K
  resa-bench advise --model llama-3.1-8b --block-size 16 64 --context 128K     the faster of two settings
  resa-bench advise --validate                     every measured case predicted without its own rows

It needs no GPU: it reads the measured rows of one, from results/ or --results. Each time is a floor and what such rows
take beyond it. A band holds 90 % of what the same prediction was off for measured steps that it did not see."""

RESULTS = flags.several("--results", "result files in place of results/<gpu>", RUN, kind=flags.path, metavar="FILE")
VALIDATE = flags.switch("--validate", "print how far predictions of measured steps are off, and stop")
FLAGS = (
    flags.MODEL, flags.CONTEXT, flags.BATCH,
    flags.WEIGHTS.but(help="default: each kind that the rows can predict", choices=("bf16", "fp16", "fp8", "int4")),
    flags.GPU, *flags.METHOD_FLAGS, RESULTS, VALIDATE,
)  # fmt: skip
WAYS = ("resa-chain", "resa-fused")  # `resa` takes the faster one
CONTEXTS, BATCHES = (8 * flags.K, 32 * flags.K, 128 * flags.K), (1, 8, 32)
LEVELS: dict[Level, str] = {
    "case": "the case itself left out",
    "batch": "all of the model at this batch left out",
    "model": "all of the model left out",
}


def act(options: Options, console: Console) -> int:
    """Answer, or validate; the exit status.

    Raises:
        ValueError: no rows of the GPU, no such model, options that do not go together.
    """
    advisor = Advisor(read_measured(options.gpu, options.results))
    if options.validate:
        print_validation(advisor, console)
        return 0
    if not options.model:
        raise ValueError(f"--model: is missing; give a folder, a .gguf file or one of {', '.join(MODELS)}")
    specs = chosen_specs(options, advisor)
    answers, reasons = [], []
    for case in chosen_cases(options, advisor):
        try:
            answers.append(advisor.answer(case, specs))
        except Unpredictable as reason:
            reasons.append(str(reason))
    for text in dict.fromkeys(reasons):  # of weights, the same for each case
        console.print(f"[yellow]{escape(text)}[/]", highlight=False)
    if not answers:
        raise ValueError("no case can be answered; the lines above say why")
    print_answers(answers, advisor, console)
    return 0


def chosen_specs(options: Options, advisor: Advisor) -> list[MethodSpec]:
    """The sparse methods asked for; none where nothing was asked for.

    Raises:
        ValueError: a dense method, or one of which the rows say nothing.
    """
    sweep = Sweep.of(options)
    if sweep.plain:
        return []
    specs = sweep.named() if sweep.names else list(sweep.variants("resa"))
    chosen = []
    for spec in specs:
        if spec.is_dense:
            raise ValueError(f"--method {spec.name}: advice sets ReSA's methods beside dense ones; give resa")
        forms = [replace(spec, name=name) for name in WAYS] if spec.name == "resa" else [spec]
        known = [form for form in forms if advisor.model.why_unknown(form) is None]
        if not known:
            raise ValueError(f"--method {spec.label}: {advisor.model.why_unknown(forms[0])}")
        chosen += known
    return unique(chosen)


def chosen_cases(options: Options, advisor: Advisor) -> list[DecodeCase]:
    """Every combination asked for. Raises ValueError for a model that is not there."""
    config = config_of(options.model)
    known = {m.case.weights for m in advisor.measured if advisor.model.knows_weights(m.case)}
    kinds = options.weights or tuple(sorted(known))
    cases = []
    for weights in kinds:
        dtype = "fp16" if weights == "fp16" else "bf16"
        check_types(weights, dtype)
        cases += [
            DecodeCase(options.model, config, batch, context, weights, dtype)
            for batch in options.batch or BATCHES
            for context in options.context or CONTEXTS
        ]
    return cases


def print_answers(answers: Sequence[Answer], advisor: Advisor, console: Console) -> None:
    """A table, a sentence a case, what the bands are from, and the rows behind it."""
    config = answers[0].case.config
    columns = (
        "weights", "batch", "context", "dense, tokens/s", "ReSA, tokens/s", "setting", "speed-up", "both at floor",
        "GB", "GB ReSA", "break-even",
    )  # fmt: skip
    table = new_table(f"{config.name} on {advisor.device}: predicted, not measured", columns, ("weights", "setting"))
    for a in answers:
        table.add_row(
            a.case.weights, str(a.case.batch), flags.size_word(a.case.context).upper(),
            *(f"{c.tokens_per_s:.0f} ({c.low:.0f}-{c.high:.0f})" for c in (a.dense, a.sparse)),
            a.sparse.spec.label,
            f"{a.speedup:.2f}x ({a.low:.2f}-{a.high:.2f})",
            f"{a.floor_speedup(advisor.model.ceilings):.2f}x",
            *(f"{c.memory_bytes / 1e9:.0f}" for c in (a.dense, a.sparse)),
            "none" if a.break_even is None else a.break_even.words(flags.K, "K"),
        )  # fmt: skip
    console.print(table)
    for a in answers:
        console.print(f"- {a.verdict}", highlight=False, markup=False)
    if advisor.memory is None:
        text = f"whether it fits was not checked: the memory of {advisor.device} is in no manifest.json beside the rows"
        console.print(text, highlight=False, markup=False)
    beyond = sorted({a.case.context for a in answers if a.case.context > config.context})
    if beyond:
        longest = flags.size_word(beyond[-1])
        console.print(f"{config.name} handles {config.context} tokens; {longest} is speed alone", highlight=False)
    for level in dict.fromkeys(a.level for a in answers):
        print_level(advisor.errors(level), console)
    support = dict.fromkeys(m for a in answers for c in (a.dense, a.sparse) for m in c.prediction.support)
    nearest = dict.fromkeys(f"{m.case.slug} {m.spec.label} ({m.source})" for m in support)
    console.print(f"fitted to {len(advisor.measured)} measured steps; nearest to these cases:", highlight=False)
    for line in list(nearest)[:12]:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def print_level(errors: Errors, console: Console) -> None:
    """A line on what a band is from."""
    times, ratios = errors.times, errors.ratios
    console.print(
        f"band: {BAND:.0%} of {len(times)} measured steps, predicted with {LEVELS[errors.level]}, are off by at most "
        f"{quantile_of(times, BAND):.1%} (median {quantile_of(times, 0.5):.1%}); their speed-ups by at most "
        f"{quantile_of(ratios, BAND):.1%}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def print_validation(advisor: Advisor, console: Console) -> None:
    """How far predictions are off by level, and the worst of them."""
    columns = ("left out", "steps", "median", "90 % within", "worst", "speed-ups, 90 % within", "not predictable")
    table = new_table(f"{advisor.device}: measured steps predicted without their own rows", columns, ("left out",))
    levels: tuple[Level, ...] = ("case", "batch", "model")
    for errors in {advisor.errors(level).level: advisor.errors(level) for level in levels}.values():
        times = errors.times
        shares = (f"{value:.1%}" for value in (quantile_of(times, 0.5), quantile_of(times, BAND), times[-1]))
        ratios = f"{quantile_of(errors.ratios, BAND):.1%}"
        table.add_row(LEVELS[errors.level], str(len(times)), *shares, ratios, str(errors.unpredicted))
    console.print(table)
    worst = sorted(advisor.errors("case").judged, key=lambda j: -abs(j.error))[:5]
    table = new_table("the five that are off most, the case itself left out", ("case", "method", "ms", "predicted ms"))
    for judged in worst:
        case, label = judged.measured.case.slug, judged.measured.spec.label
        table.add_row(case, escape(label), f"{judged.measured.us / 1e3:.2f}", f"{judged.predicted_us / 1e3:.2f}")
    console.print(table)
    files = sorted({m.source for m in advisor.measured})
    console.print("rows: " + "; ".join(files), highlight=False, markup=False)
