"""`resa-bench lossless`: its flags, its cases and methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..core import flags
from ..core.command import result_path
from ..core.flags import CASES, SETTING_FLAGS, Flag, K, Options
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.results import read_rows
from ..core.spec import MethodSpec
from ..core.sweep import Sweep, swept
from ..engine.case import config_of, default_dtype, real_model, share_of
from ..engine.measure import DecodePlan
from ..engine.sampling import Sampling
from ..micro.cases import DEFAULT_MODEL
from ..model.smollm import NAME as SMOLLM
from .cases import LosslessCase, ReplayCase, dense_specs
from .method import NAME
from .replay import REPLAYED, read_acceptances
from .run import run_case
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench lossless                                  SmolLM2-135M: stretches of text, drafts of 2, 4, 8 and 16 tokens
  resa-bench lossless --quick                          few tokens, two draft lengths
  resa-bench lossless --device cpu --prompts 50 --tokens 256 --prompt-tokens 512 --draft-length 4    the proof
  resa-bench lossless --ratio 0.05 0.1 0.2 --draft-length 4 8 --temperature 0.6 --top-p 0.95
  resa-bench lossless --replay lossless.jsonl          {DEFAULT_MODEL}, random weights, 256K: rounds run and are timed,
                                                       how many drafts stand is replayed from the rows of a real model
                                                       at the same settings of drafts and of sampling

In fp32 a text that is not dense decoding's fails its row; in bf16 texts are compared with dense passes of as many rows,
where only near-ties may differ. A rerun goes on where the last one stopped; --fresh starts over."""

DRAFTS, QUICK_DRAFTS = (2, 4, 8, 16), (2, 4)
OF_TEXTS = ("prompts", "prompt_tokens", "tokens")
REPLAY = "random weights, with the acceptance of a real model"
FLAGS = (
    flags.QUICK.but(help="few tokens, two draft lengths"),
    flags.MODEL.but(help=f"{SMOLLM}, a folder, a .gguf file; to replay, any preset"),
    Flag("--prompts", "stretches of text, decoded together (default 8)", CASES, kind=flags.whole(1, 4096), metavar="N"),
    flags.PROMPT_TOKENS.but(help="of each (default 1K, on a GPU 4K)"),
    Flag("--tokens", "decoded after each (default 64, on a GPU 256)", CASES, kind=flags.tokens, metavar="TOKENS"),
    flags.DTYPE, flags.TEMPERATURE, flags.TOP_P, flags.SEED,
    Flag("--replay", "result rows of this command on a real model", REPLAY, kind=flags.path, metavar="FILE"),
    flags.CONTEXT.but(group=REPLAY, help="default 256K"),
    flags.BATCH.but(group=REPLAY, help="sequences at once (default 1)"),
    flags.WEIGHTS.but(group=REPLAY, help="default int4, on a CPU fp32"),
    flags.SHARED_KV.but(group=REPLAY),
    flags.SECONDS.but(group=REPLAY, default=None, help=f"{flags.SECONDS.help} (default {flags.SECONDS.default:g})"),
    *(SETTING_FLAGS[name] for name in reversed(swept(NAME)) if name in SETTING_FLAGS), flags.SUMMARY,
    flags.DEVICE, flags.OUTPUT, flags.FRESH, flags.PLAN,
)  # fmt: skip


def check_flags(options: Options) -> None:
    """Raises ValueError for a flag of a replay without one, and for one of a real model's texts with a replay."""
    for flag in FLAGS:
        given = getattr(options, flag.name) != flag.default
        if given and not options.replay and flag.group == REPLAY:
            raise ValueError(f"{flag.words[0]}: is for a replay; give --replay FILE, too")
        if given and options.replay and flag.name in OF_TEXTS:
            raise ValueError(f"{flag.words[0]}: a replay has no texts; leave it out, or --replay")


def choose_specs(options: Options, device: torch.device) -> list[MethodSpec]:
    """Dense methods, then lossless decoding at every setting. Raises ValueError for settings that are none."""
    drafts = QUICK_DRAFTS if options.scale == "quick" else DRAFTS
    return [*dense_specs(device, text=not options.replay), *Sweep.of(options).variants(NAME, draft_length=drafts)]


def choose_case(options: Options, device: torch.device, specs: Sequence[MethodSpec]) -> LosslessCase:
    """The real model's case. Raises ValueError for random weights, or where text and drafts are over its context."""
    model = options.model or SMOLLM
    config = share_of(real_model(model, "acceptance means nothing on random weights without --replay FILE"))
    quick, cuda = options.scale == "quick", device.type == "cuda"
    prompts, prompt, tokens = (4, 512, 32) if quick else (8, 4096, 256) if cuda else (8, 1024, 64)
    case = LosslessCase(
        model, config, options.prompt_tokens or prompt, options.tokens or tokens, options.prompts or prompts,
        options.dtype or default_dtype(device), Sampling(options.temperature, options.top_p), options.seed,
    )  # fmt: skip
    case.capacity(max(spec.draft_length or 0 for spec in specs))
    return case


def choose_replays(options: Options, device: torch.device, specs: Sequence[MethodSpec]) -> list[ReplayCase]:
    """Cases of random weights. Raises ValueError where the file lacks a setting's acceptance."""
    model = options.model or DEFAULT_MODEL
    sampling = Sampling(options.temperature, options.top_p)
    lossless = [spec for spec in specs if spec.name == NAME]
    acceptances = read_acceptances(options.replay, lossless, sampling.word)
    dtype = options.dtype or default_dtype(device)
    return [
        ReplayCase(
            model, share_of(config_of(model)), b, c, w, dtype, options.shared_kv, "synthetic", sampling, options.seed,
            acceptances,
        )
        for w in options.weights or ["int4" if device.type == "cuda" else dtype]
        for b in options.batch or (1,)
        for c in options.context or (256 * K,)
    ]  # fmt: skip


def other_acceptance(path: Path, cases: Sequence[ReplayCase]) -> bool:
    """Whether the output holds rows that replay something else than these cases do."""
    if not path.exists():
        return False
    sources = {acceptance.source for case in cases for acceptance in case.acceptances}
    slugs = {case.slug for case in cases}
    held = {r.reason for r in read_rows(path) if r.case in slugs and r.metric == REPLAYED}
    return not held <= sources


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench lossless` measures. Raises ValueError."""
    check_flags(options)
    specs = choose_specs(options, device)
    measure = DecodePlan(
        seconds=flags.SECONDS.default if options.seconds is None else options.seconds, eager=False, breakdown=False
    )
    if not options.replay:
        return Plan([choose_case(options, device, specs)], specs, measure=measure)
    cases = choose_replays(options, device, specs)
    fresh = other_acceptance(result_path("lossless", options, device), cases)
    return Plan(cases, specs, measure=measure, fresh=fresh)


REFERENCE = (
    Part(gpu_minutes=1.0, cpu_minutes=None),
    Part("--replay {work}/lossless/lossless.jsonl --draft-length 2 4 8", name="replayed",
         gpu_minutes=1.0, cpu_minutes=None),
    Part("--prompts 50 --tokens 256 --prompt-tokens 512 --draft-length 4", name="proof",
         gpu_minutes=None, cpu_minutes=8.0),
)  # fmt: skip
SUITE = Suite(
    "lossless", "dense decoding's own tokens: sparse steps draft, dense passes verify", EXAMPLES, FLAGS, plan, run_case,
    print_report, shares_model=True, reference=REFERENCE,
)  # fmt: skip
