"""`resa-bench decode`: its flags, its cases and methods, its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console

from ...kernels import NotHere
from ...kernels.linear.best import OURS
from ...profiling.attached import attached
from ...profiling.ceilings import measure_ceilings
from ...profiling.timing import make_timer
from ..core import flags
from ..core.flags import Flag, Options, number, whole
from ..core.ranks import Ranks
from ..core.reference import Part
from ..core.registry import Plan, Suite
from ..core.report import new_table
from ..core.spec import MethodSpec, dense_here, other_ways, resa_here, rival_notes, unique
from ..core.sweep import Sweep, matching
from ..engine import products
from ..engine.case import RAGGED, config_of, default_dtype, share_of
from ..engine.client import CLIENTS, ENGINE, load_client
from ..engine.costs import device_bytes, largest_batch, memory_bytes, plan_costs, second_bytes
from ..engine.exchange_time import ExchangeTime, exchange_time, measured_exchange
from ..engine.measure import EAGER_STEPS, DecodePlan
from ..engine.sampling import Sampling
from ..micro.cases import DEFAULT_MODEL
from ..model.config import MODELS, ModelConfig
from ..model.smollm import NAME as SMOLLM
from ..model.weights import QUANTISED
from .cases import (
    RAGGED_BATCH,
    RAGGED_LONGEST,
    TEXT_PERIODS,
    DecodeCase,
    beside_ragged,
    default_list,
    default_specs,
    following_specs,
    is_study,
    ragged_pair,
    study_specs,
)
from .client import run_case
from .table import print_report

EXAMPLES = f"""examples:
  resa-bench decode                                    the default list: on a GPU {DEFAULT_MODEL} with random weights,
                                                       4K to 256K; on a CPU SmolLM2-135M on real text, 1K and 8K
  resa-bench decode --plan                             memory and floor of each case, without measuring
  resa-bench decode --context 256K --batch 1 4 --weights bf16 int4 --method resa sdpa-cudnn triton-dense
  resa-bench decode --model llama-3.1-8b --context 128K
  resa-bench decode --model ./checkpoint --prompt text --context 8K    a Hugging Face folder or a .gguf file
  resa-bench decode --batch 8 --context 256K --shared-kv               one K/V cache for all layers, as in the paper
  torchrun --nproc-per-node 2 -m resa_bench.suites decode --model qwen2.5-32b --context 128K     two GPUs, one model
  resa-bench decode --model llama-3.1-70b --simulate-ranks 8 --context 128K --weights int4    one of 8 GPUs, alone
  resa-bench decode --pattern ragged --weights int4                    16 sequences of 2K to 32K, and 16 of 17K
  resa-bench decode --client transformers --context 128K --batch 1     our methods inside transformers, beside its own
  resa-bench decode --rectify-every 16 32 64 128 --method resa triton-dense --context 256K

A rerun goes on where the last one stopped (same device, commit and output folder); --fresh starts over."""

DRIFT = flags.switch("--drift", "ReSA: what each rectification says about the steps before")
PATTERN = flags.PATTERN.but(
    help=f"{flags.PATTERN.help}, in even steps up to the context (default {RAGGED_BATCH} of 2K to 32K), and beside "
         "them the uniform batch of as many tokens",
    choices=(RAGGED,),
)  # fmt: skip
SIMULATE_RANKS = Flag(
    "--simulate-ranks", "what one of N GPUs does that share the model: its heads and columns, without the exchange",
    kind=whole(2, 1024), metavar="N", group=flags.CASES,
)  # fmt: skip
EXCHANGE_US = Flag(
    "--exchange-us", "an all-reduce of few bytes, as measured (default: NCCL's own model of an H100's NVLink)",
    kind=number(0.0, 1e6, above=0.0), metavar="US",
)  # fmt: skip
EXCHANGE_GBPS = Flag(
    "--exchange-gbps", "an all-reduce's bandwidth over each link, as measured; beside --exchange-us",
    kind=number(0.0, 1e6, above=0.0), metavar="GB/s",
)  # fmt: skip
NO_BREAKDOWN = flags.switch("--no-breakdown", "leave out the stages")
CLIENT = Flag(
    "--client",
    "software that runs the steps beside this project's engine: transformers, with our methods and its own dense",
    choices=(ENGINE, *CLIENTS), default=ENGINE,
)  # fmt: skip
FLAGS = (
    flags.QUICK, flags.FULL, flags.CASE, flags.CONTEXT, flags.BATCH,
    flags.MODEL.but(help=f"{', '.join((*MODELS, SMOLLM))}, a Hugging Face folder or a .gguf file (presets have random "
                    "weights)"),
    flags.WEIGHTS, flags.DTYPE, flags.KV_DTYPE, flags.SHARED_KV, flags.PROMPT, PATTERN, flags.TEMPERATURE, flags.TOP_P,
    flags.SEED,
    *flags.METHOD_FLAGS, *flags.RUN_FLAGS, flags.SECONDS, flags.NO_EAGER, DRIFT, NO_BREAKDOWN,
    CLIENT, products.FLAG, SIMULATE_RANKS, EXCHANGE_US, EXCHANGE_GBPS,
)  # fmt: skip


def choose_model(options: Options, device: torch.device) -> str:
    """The model asked for, by name or path."""
    return options.model or (DEFAULT_MODEL if device.type == "cuda" else SMOLLM)


def choose_prompt(options: Options, device: torch.device) -> str:
    """What the caches hold: text where the model can read it, unless it was said, or the batch is ragged."""
    noise = options.pattern or choose_model(options, device) in MODELS
    return options.prompt or ("synthetic" if noise else "text")


def choose_cases(options: Options, device: torch.device, period: int) -> list[DecodeCase]:
    """The list asked for. Contexts, batches and weights that are not on it are added rather than refused.

    Args:
        period: tokens of the longest period, or window.

    Raises:
        ValueError: options that do not go together, or contexts shorter than what is timed.
    """
    model, prompt = choose_model(options, device), choose_prompt(options, device)
    config = share_of(config_of(model), options.simulate_ranks)
    dtype = options.dtype or default_dtype(device)
    if prompt == "text" and model in MODELS:
        raise ValueError(f"--prompt text: {model} has random weights and no tokenizer; give --model a checkpoint")
    if options.shared_kv and prompt == "text":
        raise ValueError("--shared-kv: layers that share a cache overwrite each other's text; use --prompt synthetic")
    sampling = Sampling(options.temperature, options.top_p)
    listed = default_list(device, options.scale, model, config, dtype=dtype, prompt=prompt, seed=options.seed)
    ragged = bool(options.pattern)
    if options.context or options.batch or options.shared_kv or ragged:
        contexts = options.context or ([RAGGED_LONGEST] if ragged else sorted({c.context for c in listed}))
        cases = [
            DecodeCase(model, config, b, c, w, dtype, options.shared_kv, prompt, seed=options.seed)
            for w in options.weights or [dtype]
            for b in options.batch or [RAGGED_BATCH if ragged else 1]
            for c in contexts
        ]
        cases = [pair for case in cases for pair in ragged_pair(case)] if ragged else cases
    else:
        cases = [c for c in listed if not options.weights or c.weights in options.weights]
    if options.client != ENGINE:
        check_client(options)
        cases = [replace(c, client=options.client) for c in cases if c.weights == dtype and not c.shared_kv]
        if options.kv_dtype:
            raise ValueError(f"--kv-dtype: {options.client} keeps its own caches; leave out --client")
    if options.products != OURS:
        check_products(options, config, dtype, device, options.weights or [case.weights for case in cases])
        cases = [replace(c, products=options.products) for c in cases if c.weights in products.KINDS]
    cases = [replace(c, sampling=sampling, kv_dtype=options.kv_dtype) for c in cases]
    cases = matching(cases, options.case, "decode")
    least = least_context(prompt, period)
    for case in cases:
        if (shortest := min(case.sequence_tokens)) < least:
            given = f"{shortest} for the shortest sequence of {case.context}" if case.pattern else str(shortest)
            raise ValueError(f"--context {given}: periods of {period} tokens need a context of {least} at least")
        if prompt == "text" and case.context > config.context:
            raise ValueError(
                f"--context {case.context}: {config.name} handles texts of at most {config.context} tokens"
            )
    return cases


def choose_exchange(options: Options) -> tuple[float, float] | None:
    """Latency and bandwidth of an all-reduce, as measured; None: as modelled. Raises ValueError for one alone."""
    given = (options.exchange_us, options.exchange_gbps)
    if given == (None, None):
        return None
    if None in given:
        raise ValueError("--exchange-us, --exchange-gbps: one was given alone; a measured exchange has both")
    return given


def check_client(options: Options) -> None:
    """Raises ValueError for options that a client does not serve."""
    for name, given in (
        *((f"--weights {kind}", kind in options.weights) for kind in QUANTISED), ("--shared-kv", options.shared_kv),
        ("--pattern", options.pattern),
        ("--temperature", options.temperature > 0), ("--drift", options.drift),
    ):  # fmt: skip
        if given:
            raise ValueError(f"{name}: is the engine's alone; leave it out beside --client {options.client}")


def check_products(
    options: Options, config: ModelConfig, dtype: str, device: torch.device, weights: Sequence[str]
) -> None:
    """Raises ValueError where a model's projections, of cases with these weights, cannot run by other products."""
    if options.client != ENGINE:
        raise ValueError(f"--products best: is the engine's alone; leave it out beside --client {options.client}")
    products.check_flag(config, dtype, device, weights)


def twice_notes(cases: Sequence[DecodeCase]) -> list[str]:
    """What a person is told of memory where other products hold weights, too."""
    more = max((second_bytes(case) for case in cases), default=0)
    return [f"--products best: weights may be held twice, {more / 1e9:.1f} GB more"] if more else []


def least_context(prompt: str, period: int) -> int:
    """The shortest context that holds what is timed."""
    return (TEXT_PERIODS * period if prompt == "text" else max(period, 2 * EAGER_STEPS)) + 1


def choose_specs(options: Options, device: torch.device, prompt: str) -> list[MethodSpec]:
    """The default methods at the settings given; with --method those named, each as its name means everywhere."""
    own = client_methods(options)
    sweep = Sweep.of(options)
    if sweep.names:
        return sweep.named()
    if own:
        names = (dense_here(device), resa_here(device), *own)
        return unique(spec for name in names for spec in sweep.variants(name))
    specs = []
    for every in sweep.values("rectify_every"):
        base = replace(sweep.base(), rectify_every=every)
        specs += default_specs(
            device, base, sweep.values("block_size"), prompt, sweep.values("gqa_policy", "group-sum"),
            sweep.values("window"), sweep.values("dense_layers", 2),
        )  # fmt: skip
    return unique(specs)


def client_methods(options: Options) -> tuple[str, ...]:
    """The dense methods of the client asked for, which are registered by then. Raises ValueError."""
    if options.client == ENGINE:
        return ()
    try:
        return load_client(options.client).METHODS
    except NotHere as error:
        raise ValueError(str(error)) from None


def plan(options: Options, device: torch.device) -> Plan:
    """What `resa-bench decode` measures. Raises ValueError."""
    specs = choose_specs(options, device, choose_prompt(options, device))
    cases = choose_cases(options, device, max(max(spec.period, spec.window) for spec in specs))
    tool = attached()
    cuda = device.type == "cuda"
    hidden = tool is not None and cuda and not options.no_breakdown
    measure = DecodePlan(
        seconds=options.seconds, eager=not options.no_eager, breakdown=not options.no_breakdown and not hidden,
        exchange=choose_exchange(options), drift=options.drift,
    )  # fmt: skip
    kinds = [*(["eager"] if measure.eager and cuda else []), *(["gap"] if measure.breakdown else [])]
    asked = options.context or options.batch or options.weights or options.pattern  # --case picks from the list
    narrowed = asked or options.shared_kv
    settings = Sweep.of(options)
    study = cuda and options.scale == "default" and not narrowed and settings.plain
    beside = cuda and not settings.names and options.client == ENGINE  # ReSA's other way

    ragged = [case for case in cases if case.pattern]
    paired = {*ragged, *map(beside_ragged, ragged)}

    def further(case: DecodeCase) -> list[MethodSpec]:
        others = other_ways(case.shape, specs, device) if beside and not case.kv_dtype else []
        following = following_specs(specs, specs[0].config, device) if beside and case in paired else []
        return [*others, *following, *(study_specs(case, specs, device) if study and is_study(case) else ())]

    note = f"under {tool}: stages are left out, since two tracers cannot share the GPU"
    return Plan(
        cases,
        specs,
        further={case.slug: more for case in cases if (more := further(case))},
        kinds=kinds,
        measure=measure,
        fresh=options.drift,
        notes=[*([note] if hidden else []), *twice_notes(cases), *rival_notes(specs)],
    )


def show_plan(plan: Plan, device: torch.device, console: Console) -> None:
    """Memory and floors of every case, from shapes and this device's ceilings; of ranks, a rank's, and the exchange."""
    ranks = Ranks.from_environment()
    ranks.join(device)
    given = plan.measure.exchange or measured_exchange(ranks, device)
    ranks.leave()
    models = [exchange_time(case.config, given) for case in plan.cases if isinstance(case, DecodeCase)]
    console.print("measuring the device's ceilings ...", highlight=False)
    ceilings = measure_ceilings(make_timer(device))
    total = device_bytes(device)
    title = f"floors at {ceilings.read_gbps:.0f} GB/s read, {ceilings.matrix_tflops:.3g} TFLOP/s"
    exchanged = next((model for model in models if model is not None), None)
    memory = "memory GB" if exchanged is None else "memory GB a rank"
    columns: tuple[str, ...] = ("case", memory, "method", "floor ms a token", "tokens/s at most", "speed-up", "fits")
    if exchanged is not None:
        columns = (*columns[:4], "exchange ms", *columns[4:])
        console.print(f"exchange: {exchanged.source}; tokens/s and speed-up contain it", highlight=False)
    title += f"; speed-up: what they allow over dense; fits: the largest batch in {total / 1e9:.0f} GB"
    table = new_table(title, columns)
    dense = next((spec for spec in plan.specs if spec.is_dense), None)
    for case, model in zip(plan.cases, models, strict=True):
        assert isinstance(case, DecodeCase)

        def times(spec: MethodSpec, case: DecodeCase = case, model: ExchangeTime | None = model) -> tuple[float, float]:
            """The floor of a step, and its exchange, in microseconds."""
            return plan_costs(case, spec).floor_us(ceilings), model.step_us(case, spec) if model else 0.0

        need = memory_bytes(case, list(plan.specs))
        fits = need <= total
        dense_us = sum(times(dense)) if dense else None
        for i, spec in enumerate(plan.specs):
            if spec.is_dense and spec != dense:
                continue  # all dense methods have the same floor
            floor, apart = times(spec)
            us = floor + apart
            table.add_row(
                case.slug if i == 0 else "",
                (f"{need / 1e9:.1f}" if fits else f"[red]{need / 1e9:.1f}[/]") if i == 0 else "",
                "dense" if spec.is_dense else spec.label,
                f"{floor / 1e3:.2f}",
                *([f"{apart / 1e3:.2f}"] if exchanged is not None else []),
                f"{case.batch / us * 1e6:.0f}",
                f"{dense_us / us:.2f}x" if dense_us else "",
                str(largest_batch(case, spec, total)),
            )
    console.print(table)
    skipped = "are skipped" if device.type == "cuda" else "may run out of memory"
    console.print(f"the device has {total / 1e9:.1f} GB; cases in red do not fit and {skipped}", highlight=False)


BRIEF = "--no-eager --no-breakdown"
LIBRARIES = f"--weights int4 --products best --batch 32 --context 8K 16K 32K {BRIEF} --seconds 1"
ENERGY = f"--weights int4 --batch 1 4 --context 64K 256K {BRIEF} --seconds 4"
REFERENCE = (
    Part("--case '*-b1-*'", gpu_minutes=4.0, cpu_minutes=4.0),
    Part("--case '*-b4-*' '*-b8-*' '*-b32-*'", name="batches", gpu_minutes=3.8, cpu_minutes=None),
    Part(
        f"{LIBRARIES} --method resa sdpa-cudnn triton-dense", name="libraries", file="libraries",
        gpu_minutes=1.0, cpu_minutes=None,
    ),
    Part(
        f"{ENERGY} --method resa sdpa-cudnn triton-dense", name="energy", file="energy",
        gpu_minutes=1.4, cpu_minutes=None,
    ),
)  # fmt: skip
SUITE = Suite(
    "decode", "a whole transformer, token by token", EXAMPLES, FLAGS, plan, run_case, print_report, show_plan,
    shares_model=True, reference=REFERENCE,
)  # fmt: skip
