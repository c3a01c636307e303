"""`resa-bench lossless`: its flags, its cases and methods."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from ...kernels import SparseConfig
from ...profiling.timing import Plan
from ..core.rows import read_rows
from ..core.runner import Outcome, default_folder, run_cases
from ..core.worker import Settings, Worker
from ..decode.cases import WEIGHTS
from ..decode.cli import tokens
from ..decode.suite import DecodePlan
from ..engine.sampling import Sampling
from ..micro.cases import DEFAULT_MODEL, DTYPES, SUMMARIES, SUMMARY_HELP, K, MethodSpec, summary_settings
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from .cases import DRAFTS, LosslessCase, ReplayCase, dense_specs, lossless_specs, sampled
from .method import NAME
from .replay import read_acceptances
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench lossless                                  SmolLM2-135M: stretches of text, drafts of 2, 4, 8 and 16 tokens
  resa-bench lossless --quick                          few tokens, two draft lengths
  resa-bench lossless --device cpu --prompts 50 --tokens 256 --prompt-tokens 512 --draft-length 4    the proof
  resa-bench lossless --ratio 0.05 0.1 0.2 --draft-length 4 8 --temperature 0.6 --top-p 0.95
  resa-bench lossless --replay lossless.jsonl          {DEFAULT_MODEL}, random weights, 256K: rounds run and are timed,
                                                       how many drafts stand is replayed from the rows of a real model
                                                       with the same draft length, active ratio and block size

In fp32 a text that is not dense decoding's fails its row; in bf16 texts are compared with dense passes of as many rows,
where only near-ties may differ. A rerun goes on where the last one stopped; --fresh starts over."""

QUICK_DRAFTS = (2, 4)


def add_lossless_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which cases")
    which.add_argument("--quick", action="store_const", const="quick", dest="scale", help="few tokens, two lengths")
    which.add_argument("--model", metavar="NAME|PATH", help=f"{SMOLLM}, a folder, a .gguf file; to replay, any preset")
    which.add_argument("--prompts", type=int, metavar="N", help="stretches of text, decoded together (default 8)")
    which.add_argument("--prompt-tokens", type=tokens, metavar="TOKENS", help="of each (default 1K, on a GPU 4K)")
    which.add_argument("--tokens", type=tokens, help="decoded after each (default 64, on a GPU 256)")
    which.add_argument("--dtype", choices=DTYPES, help="default bf16, on a CPU fp32")
    which.add_argument("--seed", type=int, default=0)
    replay = parser.add_argument_group("random weights, with the acceptance of a real model")
    replay.add_argument("--replay", type=Path, metavar="FILE", help="result rows of this command on a real model")
    replay.add_argument("--context", nargs="+", type=tokens, default=[256 * K], metavar="TOKENS")
    replay.add_argument("--batch", nargs="+", type=int, default=[1], metavar="B")
    replay.add_argument("--weights", nargs="+", choices=WEIGHTS, default=[], help="default int4, on a CPU fp32")
    replay.add_argument("--shared-kv", action="store_true", help="one K/V cache for all layers")
    replay.add_argument("--seconds", type=float, default=2.0, help="decode at least that long")
    how = parser.add_argument_group("how drafts are made")
    how.add_argument("--draft-length", nargs="+", type=int, metavar="m", help="tokens drafted a round")
    how.add_argument("--block-size", nargs="+", type=int, default=[16], metavar="b", help="in tokens")
    how.add_argument("--ratio", nargs="+", type=float, default=[0.1], metavar="r", help="active ratios")
    how.add_argument("--min-blocks", type=int, default=16, help="least blocks read")
    how.add_argument("--summary", choices=SUMMARIES, default="minmax", help=SUMMARY_HELP)
    how.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    how.add_argument("--top-p", type=float, default=1.0)
    run = parser.add_argument_group("the run")
    run.add_argument("--device", help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
    run.add_argument("--output", type=Path, metavar="DIR", help="default runs/<device>/<commit>[/quick]")
    run.add_argument("--fresh", action="store_true", help="measure again what the output holds already")
    run.add_argument("--plan", action="store_true", help="print cases and methods, and stop")


def choose_specs(options: argparse.Namespace, device: torch.device) -> list[MethodSpec]:
    """Dense methods, then lossless decoding at every setting. Raises ValueError for settings that are none."""
    drafts = options.draft_length or (QUICK_DRAFTS if options.scale == "quick" else DRAFTS)
    base = SparseConfig(min_blocks=options.min_blocks, **summary_settings(options.summary))
    mine = lossless_specs(base, drafts, options.block_size, options.ratio)
    return [*dense_specs(device, text=options.replay is None), *mine]


def choose_case(options: argparse.Namespace, device: torch.device, specs: list[MethodSpec]) -> LosslessCase:
    """The real model's case. Raises ValueError for random weights, or where text and drafts are over its context."""
    model = options.model or SMOLLM
    if model in MODELS:
        raise ValueError(
            f"--model {model}: acceptance means nothing on random weights; give a checkpoint, or --replay FILE with "
            "the rows that this command measured on one"
        )
    config = SMOLLM_CONFIG if model == SMOLLM else model_config(model)
    cuda, quick = device.type == "cuda", options.scale == "quick"
    given = (options.prompts, options.prompt_tokens, options.tokens)
    usual = (4, 512, 32) if quick else (8, 4096, 256) if cuda else (8, 1024, 64)
    batch, prompt, count = (usual[i] if value is None else value for i, value in enumerate(given))
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    sampling = Sampling(options.temperature, options.top_p)
    case = LosslessCase(model, config, prompt, count, batch, dtype, sampling, options.seed)
    case.capacity(max(spec.draft_length or 0 for spec in specs))
    return case


def choose_replays(options: argparse.Namespace, device: torch.device, specs: list[MethodSpec]) -> list[ReplayCase]:
    """Cases of random weights. Raises ValueError where the file lacks a setting's acceptance."""
    model = options.model or DEFAULT_MODEL
    cuda = device.type == "cuda"
    sampling = Sampling(options.temperature, options.top_p)
    mine = [spec for spec in specs if spec.name == NAME]
    acceptances = read_acceptances(options.replay, mine, sampled(sampling))
    dtype = options.dtype or ("bf16" if cuda else "fp32")
    return [
        ReplayCase(
            model, model_config(model), b, c, w, dtype, options.shared_kv, "synthetic", sampling, options.seed,
            acceptances,
        )
        for w in options.weights or ["int4" if cuda else dtype]
        for b in options.batch
        for c in options.context
    ]  # fmt: skip


def other_acceptance(path: Path, cases: list[LosslessCase] | list[ReplayCase]) -> bool:
    """Whether the output holds rows that replay something else than these cases do."""
    said = {one.source for case in cases if isinstance(case, ReplayCase) for one in case.acceptances}
    if not said or not path.exists():
        return False
    slugs = {case.slug for case in cases}
    held = {r.reason for r in read_rows(path) if r.case in slugs and r.metric == "replayed_acceptance"}
    return not held <= said


def run_lossless(options: argparse.Namespace, device: torch.device, command: str, console: Console) -> Outcome | None:
    """Measure what is asked for and print tables; None after `--plan`."""
    specs = choose_specs(options, device)
    cases = choose_replays(options, device, specs) if options.replay else [choose_case(options, device, specs)]
    if options.plan:
        for case in cases:
            console.print(case.slug, highlight=False)
        console.print("methods: " + ", ".join(s.label for s in specs), highlight=False)
        return None
    folder = options.output or default_folder(device) / ("quick" if options.scale == "quick" else "")
    path = folder / "lossless.jsonl"
    console.print(f"{len(cases)} cases x {len(specs)} methods on {device}; results in {path}", highlight=False)
    plan = DecodePlan(seconds=options.seconds, eager=False, breakdown=False)
    worker = Worker(Settings(str(device), Plan(), command, decode=plan))
    fresh = options.fresh or other_acceptance(path, cases)
    outcome = run_cases(cases, specs, worker, path, device, console, fresh=fresh)
    print_report(outcome.rows, console)
    minutes = outcome.seconds / 60
    console.print(f"{len(outcome.rows)} rows in {path} and {path.with_suffix('.csv').name}; {minutes:.1f} minutes")
    return outcome
