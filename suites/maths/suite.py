"""`resa-bench maths`: its flags, its problems and methods, the run, the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...profiling.device import describe
from ..core import flags
from ..core.command import result_path
from ..core.exits import DONE, FAILED, INTERRUPTED
from ..core.failure import failure
from ..core.flags import CASES, Flag, Options
from ..core.origin import source_of
from ..core.ranks import RankLost, Ranks
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.results import Contents, check_folder, check_place, locked, read_file, rewrite, write_csv
from ..core.spec import MethodSpec, dense_here, joining, resa_here
from ..core.sweep import Sweep
from ..engine.case import default_dtype, real_model, share_of
from ..engine.sampling import Sampling
from ..model.smollm import NAME as SMOLLM
from .judge import LIMIT_S, UNJUDGED, Judge, unavailable
from .problems import GSM_PACKAGE, Problem, gsm_symbolic, load_problems, sums
from .prompting import STYLES
from .records import REFUSED, Record, RecordFile, read_records
from .run import MathsCase, MathsRun, encode, load
from .table import print_report, result_rows
from .together import Unwritten, unjudged
from .work import Item, Rank, repeat

EXAMPLES = f"""examples:
  resa-bench maths                                     SmolLM2-135M on plain sums: shows that it works
  resa-bench maths --quick                             four sums, two methods
  resa-bench maths --gsm-symbolic 100 --model ./checkpoint --max-tokens 2048 --batch 16
  resa-bench maths --problems mine.jsonl --samples 4   an object a line: problem (or question), answer, id
  torchrun --nproc-per-node 8 -m resa_bench.suites maths --problems ... --model ... --output runs/maths
                                                       the same on 8 GPUs, each with its share of the answers
  torchrun --nproc-per-node 2 -m resa_bench.suites maths --tensor-parallel --model ...     one model on 2 GPUs
  resa-bench maths --table runs/maths                  the table of what is there so far

the paper's table (arXiv 2506.04108): its five sets lie in ReSA/math_data of github.com/microsoft/unilm as
gaokao2023en, minerva_math, olympiadbench, aime24, amc23, each with test.jsonl; its authors repeat the problems of a
set until there are 512 answers, with up to 16,384 new tokens at T 0.6, top-p 0.9:
  torchrun --nproc-per-node 8 -m resa_bench.suites maths --model DeepSeek-R1-Distill-Qwen-1.5B --limit 512 \\
    --answers 512 --problems math_data/{{gaokao2023en,minerva_math,olympiadbench,aime24,amc23}}/test.jsonl \\
    --output runs/r1-distill-qwen-1.5b

Answers are judged by math-verify in a process of its own, and are on the disk as soon as they are judged: the same
command goes on where it was stopped, with any number of GPUs. An answer depends on seed, problem and sample alone, up
to rounding, and all methods draw the same random numbers. Needs pip install -e '.[maths]', which is math-verify
and {GSM_PACKAGE}."""

CPU_TOKENS, QUICK_TOKENS, PAPER_TOKENS = 192, 96, 16384
CPU_SUMS, QUICK_SUMS, GPU_SUMS = 8, 4, 200
LOG_S = 60.0  # between lines of progress where there is no terminal


MODEL = "which model, and how it is asked"


def _count(name: str, help: str, default: int | None = None) -> Flag:
    return Flag(name, help, CASES, kind=flags.whole(), metavar="N", default=default)


FLAGS = (
    flags.QUICK.but(help="well under a minute"),
    flags.several("--problems", "JSON Lines, a set each", kind=flags.path, metavar="FILE"),
    _count("--gsm-symbolic", "N problems drawn from its 100 templates"),
    _count("--sums", "N sums, differences, products (the default)"),
    _count("--limit", "the first N problems of each file"),
    _count("--samples", "answers to each problem (default 1)", 1),
    _count("--answers", "samples such that each set gets at least N answers"),
    flags.MODEL.but(group=MODEL, default=SMOLLM, help="SmolLM2, a folder or a .gguf file"),
    flags.DTYPE.but(group=MODEL, help="default bf16, on a CPU fp32"),
    flags.WEIGHTS.but(group=MODEL, many=False, default=None, help="of the projections (default: as --dtype)"),
    flags.PROMPT.but(choices=STYLES, default="chat", group=MODEL, help="plain: the authors' text, without a template"),
    Flag("--max-tokens", "new tokens (default 16K, on a CPU 192)", MODEL, kind=flags.tokens, metavar="TOKENS"),
    flags.TEMPERATURE.but(group=MODEL, default=0.6, help="default 0.6; 0 is greedy"),
    flags.TOP_P.but(group=MODEL, default=None, help="default 0.9"),
    flags.SEED.but(group=MODEL),
    *flags.METHOD_FLAGS,
    flags.BATCH.but(many=False, default=8, group=flags.RUN, help="answers decoded together on each device (default 8)"),
    Flag("--judge-s", "most seconds to judge an answer", kind=flags.number(0.0, 3600.0, above=0.0), default=LIMIT_S,
         metavar="S"),
    flags.switch("--judge-again",
                 "judge anew, by the end of its text, each answer there whose judging took too long or crashed"),
    flags.switch("--tensor-parallel", "under torchrun all ranks share one model, and not the problems"),
    flags.DEVICE, flags.OUTPUT, flags.PLAN.but(names="--plan", help="print problems and methods, and stop"),
    Flag("--table", "print the table of a run's output, and stop", kind=flags.path, metavar="DIR"),
)  # fmt: skip


def choose_problems(options: Options, device: torch.device, warn: Callable[[str], None]) -> list[Problem]:
    """Those of the files and of the generators; sums by default. Raises ValueError.

    Args:
        warn: is told which records of the files are left out.
    """
    problems, count = load_problems(options.problems, options.limit, warn), options.sums
    if count is None and options.gsm_symbolic is None and not options.problems:
        count = QUICK_SUMS if options.scale == "quick" else GPU_SUMS if device.type == "cuda" else CPU_SUMS
    problems += sums(count, options.seed) if count is not None else []
    return problems + (gsm_symbolic(options.gsm_symbolic, options.seed) if options.gsm_symbolic is not None else [])


def choose_case(options: Options, device: torch.device) -> MathsCase:
    """Raises ValueError for a model without text, or of another architecture."""
    config = real_model(options.model, "random weights solve nothing")
    config = share_of(config) if options.tensor_parallel else config
    max_tokens = PAPER_TOKENS if device.type == "cuda" or options.problems else CPU_TOKENS
    if options.scale == "quick":
        max_tokens = QUICK_TOKENS
    dtype = options.dtype or default_dtype(device)
    top_p = options.top_p if options.top_p is not None else 0.9 if options.temperature else 1.0
    return MathsCase(
        options.model, config, options.batch, options.max_tokens or max_tokens,
        Sampling(options.temperature, top_p), options.prompt, options.weights or dtype, dtype, options.seed,
    )  # fmt: skip


def choose_specs(options: Options, device: torch.device) -> list[MethodSpec]:
    """The rows of the paper's table (dense, sparse, ReSA) at the settings given; with --method those named.

    Raises:
        ValueError: a method that is unknown, or that answers would outgrow.
    """
    sweep = Sweep.of(options)
    if not sweep.names:
        names = (dense_here(device), *(() if options.scale == "quick" else ("sparse",)), resa_here(device))
        listed = replace(sweep, names=names).named()
        return [*listed, *joining("maths", device, listed, sweep.base())]
    for spec in (specs := sweep.named()):
        if spec.kind.fixes_length:
            raise ValueError(f"--method {spec.name}: serves only the length that it is bound at, but answers grow")
    return specs


def plan(options: Options, device: torch.device) -> Plan:
    """The case, and the methods that answer in it. Raises ValueError."""
    return Plan([choose_case(options, device)], choose_specs(options, device))


@dataclass(slots=True)
class Tally:
    """What the line of progress says."""

    right: int = 0
    answers: int = 0
    tokens: int = 0
    began: float = 0.0

    def text(self) -> str:
        """`3 of 8 right, 40 tokens/s`."""
        rate = self.tokens / max(time.monotonic() - self.began, 1e-9)
        return f"{self.right} of {self.answers} right, {rate:.0f} tokens/s"


def act(options: Options, device: torch.device, command: str, console: Console) -> int:
    """Answer what is not answered yet, judge, record, print the table. Exit status as `resa-bench`."""
    if options.table is not None:
        return show_table(options.table, console)
    rank = Rank.from_environment()
    ranks = Ranks.from_environment() if options.tensor_parallel else Ranks()
    device = rank.device(device)
    if options.tensor_parallel:  # to each rank all the problems
        rank = Rank()
        console = console if ranks.first else Console(quiet=True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    missing_package = unavailable()
    if missing_package:
        raise ValueError(missing_package)
    case, specs = choose_case(options, device), choose_specs(options, device)
    problems = choose_problems(options, device, partial(console.print, style="yellow", highlight=False, markup=False))
    path = result_path("maths", options, device)
    folder = path.with_suffix("")
    if rank.rank == 0:
        sets = list(dict.fromkeys(p.set for p in problems))
        counted = ", ".join(f"{name} ({sum(p.set == name for p in problems)})" for name in sets)
        console.print(
            f"{case.config.name}, {case.dtype}, on {max(rank.world, ranks.world)} x {device.type}: {counted}",
            highlight=False,
            markup=False,
        )
        console.print(
            f"methods: {', '.join(s.label for s in specs)}; answers in {folder}", highlight=False, markup=False
        )
    if options.plan:
        return 0
    check_folder(folder)
    check_place(path)
    meets = rank.meet()
    ranks.join(device)
    asked = repeat(problems, options.samples, options.answers)
    case = replace(case, batch=min(case.batch, len(rank.share(asked)) or 1))  # more places would stay empty
    loaded = load(case, specs, device)
    prompts = encode(problems, loaded, case.prompt)
    items = [Item(problem, sample, tuple(prompts[problem])) for problem, sample in asked]
    run = MathsRun(case, specs, items, loaded, device)
    file = RecordFile(folder, rank.rank, rank.world) if ranks.first else Unwritten(folder)
    if options.judge_again and rank.rank == 0 and isinstance(file, RecordFile):
        judge_again(folder, file, options.judge_s, console)
    try:
        failures = answer_all(run, specs, rank, items, options.judge_s, file, console, ranks)
    except RankLost as error:
        Console(stderr=True).print(f"[red]resa-bench maths:[/] {escape(str(error))}; judged answers are kept")
        return 1
    except KeyboardInterrupt:
        console.print("[yellow]interrupted:[/] judged answers are kept; the same command goes on from here")
        return INTERRUPTED
    rank.wait()
    ranks.leave()
    if rank.rank == 0 and ranks.first:
        known = {(p.set, p.id, p.digest) for p in problems}
        records = [
            r for r in read_records(folder) if r.setting == case.setting and (r.set, r.problem, r.digest) in known
        ]
        wanted = {run.record(spec, item, REFUSED).key for spec in specs for item in items}
        missing = len(wanted - {record.key for record in records})
        write_rows(path, records, case, device, command)
        print_report(records, console)
        other = sum(record.source not in (None, source_of(spec)) for spec in specs for record in of_spec(records, spec))
        if other:
            text = f"{other} answers are of other sources, and count; give another --output to have them made again"
            console.print(text, style="yellow", highlight=False)
        console.print(f"{len(records)} answers in {folder}, accuracies in {path}", highlight=False, markup=False)
        if not meets:
            text = f"other ranks may not be done: resa-bench maths --table {folder.parent} once they are"
            console.print(text, highlight=False, markup=False)
        elif missing:
            console.print(f"[yellow]{missing} of {len(wanted)} answers are missing:[/] the same command goes on")
    return FAILED if failures else DONE


def of_spec(records: Sequence[Record], spec: MethodSpec) -> list[Record]:
    """The answers of one method at its settings."""
    return [record for record in records if record.variant == spec.variant]


def answer_all(
    run: MathsRun, specs: Sequence[MethodSpec], rank: Rank, items: Sequence[Item], judge_s: float, file: RecordFile,
    console: Console, ranks: Ranks,
) -> list[str]:  # fmt: skip
    """This rank's share under every method; a method that fails costs its own answers alone. What failed, in words.

    `ranks`: those that share the model. Raises RankLost where one of them failed alone.
    """
    done = ranks.same({record.key for record in read_records(file.path.parent)} if ranks.first else set())
    share = rank.share(items)
    failures: list[str] = []
    left = {spec: [i for i in share if run.record(spec, i, REFUSED).key not in done] for spec in specs}
    count = sum(map(len, left.values()))
    resumed = len(share) * len(specs) - count
    if resumed and rank.rank == 0:
        console.print(f"{resumed} of {len(share) * len(specs)} answers were there already", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = not console.is_terminal or rank.rank != 0
    with (
        Judge(judge_s) as judge,
        Progress(*columns, TextColumn("{task.fields[step]}", markup=False), console=console, disable=quiet) as progress,
    ):
        task = progress.add_task("answers", total=count, step="")
        for spec in specs:
            tally, printed = Tally(began=time.monotonic()), time.monotonic()

            def on_period(brought: int, tally: Tally = tally, name: str = spec.label) -> None:
                tally.tokens += brought
                progress.update(task, step=f"{name}: {tally.text()}")

            try:
                for records in run.answer(spec, left[spec], judge if ranks.first else unjudged, file, on_period):
                    tally.answers += sum(r.outcome != REFUSED for r in records)
                    tally.right += sum(r.outcome == "right" for r in records)
                    progress.advance(task, len(records))
                    report_refused(records, spec, specs, console)
                    if not console.is_terminal and time.monotonic() - printed > LOG_S:
                        printed = time.monotonic()
                        console.print(f"rank {rank.rank}, {spec.label}: {tally.text()}", highlight=False, markup=False)
            except Exception as error:
                ranks.failed(error)
                outcome = failure(error)
                failures += [outcome["reason"]] if outcome["status"] != "skipped" else []
                console.print(f"[red]{spec.label} {outcome['status']}:[/] {escape(outcome['reason'])}", highlight=False)
                continue
            if left[spec] and not console.is_terminal:
                console.print(f"rank {rank.rank}, {spec.label}: {tally.text()}", highlight=False, markup=False)
    return failures


def judge_again(folder: Path, file: RecordFile, judge_s: float, console: Console) -> None:
    """Judge the answers of a folder whose judging was cut short by the text that was kept, into this process's file."""
    unjudged = [record for record in read_records(folder) if record.outcome in UNJUDGED]
    with Judge(judge_s) as judge:
        for record in unjudged:
            verdict = judge(record.expected, record.text)
            if verdict.outcome not in UNJUDGED:
                file.append([replace(record, outcome=verdict.outcome, extracted=verdict.extracted)])
    judged = len(unjudged) - sum(record.outcome in UNJUDGED for record in read_records(folder))
    console.print(f"{judged} of {len(unjudged)} answers that were not judged are now", highlight=False)


def report_refused(records: Sequence[Record], spec: MethodSpec, specs: Sequence[MethodSpec], console: Console) -> None:
    """Say once, under the first method, which problems cannot be asked."""
    if spec == specs[0]:
        for record in records:
            if record.outcome == REFUSED and record.sample == 0:
                console.print(
                    f"[yellow]refused:[/] {escape(f'{record.set}/{record.problem}: {record.reason}')}", highlight=False
                )


def write_rows(path: Path, records: Sequence[Record], case: MathsCase, device: torch.device, command: str) -> None:
    """The result rows of this setting, in place of older ones; other settings' stay, and what cannot be read, too."""
    common = case.columns() | asdict(describe(device)) | {"command": command}
    common["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    rows = result_rows(records, common)
    cases = {(row.case, row.model_fingerprint) for row in rows}
    with locked(path):
        held = read_file(path) if path.exists() else Contents()
        rows += [row for row in (*held.rows, *held.partial) if (row.case, row.model_fingerprint) not in cases]
        if rows:
            rewrite(path, rows, held.unreadable)
            write_csv(rows, path.with_suffix(".csv"))


def show_table(folder: Path, console: Console) -> int:
    """The table of a run's output folder. Raises ValueError where there are no records."""
    records = read_records(folder / "maths" if (folder / "maths").is_dir() else folder)
    if not records:
        raise ValueError(f"--table {folder}: no records there; give the --output of a run")
    print_report(records, console)
    return 0


SUITE = Suite(
    "maths", "problems solved under each method: accuracy and length", EXAMPLES, FLAGS, plan, act=act,
    extra="maths", reference=(Part("--quick --sums 16", gpu_minutes=0.7, cpu_minutes=2.0, timed=False),),
)  # fmt: skip
