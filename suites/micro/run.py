"""The micro suite: one decode step of attention, stage by stage and whole, per method, on one case's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ...kernels import DecodeMethod, Layer, Stage, Traffic, get_method
from ...kernels.method import layer_of
from ...profiling.ceilings import Ceilings, Verdict
from ...profiling.ranges import heard, mark
from ...profiling.stats import Summary, summarize
from ...profiling.timing import Op, measure
from ..core.bench import Bench, Conditions, Report, RowMaker
from ..core.failure import failure, unavailable
from ..core.rows import Row, digits
from ..core.spec import MethodSpec
from ..core.speedups import with_speedups
from ..core.stages import AMORTISED, WHOLE_STEPS
from ..core.work import NOTHING, Work
from ..engine.gate import Check
from .cases import Case
from .checks import check_rectify, check_step, check_window, dense_exact
from .inputs import Inputs, make_inputs, make_window
from .rotation import STATE, Rotation, bind_rotation, layers_in_rotation, make_rotation

CLOCK_ROUNDS = 20  # rounds between two readings of the clocks


@dataclass(slots=True)
class Prepared:
    """A method bound to a case's inputs, checked, with its work known."""

    spec: MethodSpec
    method: DecodeMethod
    layer: Layer
    stages: tuple[Stage, ...]
    rectify: tuple[Stage, ...]
    check: Check
    traffic: dict[str, Traffic]
    rotation: Rotation | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """What one op of a case times."""

    spec: MethodSpec
    stage: str
    cache_state: str
    launch: str


def run_all(stages: Sequence[Stage]) -> Callable[[], None]:
    """The stages in order, as one call; in ranges of their own if somebody listens."""

    def run() -> None:
        if not heard():
            for stage in stages:
                stage.run()
            return
        for stage in stages:
            with mark(stage.name, stage.blocks):
                stage.run()

    return run


def prepare(spec: MethodSpec, case: Case, inputs: Inputs, exact: list[Any], device: torch.device) -> Prepared:
    """Build, bind and check a method. Raises CheckFailed, or what the method raises."""
    method = get_method(spec.name)(case.shape, spec.config, dtype=case.torch_dtype, device=device)
    layer = layer_of(method, inputs.cache)
    if layer.window > 1:
        window = make_window(inputs, layer.window, case.seed)
        check, stages = check_window(layer, window), layer.window_stages(window)
    else:
        check, stages = check_step(layer, inputs, exact), layer.stages(inputs.step)
    traffic = layer.traffic()
    rectify: tuple[Stage, ...] = ()
    if spec.rectifies:
        chunk = inputs.period(spec.config.rectify_every)
        rectify = layer.rectify_stages(chunk)
        check = check.worst(check_rectify(layer, chunk))
        traffic["rectify"] = layer.rectify_traffic(chunk.q.shape[1])
    return Prepared(spec, method, layer, stages, rectify, check, traffic)


def make_ops(prepared: Prepared, bench: Bench) -> list[Op]:
    """Each stage apart, `total` and `rectify`; as graphs where stages allow, `total` warm and eager beside."""
    cuda = bench.device.type == "cuda"
    ops: list[Op] = []

    def add(name: str, stages: Sequence[Stage], *, cold: bool = True, eager: bool = False) -> None:
        graph = cuda and not eager and all(stage.graph_safe for stage in stages)
        run = run_all(stages)
        key = Key(prepared.spec, name, "cold" if cold else "warm", "graph" if graph else "eager")
        if all(op.key != key for op in ops):
            ops.append(Op(key, bench.timer.captured(run) if graph else run, cold, idle=not graph))

    if len(prepared.stages) > 1:
        for stage in prepared.stages:
            add(stage.name, [stage])
    add("total", prepared.stages)
    if prepared.rectify:
        add("rectify", prepared.rectify)
    if bench.plan.warm:
        add("total", prepared.stages, cold=False)
    if bench.plan.eager and cuda:
        add("total", prepared.stages, eager=True)
    return ops


def rotation_op(prepared: Prepared, case: Case, rotation: Sequence[Inputs], exact: list[Any], bench: Bench) -> Op:
    """The round of a method's layers, whose time is theirs together. Raises CheckFailed, or what the method raises."""
    run, graph_safe, prepared.rotation = bind_rotation(prepared, case, rotation, exact)
    prepared.check = prepared.check.worst(prepared.rotation.check)
    graph = graph_safe and bench.device.type == "cuda"
    key = Key(prepared.spec, "total", STATE, "graph" if graph else "eager")
    return Op(key, bench.timer.captured(run) if graph else run, cold=False, idle=not graph)


def step_us(row: Row) -> float | None:
    """What steps are compared by."""
    return row.median_us if row.timed else None


def run_case(case: Case, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None) -> list[Row]:
    """Measure every method of `specs` on one case, interleaved; a method that fails costs its own rows alone."""
    make_row = RowMaker(case, bench)
    rows: list[Row] = []
    available = []
    for spec, reason in unavailable(specs, case, bench.device):
        if reason:
            rows.append(make_row(spec, status="skipped", reason=reason))
        else:
            available.append(spec)
    try:
        on_step("inputs")
        inputs = make_inputs(case, bench.device, max([s.config.rectify_every for s in available], default=1))
        exact = dense_exact(inputs)
    except Exception as error:
        return rows + [make_row(spec, **failure(error)) for spec in available]

    all_prepared: list[Prepared] = []
    ops: list[Op] = []
    for spec in available:
        try:
            on_step(f"check {spec.label}")
            prepared = prepare(spec, case, inputs, exact, bench.device)
            make_row.took(spec, [prepared.layer])
            ops += make_ops(prepared, bench)
            all_prepared.append(prepared)
        except Exception as error:
            ops = [op for op in ops if op.key.spec != spec]
            rows.append(make_row(spec, **failure(error)))

    if bench.plan.rotation and all_prepared:
        on_step("layers in rotation")
        step_bytes = min(prepared.traffic["total"].bytes for prepared in all_prepared)
        layers = layers_in_rotation(case, step_bytes, bench.timer.flush_bytes)
        try:
            rotation = make_rotation(inputs, layers)
        except Exception as error:
            rotation = []
            rows += [make_row(p.spec, stage="total", cache_state=STATE, **failure(error)) for p in all_prepared]
        for prepared in all_prepared if rotation else ():
            try:
                on_step(f"check {prepared.spec.label}, {layers} layers in rotation")
                ops.append(rotation_op(prepared, case, rotation, exact, bench))
            except Exception as error:
                rows.append(make_row(prepared.spec, stage="total", cache_state=STATE, **failure(error)))

    def each_round(number: int) -> None:
        on_step(f"round {number}")
        if number % CLOCK_ROUNDS == 0:
            conditions.read()

    with Conditions(bench.device) as conditions:
        samples = measure(ops, bench.timer, bench.plan.timing, on_round=each_round)
    summaries = {key: (summarize(s.times_us), s.stopped_by) for key, s in samples.items()}
    rows += timed_rows(all_prepared, summaries, bench, make_row, conditions.columns())
    return with_speedups(rows, step_us, WHOLE_STEPS)


def timed_rows(
    all_prepared: Sequence[Prepared],
    summaries: dict[Key, tuple[Summary, str]],
    bench: Bench,
    make_row: RowMaker,
    clocks: dict[str, Any],
) -> list[Row]:
    """A row per op, and `total_amortised` from `total` and `rectify` of the same launch and cache state."""
    by_spec = {prepared.spec: prepared for prepared in all_prepared}
    rows = []
    for key, (summary, stopped_by) in summaries.items():
        prepared = by_spec[key.spec]
        work = Work(prepared.traffic.get(key.stage, NOTHING))
        if key.cache_state == STATE and prepared.rotation is not None:
            summary = scaled(summary, 1 / prepared.rotation.layers)
            work = Work(prepared.rotation.work_of_a_layer)
        rows.append(_row(prepared, key, summary, stopped_by, work, bench, make_row, clocks))
    for prepared in (prepared for prepared in all_prepared if prepared.rectify):
        every = prepared.spec.config.rectify_every
        for launch in ("graph", "eager"):
            total = summaries.get(Key(prepared.spec, "total", "cold", launch))
            rectify = summaries.get(Key(prepared.spec, "rectify", "cold", launch))
            if total and rectify:
                key = Key(prepared.spec, AMORTISED, "cold", launch)
                work = Work(prepared.traffic["total"], prepared.traffic["rectify"], every)
                summary = amortise(total[0], rectify[0], every)
                rows.append(_row(prepared, key, summary, total[1], work, bench, make_row, clocks))
    return rows


def amortise(total: Summary, rectify: Summary, every: int) -> Summary:
    """`total` + `rectify` / f, order statistic by order statistic (wider than the truth, never narrower)."""
    fields = {
        name: getattr(total, name) + getattr(rectify, name) / every for name in asdict(total) if name.endswith("_us")
    }
    return Summary(n_samples=min(total.n_samples, rectify.n_samples), **fields)


def scaled(summary: Summary, factor: float) -> Summary:
    """Every time of it times a factor."""
    return replace(summary, **{n: v * factor for n, v in asdict(summary).items() if n.endswith("_us")})


def judged(work: Work, median_us: float, ceilings: Ceilings, *, cached: bool) -> Verdict:
    """What a time beside its floor means; what is `cached` may beat any floor of the memory."""
    if cached:
        return Verdict("within", ceilings)
    return ceilings.verdict(work.floor_us(ceilings), median_us, ceilings.bound(work.total.bytes, work.total.flops))


def _row(
    prepared: Prepared,
    key: Key,
    summary: Summary,
    stopped_by: str,
    work: Work,
    bench: Bench,
    make_row: RowMaker,
    clocks: dict[str, Any],
) -> Row:
    layers = 1 if prepared.rotation is None else prepared.rotation.layers
    common = {
        "stage": key.stage,
        "chunk_kernel": prepared.layer.chunk_kernel,
        "cache_state": key.cache_state,
        "launch": key.launch,
        "rotation_layers": layers if key.cache_state == STATE else None,
        **clocks,
    }
    displaced = layers * work.total.bytes >= bench.timer.flush_bytes  # between two turns of a layer
    cached = not displaced if key.cache_state == STATE else key.cache_state != "cold"
    if work.total.bytes:
        verdict = judged(work, summary.median_us, bench.ceilings, cached=cached)
        if verdict.kind == "impossible":
            return make_row(prepared.spec, **(common | {"status": "failed", "reason": verdict.reason}))
        common |= work.columns(summary.median_us, verdict, common["reason"])
    return make_row(
        prepared.spec,
        **common,
        **{name: digits(value) for name, value in asdict(summary).items()},
        stopped_by=stopped_by,
        **prepared.check.columns(),
    )
