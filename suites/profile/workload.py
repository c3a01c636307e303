"""One method on one case, checked, captured and ready to run under a profiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...kernels import Traffic
from ...kernels.linear.best import OURS
from ...profiling.ceilings import measure_ceilings
from ...profiling.device import describe
from ...profiling.stats import summarize
from ...profiling.timing import Op, Plan, make_timer, measure
from ..core.bench import Bench
from ..core.flags import tokens
from ..core.spec import MethodSpec
from ..decode.cases import DecodeCase
from ..decode.run import CaseRun
from ..engine.case import RAGGED, WEIGHTS, config_of, default_dtype
from ..engine.loader import Loader
from ..engine.measure import DecodePlan, time_period
from ..engine.products import BEST
from ..micro.cases import PATTERNS, PRESETS, Case
from ..micro.checks import dense_exact
from ..micro.inputs import make_inputs
from ..micro.run import prepare, run_all
from ..model.config import MODELS
from ..model.smollm import NAME as SMOLLM
from ..model.weights import QUANTISED

AnyCase = Case | DecodeCase


def nothing() -> None:
    """Where nothing is to be prepared."""


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
        way: how a block-sparse step runs, as rows say it.
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
    way: str | None = None


def parse_case(name: str, device: torch.device, seed: int = 0) -> AnyCase:
    """The case of a slug: `qwen2.5-7b-b1-256k[-clustered][-page64]`, `decode-qwen2.5-7b-int4-b1-256k[-shared][-text]`.

    A whole model's may hold `-ragged` and end in `-best` (products), too. It need not be on any list.

    Raises:
        ValueError: anything else.
    """
    dtype = default_dtype(device)
    tail = r"-b(?P<batch>\d+)-(?P<context>\d+k?)"
    whole = re.fullmatch(
        rf"decode-(?P<model>.+)-(?P<weights>{'|'.join(WEIGHTS)}){tail}(?P<flags>(-ragged|-shared|-text|-best)*)", name
    )
    if whole:
        model = whole["model"]
        if model not in MODELS and model != SMOLLM:
            raise ValueError(f"case {name!r}: model {model!r} unknown, known are {', '.join((*MODELS, SMOLLM))}")
        weights = whole["weights"]
        return DecodeCase(
            model, config_of(model), int(whole["batch"]), tokens(whole["context"]), weights,
            dtype if weights in QUANTISED else weights, "-shared" in whole["flags"],
            "text" if "-text" in whole["flags"] else "synthetic", seed=seed,
            products=BEST if "-best" in whole["flags"] else OURS,
            pattern=RAGGED if "-ragged" in whole["flags"] else None,
        )  # fmt: skip
    layer = re.fullmatch(rf"(?P<model>.+?){tail}(-(?P<pattern>{'|'.join(PATTERNS)}))?(-page(?P<page>\d+))?", name)
    if layer is None:
        raise ValueError(
            f"case {name!r}: expected MODEL-bB-CONTEXT such as qwen2.5-7b-b1-256k, or "
            "decode-MODEL-WEIGHTS-bB-CONTEXT such as decode-qwen2.5-7b-int4-b1-256k"
        )
    model = layer["model"]
    if model not in PRESETS:
        raise ValueError(f"case {name!r}: model {model!r} unknown, known are {', '.join(PRESETS)}")
    page = int(layer["page"]) if layer["page"] else None
    pattern = layer["pattern"] or "random"
    return Case(model, PRESETS[model], int(layer["batch"]), tokens(layer["context"]), dtype, pattern, page, seed)


def build(case: AnyCase, spec: MethodSpec, device: torch.device) -> Workload:
    """Raises CheckFailed if the method is wrong here, ValueError with the reason if it cannot run."""
    reason = spec.kind.unavailable(case.shape, case.torch_dtype, device)
    if reason:
        raise ValueError(f"{spec.name} cannot run here: {reason}")
    return _model(case, spec, device) if isinstance(case, DecodeCase) else _kernels(case, spec, device)


def _kernels(case: Case, spec: MethodSpec, device: torch.device) -> Workload:
    timer = make_timer(device)
    inputs = make_inputs(case, device, spec.period)
    prepared = prepare(spec, case, inputs, dense_exact(inputs), device)
    graph = device.type == "cuda" and all(stage.graph_safe for stage in (*prepared.stages, *prepared.rectify))

    def launched(run: Callable[[], None]) -> Callable[[], object]:
        return timer.captured(run) if graph else run

    eager_step, eager_rectify = run_all(prepared.stages), run_all(prepared.rectify)
    step = launched(eager_step)
    plan = Plan(precision=0.01, budget_s=2.0, min_samples=5)

    def untraced_us() -> float:
        samples = measure([Op("step", step, True, idle=not graph)], timer, plan)
        return summarize(samples["step"].times_us).median_us

    return Workload(
        case, spec, graph, step, launched(eager_rectify) if prepared.rectify else None, eager_step,
        eager_rectify if prepared.rectify else None, untraced_us, prepared.layer.traffic, flush=timer.flush,
        way=prepared.layer.way,
    )  # fmt: skip


def _model(case: DecodeCase, spec: MethodSpec, device: torch.device) -> Workload:
    timer = make_timer(device)
    bench = Bench(device, describe(device), "", DecodePlan(), timer, measure_ceilings(timer))
    run = CaseRun(case, [spec], bench, lambda text: None)
    run.prepare(Loader())
    bound = run.contend(spec)
    engine, period = bound.engine, spec.period
    middle = len(engine.layers) // 2

    def untraced_us() -> float:
        run.place.before(period)
        time_period(bound.step, None, period, device)
        run.place.before(period)
        intervals, _ = time_period(bound.step, None, period, device)
        return sum(intervals) / period

    return Workload(
        case, spec, bound.launch == "graph", bound.step, bound.rectify, engine.step,
        engine.rectify if engine.rectify_every else None, untraced_us, engine.layers[middle].traffic,
        start=run.place.before, start_rectify=lambda: run.place.after(period), layer=middle,
        way=engine.layers[-1].way,
    )  # fmt: skip
