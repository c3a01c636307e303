"""One method on one case, checked, captured and ready to run under a profiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...kernels import Traffic, get_method
from ...profiling.ceilings import measure_ceilings
from ...profiling.device import describe
from ...profiling.stats import summarize
from ...profiling.timing import Op, Plan, make_timer, measure
from ..decode.cases import WEIGHTS, DecodeCase
from ..decode.suite import CaseRun, DecodeBench, DecodePlan
from ..engine.gate import dense_exact
from ..engine.loader import Loader
from ..engine.measure import time_period
from ..micro.cases import PATTERNS, PRESETS, Case, MethodSpec, parse_tokens
from ..micro.inputs import make_inputs
from ..micro.suite import prepare, run_all
from ..model.config import MODELS
from ..model.load import model_config
from ..model.smollm import NAME as SMOLLM

AnyCase = Case | DecodeCase


def nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Workload:
    """What a profiler is to watch.

    Attributes:
        step, rectify: as the suite launches them (graph replays where they can be captured); no rectification: None.
        eager_step, eager_rectify: the same from Python, with a range a stage.
        start: stand before so many steps.
        start_rectify: stand where a period ends.
        flush: called before each step that is to find a cold L2, outside its range.
        untraced_us: one step by the suite's own clock.
        traffic: compulsory work of the attention stages of one layer; asked after a step.
        layer: of a whole model, the layer that stands for all where one is enough.
    """

    case: AnyCase
    spec: MethodSpec
    graph: bool
    step: Callable[[], object]
    rectify: Callable[[], object] | None
    eager_step: Callable[[], object]
    eager_rectify: Callable[[], object] | None
    untraced_us: Callable[[], float]
    traffic: Callable[[], dict[str, Traffic]]
    start: Callable[[int], None] = field(default=lambda steps: None)
    start_rectify: Callable[[], None] = nothing
    flush: Callable[[], object] | None = None
    layer: int | None = None


def parse_case(name: str, device: torch.device, seed: int = 0) -> AnyCase:
    """The case of a slug: `qwen2.5-7b-b1-256k[-clustered][-page64]`, `decode-qwen2.5-7b-int4-b1-256k[-shared][-text]`.

    It need not be on any list. Raises ValueError for anything else.
    """
    cuda = device.type == "cuda"
    dtype = "bf16" if cuda else "fp32"
    tail = r"-b(?P<batch>\d+)-(?P<context>\d+k?)"
    whole = re.fullmatch(
        rf"decode-(?P<model>.+)-(?P<weights>{'|'.join(WEIGHTS)}){tail}(?P<flags>(-shared|-text)*)", name
    )
    if whole:
        model = whole["model"]
        if model not in MODELS and model != SMOLLM:
            raise ValueError(f"case {name!r}: model {model!r} unknown, known are {', '.join((*MODELS, SMOLLM))}")
        return DecodeCase(
            model,
            model_config(model),
            int(whole["batch"]),
            parse_tokens(whole["context"]),
            whole["weights"],
            whole["weights"] if whole["weights"] != "int4" else dtype,
            "-shared" in whole["flags"],
            "text" if "-text" in whole["flags"] else "synthetic",
            seed=seed,
        )
    one = re.fullmatch(rf"(?P<model>.+?){tail}(-(?P<pattern>{'|'.join(PATTERNS)}))?(-page(?P<page>\d+))?", name)
    if one is None:
        raise ValueError(
            f"case {name!r}: expected MODEL-bB-CONTEXT such as qwen2.5-7b-b1-256k, or "
            "decode-MODEL-WEIGHTS-bB-CONTEXT such as decode-qwen2.5-7b-int4-b1-256k"
        )
    if one["model"] not in PRESETS:
        raise ValueError(f"case {name!r}: model {one['model']!r} unknown, known are {', '.join(PRESETS)}")
    page = int(one["page"]) if one["page"] else None
    return Case(
        one["model"],
        PRESETS[one["model"]],
        int(one["batch"]),
        parse_tokens(one["context"]),
        dtype,
        one["pattern"] or "random",
        page,
        seed,
    )


def build(case: AnyCase, spec: MethodSpec, device: torch.device) -> Workload:
    """Raises CheckFailed if the method is wrong here, ValueError with the reason if it cannot run."""
    reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, device)
    if reason:
        raise ValueError(f"{spec.name} cannot run here: {reason}")
    return _model(case, spec, device) if isinstance(case, DecodeCase) else _kernels(case, spec, device)


def _kernels(case: Case, spec: MethodSpec, device: torch.device) -> Workload:
    timer = make_timer(device)
    inputs = make_inputs(case, device, spec.config.rectify_every)
    one = prepare(spec, case, inputs, dense_exact(inputs), device)
    graph = device.type == "cuda" and all(stage.graph_safe for stage in (*one.stages, *one.rectify))

    def launched(run: Callable[[], None]) -> Callable[[], object]:
        return timer.captured(run) if graph else run

    eager_step, eager_rectify = run_all(one.stages), run_all(one.rectify)
    step = launched(eager_step)
    plan = Plan(precision=0.01, budget_s=2.0, min_samples=5)

    def untraced_us() -> float:
        samples = measure([Op("step", step, True, idle=not graph)], timer, plan)
        return summarize(samples["step"].times_us).median_us

    return Workload(
        case,
        spec,
        graph,
        step,
        launched(eager_rectify) if one.rectify else None,
        eager_step,
        eager_rectify if one.rectify else None,
        untraced_us,
        one.layer.traffic,
        flush=timer.flush,
    )


def _model(case: DecodeCase, spec: MethodSpec, device: torch.device) -> Workload:
    ceilings = measure_ceilings(make_timer(device))
    bench = DecodeBench(device, ceilings, describe(device), DecodePlan(), "")
    run = CaseRun(case, [spec], bench, lambda text: None)
    run.prepare(Loader())
    one = run.contend(spec)
    engine, tokens = one.engine, spec.config.rectify_every
    middle = len(engine.layers) // 2

    def untraced_us() -> float:
        run.restart(tokens)
        time_period(one.step, None, tokens, device)
        run.restart(tokens)
        intervals, _ = time_period(one.step, None, tokens, device)
        return sum(intervals) / tokens

    return Workload(
        case,
        spec,
        one.launch == "graph",
        one.step,
        one.rectify,
        engine.step,
        engine.rectify if engine.rectify_every else None,
        untraced_us,
        engine.layers[middle].traffic,
        start=run.restart,
        start_rectify=lambda: run.at_period_end(tokens),
        layer=middle,
    )
