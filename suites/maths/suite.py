"""`resa-bench maths`: its flags, its problems and methods, the run, the table."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...kernels import SparseConfig, registered
from ...kernels.config import GQA_POLICIES
from ...profiling.device import describe
from ..core.rows import read_rows, rewrite, write_csv
from ..core.runner import INTERRUPTED, default_folder
from ..decode.cli import tokens
from ..engine.sampling import Sampling
from ..micro.cases import DTYPES, SUMMARIES, SUMMARY_HELP, MethodSpec, summary_settings
from ..micro.suite import failure
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .judge import LIMIT_S, Judge, unavailable
from .problems import GSM_PACKAGE, Problem, gsm_symbolic, load_problems, sums
from .prompting import STYLES
from .records import REFUSED, Record, RecordFile, read_records
from .suite import MathsCase, MathsRun, default_specs, encode, load, named_spec
from .table import print_report, result_rows
from .work import Item, Rank, repeat

EXAMPLES = f"""examples:
  resa-bench maths                                     SmolLM2-135M on plain sums: shows that it works
  resa-bench maths --quick                             two problems, two methods
  resa-bench maths --gsm-symbolic 100 --model ./checkpoint --max-tokens 2048 --batch 16
  resa-bench maths --problems mine.jsonl --samples 4   an object a line: problem (or question), answer, id
  torchrun --nproc-per-node 8 -m resa_bench.suites maths --problems ... --model ... --output runs/maths
                                                       the same on 8 GPUs, each with its share of the answers
  resa-bench maths --table runs/maths                  the table of what is there so far

the paper's table (arXiv 2506.04108): its five sets lie in ReSA/math_data of github.com/microsoft/unilm as
gaokao2023en, minerva_math, olympiadbench, aime24, amc23, each with test.jsonl; its authors repeat the problems of a
set until there are 512 answers, with up to 16,384 new tokens at T 0.6, top-p 0.9:
  torchrun --nproc-per-node 8 -m resa_bench.suites maths --model DeepSeek-R1-Distill-Qwen-1.5B --limit 512 \\
    --answers 512 --problems math_data/{{gaokao2023en,minerva_math,olympiadbench,aime24,amc23}}/test.jsonl \\
    --output runs/r1-distill-qwen-1.5b

Answers are judged by math-verify in a process of its own, and are on the disk as soon as they are judged: the same
command goes on where it was stopped, with any number of GPUs. An answer depends on seed, problem and sample alone, up
to rounding, and all methods draw the same random numbers. Needs pip install 'resa-bench[maths]', which is math-verify
and {GSM_PACKAGE}."""

CPU_TOKENS, QUICK_TOKENS, PAPER_TOKENS = 192, 96, 16384
CPU_SUMS, QUICK_SUMS, GPU_SUMS = 8, 4, 200
LOG_S = 60.0  # between lines of progress where there is no terminal


def add_maths_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which problems")
    which.add_argument("--quick", action="store_const", const="quick", dest="scale", help="well under a minute")
    which.add_argument("--problems", nargs="+", type=Path, default=[], metavar="FILE", help="JSON Lines, a set each")
    which.add_argument("--gsm-symbolic", type=int, metavar="N", help="N problems drawn from its 100 templates")
    which.add_argument("--sums", type=int, metavar="N", help="N sums, differences, products (the default)")
    which.add_argument("--limit", type=int, metavar="N", help="the first N problems of each file")
    which.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each problem")
    which.add_argument("--answers", type=int, metavar="N", help="samples such that each set gets at least N answers")
    asked = parser.add_argument_group("which model, and how it is asked")
    asked.add_argument("--model", default=SMOLLM, metavar="NAME|PATH", help="SmolLM2, a folder or a .gguf file")
    asked.add_argument("--dtype", choices=DTYPES, help="default bf16, on a CPU fp32")
    asked.add_argument("--int4", action="store_true", help="4-bit weights")
    asked.add_argument("--prompt", choices=STYLES, default="chat", help="plain: the authors' text, without a template")
    asked.add_argument("--max-tokens", type=tokens, metavar="TOKENS", help="new tokens (default 16K, on a CPU 192)")
    asked.add_argument("--temperature", type=float, default=0.6, help="0 is greedy")
    asked.add_argument("--top-p", type=float, help="default 0.9")
    asked.add_argument("--seed", type=int, default=0)
    how = parser.add_argument_group("which methods, and how they are set")
    how.add_argument("--method", nargs="+", default=[], metavar="NAME", help="default dense, sparse, ReSA")
    how.add_argument("--block-size", type=int, default=16, metavar="b", help="in tokens")
    how.add_argument("--ratio", type=float, default=0.1, metavar="r", help="active ratio: share of blocks read")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--rectify-every", type=int, default=32, metavar="f", help="of ReSA")
    how.add_argument("--budget-tokens", type=int, help="a budget in tokens for Quest, instead of --ratio")
    how.add_argument("--gqa-policy", choices=GQA_POLICIES, help="default group-mean; of Quest per-head")
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    run = parser.add_argument_group("the run")
    run.add_argument("--batch", type=int, default=8, metavar="B", help="answers decoded together on each device")
    run.add_argument("--judge-s", type=float, default=LIMIT_S, metavar="S", help="most seconds to judge an answer")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--plan", action="store_true", help="print problems and methods, and stop")
    run.add_argument("--table", type=Path, metavar="DIR", help="print the table of a run's output, and stop")


def choose_problems(options: argparse.Namespace, device: torch.device) -> list[Problem]:
    """Those of the files and of the generators; sums by default. Raises ValueError."""
    for name in ("limit", "samples", "answers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: got {value}, must be at least 1")
    problems = load_problems(options.problems, options.limit)
    count = options.sums
    if count is None and options.gsm_symbolic is None and not options.problems:
        count = GPU_SUMS if device.type == "cuda" else CPU_SUMS
        count = QUICK_SUMS if options.scale == "quick" else count
    problems += sums(count, options.seed) if count is not None else []
    return problems + (gsm_symbolic(options.gsm_symbolic, options.seed) if options.gsm_symbolic is not None else [])


def choose_case(options: argparse.Namespace, device: torch.device) -> MathsCase:
    """Raises ValueError for a model without text, or of another architecture."""
    if options.model in MODELS:
        raise ValueError(f"--model {options.model}: random weights solve nothing; give a checkpoint")
    config = SMOLLM_CONFIG if options.model == SMOLLM else model_config(options.model)
    cuda = device.type == "cuda"
    usual = PAPER_TOKENS if cuda or options.problems else CPU_TOKENS
    if options.scale == "quick":
        usual = QUICK_TOKENS
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    top_p = options.top_p if options.top_p is not None else 0.9 if options.temperature else 1.0
    return MathsCase(
        options.model, config, options.batch, options.max_tokens or usual,
        Sampling(options.temperature, top_p), options.prompt, "int4" if options.int4 else dtype, dtype, options.seed,
    )  # fmt: skip


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """The default methods, or those named. Raises ValueError for an unknown one."""
    config = SparseConfig(
        block_size=options.block_size, active_ratio=options.ratio, min_blocks=options.min_blocks,
        rectify_every=options.rectify_every, gqa_policy=options.gqa_policy or "group-mean",
        **summary_settings(options.summary),
    )  # fmt: skip
    base = MethodSpec("sparse", config)
    if not options.method:
        specs = default_specs(device, base)
        return [specs[0], specs[-1]] if options.scale == "quick" else specs
    specs = []
    for name in dict.fromkeys(options.method):
        if name not in registered():
            raise ValueError(f"--method {name}: unknown; known are {', '.join(registered())}")
        own = config
        if name == "quest":
            policy = options.gqa_policy or "per-head"
            own = SparseConfig(**asdict(config) | {"gqa_policy": policy, "budget_tokens": options.budget_tokens})
        specs.append(named_spec(name, MethodSpec(name, own)))
    return specs


@dataclass(slots=True)
class Tally:
    """What the line of progress says."""

    right: int = 0
    answers: int = 0
    tokens: int = 0
    began: float = 0.0

    def text(self) -> str:
        rate = self.tokens / max(time.monotonic() - self.began, 1e-9)
        return f"{self.right} of {self.answers} right, {rate:.0f} tokens/s"


def run_maths(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> int:
    """Answer what is not answered yet, judge, record, print the table. Exit status as `resa-bench`."""
    if options.table is not None:
        return show_table(options.table, console)
    rank = Rank.from_environment()
    device = rank.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    problem = unavailable()
    if problem:
        raise ValueError(problem)
    case, specs = choose_case(options, device), choose_specs(options, device)
    problems = choose_problems(options, device)
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    sets = list(dict.fromkeys(p.set for p in problems))
    counted = ", ".join(f"{name} ({sum(p.set == name for p in problems)})" for name in sets)
    if rank.rank == 0:
        named = ", ".join(spec.label for spec in specs)
        console.print(f"{case.config.name}, {case.dtype}, on {rank.world} x {device.type}: {counted}", highlight=False)
        console.print(f"methods: {named}; answers in {folder / 'maths'}", highlight=False)
    if options.plan:
        return 0
    meets = rank.meet()
    asked = repeat(problems, options.samples, options.answers)
    case = replace(case, batch=min(case.batch, len(rank.share(asked)) or 1))  # more places would stay empty
    loaded = load(case, specs, device)
    prompts = encode(problems, loaded, case.prompt)
    items = [Item(problem, sample, tuple(prompts[problem])) for problem, sample in asked]
    run = MathsRun(case, specs, items, loaded, device)
    file = RecordFile(folder / "maths", rank.rank, rank.world)
    try:
        failures = answer_all(run, specs, rank, items, options, file, console)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted:[/] judged answers are kept; the same command goes on from here")
        return INTERRUPTED
    rank.wait()
    if rank.rank == 0:
        records = read_records(folder / "maths")
        known = {(p.set, p.id, p.digest) for p in problems}
        mine = [r for r in records if r.setting == case.setting and (r.set, r.problem, r.digest) in known]
        wanted = {run.record(spec, item, REFUSED).key for spec in specs for item in items}
        missing = len(wanted - {record.key for record in mine})
        print_report(mine, console)
        write_rows(folder / "maths.jsonl", mine, case, device, command)
        console.print(f"{len(mine)} answers in {folder / 'maths'}, accuracies in {folder / 'maths.jsonl'}")
        if not meets:
            console.print(f"other ranks may not be done: resa-bench maths --table {folder} once they are")
        elif missing:
            console.print(f"[yellow]{missing} of {len(wanted)} answers are missing:[/] the same command goes on")
    return int(bool(failures))


def answer_all(
    run: MathsRun, specs: list[MethodSpec], rank: Rank, items: list[Item], options: argparse.Namespace,
    file: RecordFile, console: Console,
) -> list[str]:  # fmt: skip
    """This rank's share under every method; a method that fails costs its own answers alone. What failed, in words."""
    done = {record.key for record in read_records(file.path.parent)}
    share, failures = rank.share(items), []
    left = {spec: [i for i in share if run.record(spec, i, REFUSED).key not in done] for spec in specs}
    count = sum(map(len, left.values()))
    resumed = len(share) * len(specs) - count
    if resumed and rank.rank == 0:
        console.print(f"{resumed} of {len(share) * len(specs)} answers were there already", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = not console.is_terminal or rank.rank != 0
    with (
        Judge(options.judge_s) as judge,
        Progress(*columns, TextColumn("{task.fields[step]}"), console=console, disable=quiet) as progress,
    ):
        task = progress.add_task("answers", total=count, step="")
        for spec in specs:
            tally, said = Tally(began=time.monotonic()), time.monotonic()

            def on_period(brought: int, tally: Tally = tally, name: str = spec.label) -> None:
                tally.tokens += brought
                progress.update(task, step=f"{name}: {tally.text()}")

            try:
                for records in run.answer(spec, left[spec], judge, file, on_period):
                    tally.answers += sum(r.outcome != REFUSED for r in records)
                    tally.right += sum(r.outcome == "right" for r in records)
                    progress.advance(task, len(records))
                    report_refused(records, spec, specs, console)
                    if not console.is_terminal and time.monotonic() - said > LOG_S:
                        said = time.monotonic()
                        console.print(f"rank {rank.rank}, {spec.label}: {tally.text()}", highlight=False)
            except Exception as error:
                status, reason = failure(error)
                failures += [reason] if status != "skipped" else []
                console.print(f"[red]{spec.label} {status}:[/] {escape(reason)}", highlight=False)
                continue
            if left[spec] and not console.is_terminal:
                console.print(f"rank {rank.rank}, {spec.label}: {tally.text()}", highlight=False)
    return failures


def report_refused(records: list[Record], spec: MethodSpec, specs: list[MethodSpec], console: Console) -> None:
    """Say once, under the first method, which problems cannot be asked."""
    if spec == specs[0]:
        for record in records:
            if record.outcome == REFUSED and record.sample == 0:
                console.print(f"[yellow]refused:[/] {record.set}/{record.problem}: {record.reason}", highlight=False)


def write_rows(path: Path, records: list[Record], case: MathsCase, device: torch.device, command: str) -> None:
    """The result rows of this setting, in place of older ones; other settings' stay."""
    common = case.columns() | asdict(describe(device)) | {"command": command}
    common["started_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    rows = result_rows(records, common)
    cases = {row.case for row in rows}
    rows += [row for row in (read_rows(path) if path.exists() else []) if row.case not in cases]
    if rows:
        rewrite(path, rows)
        write_csv(rows, path.with_suffix(".csv"))


def show_table(folder: Path, console: Console) -> int:
    """The table of a run's output folder. Raises ValueError where there are no records."""
    records = read_records(folder / "maths" if (folder / "maths").is_dir() else folder)
    if not records:
        raise ValueError(f"--table {folder}: no records there; give the --output of a run")
    print_report(records, console)
    return 0
