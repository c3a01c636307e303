"""The micro suite: one decode step of attention, stage by stage and whole, per method, on one case's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from ...kernels import DecodeMethod, Layer, Stage, Traffic, Unsupported, get_method
from ...profiling.ceilings import Ceilings
from ...profiling.clocks import ClockReader, ClockState, worst
from ...profiling.device import Environment
from ...profiling.ranges import heard, mark
from ...profiling.stats import Summary, summarize
from ...profiling.timing import Op, Plan, Timer, measure
from ..core.rows import Row, digits
from ..core.speedups import with_speedups
from ..engine.gate import Check, CheckFailed, check_rectify, check_step, check_window, dense_exact
from .cases import Case, MethodSpec
from .inputs import Inputs, make_inputs, make_window

WHOLE_STEPS = ("total", "total_amortised")
CLOCK_ROUNDS = 20  # rounds between two readings of the clocks


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    timer: Timer
    ceilings: Ceilings
    environment: Environment
    plan: Plan
    command: str
    warm: bool = True  # also time `total` with a warm cache
    eager: bool = True  # also time `total` launched eagerly, on a GPU


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
    layer = method.prepare(inputs.cache)
    if layer.window > 1:
        window = make_window(inputs, layer.window, case.seed)
        check, stages = check_window(layer, window), layer.window_stages(window)
    else:
        check, stages = check_step(layer, inputs, exact), layer.stages(inputs.step)
    traffic, rectify = layer.traffic(), layer.rectify_stages(inputs.chunk)
    if rectify:
        check = check.worst(check_rectify(layer, inputs))
        traffic["rectify"] = layer.rectify_traffic(inputs.chunk.q.shape[1])
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
    if bench.warm:
        add("total", prepared.stages, cold=False)
    if bench.eager and cuda:
        add("total", prepared.stages, eager=True)
    return ops


def _base(case: Case, bench: Bench, started_at: str) -> dict[str, Any]:
    return {
        **case.columns(),
        "read_ceiling_gbps": round(bench.ceilings.read_gbps, 1),
        "started_at": started_at,
        "command": bench.command,
        **asdict(bench.environment),
    }


def step_us(row: Row) -> float | None:
    """What steps are compared by."""
    return row.median_us if row.timed else None


def failure(error: BaseException) -> tuple[str, str]:
    """Status and reason of a row for what was raised."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, Unsupported):
        return "skipped", text
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in text:  # the CPU allocator's
        return "oom", text
    if isinstance(error, CheckFailed):
        return "failed", f"check: {text}"
    return "failed", f"{type(error).__name__}: {text}"


def run_case(
    case: Case, specs: Sequence[MethodSpec], bench: Bench, on_step: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Measure every method of `specs` on one case, interleaved; a method that fails costs its own rows alone."""
    base = _base(case, bench, datetime.now(UTC).isoformat(timespec="seconds"))
    rows: list[Row] = []

    def without_time(spec: MethodSpec, status: str, reason: str) -> Row:
        return Row(**base, method=spec.name, stage="total", **spec.columns(), status=status, reason=reason)

    available = []
    for spec in specs:
        reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, bench.device)
        if reason:
            rows.append(without_time(spec, "skipped", reason))
        else:
            available.append(spec)
    try:
        on_step("inputs")
        inputs = make_inputs(case, bench.device, max([s.config.rectify_every for s in available], default=1))
        exact = dense_exact(inputs)
    except Exception as error:
        return rows + [without_time(spec, *failure(error)) for spec in available]

    prepared, ops = [], []
    for spec in available:
        try:
            on_step(f"check {spec.label}")
            one = prepare(spec, case, inputs, exact, bench.device)
            ops += make_ops(one, bench)
            prepared.append(one)
        except Exception as error:
            ops = [op for op in ops if op.key.spec != spec]
            rows.append(without_time(spec, *failure(error)))
    reader = ClockReader(bench.device)
    states: list[ClockState] = []

    def each_round(number: int) -> None:
        on_step(f"round {number}")
        if number % CLOCK_ROUNDS == 1:
            states.append(reader.read())

    samples = measure(ops, bench.timer, bench.plan, on_round=each_round)
    states.append(reader.read())
    summaries = {key: (summarize(s.times_us), s.stopped_by) for key, s in samples.items()}
    rows += timed_rows(prepared, summaries, bench, base, worst(states))
    return with_speedups(rows, step_us, WHOLE_STEPS)


def timed_rows(
    prepared: Sequence[Prepared],
    summaries: dict[Key, tuple[Summary, str]],
    bench: Bench,
    base: dict[str, Any],
    clocks: ClockState,
) -> list[Row]:
    """A row per op, and `total_amortised` from `total` and `rectify` of the same launch and cache state."""
    rows = []
    by_spec = {p.spec: p for p in prepared}
    for key, (summary, stopped_by) in summaries.items():
        one = by_spec[key.spec]
        rows.append(_row(one, key, summary, stopped_by, one.traffic.get(key.stage), bench, base, clocks))
    for one in prepared:
        if not one.rectify:
            continue
        every = one.spec.config.rectify_every
        for launch in ("graph", "eager"):
            total = summaries.get(Key(one.spec, "total", "cold", launch))
            rectify = summaries.get(Key(one.spec, "rectify", "cold", launch))
            if total and rectify:
                key = Key(one.spec, "total_amortised", "cold", launch)
                floors = (one.traffic["total"], one.traffic["rectify"])
                rows.append(
                    _row(one, key, amortise(total[0], rectify[0], every), total[1], floors, bench, base, clocks)
                )
    return rows


def amortise(total: Summary, rectify: Summary, every: int) -> Summary:
    """`total` + `rectify` / f, order statistic by order statistic (wider than the truth, never narrower)."""
    fields = {
        name: getattr(total, name) + getattr(rectify, name) / every for name in asdict(total) if name.endswith("_us")
    }
    return Summary(n_samples=min(total.n_samples, rectify.n_samples), **fields)


def _row(
    one: Prepared,
    key: Key,
    summary: Summary,
    stopped_by: str,
    work: Traffic | tuple[Traffic, Traffic] | None,
    bench: Bench,
    base: dict[str, Any],
    clocks: ClockState,
) -> Row:
    every = one.spec.config.rectify_every
    filled: dict[str, Any] = {}
    if isinstance(work, tuple):
        step, rectify = work
        filled["bytes"] = step.bytes + rectify.bytes // every
        filled["flops"] = step.flops + rectify.flops // every
        filled["floor_us"] = (
            bench.ceilings.floor_us(step.bytes, step.flops)
            + bench.ceilings.floor_us(rectify.bytes, rectify.flops) / every
        )
    elif work is not None and work.bytes:
        filled["bytes"], filled["flops"] = work.bytes, work.flops
        filled["floor_us"] = bench.ceilings.floor_us(work.bytes, work.flops)
    common = {
        **base,
        **one.spec.columns(),
        "method": one.spec.name,
        "stage": key.stage,
        "chunk_kernel": one.layer.chunk_kernel,
        "cache_state": key.cache_state,
        "launch": key.launch,
        **asdict(clocks),
    }
    fraction = filled["floor_us"] / summary.median_us if "floor_us" in filled else None
    if fraction is not None and fraction > 1 and key.cache_state == "cold":
        reason = (
            f"{summary.median_us:.2f} us beats the floor of {filled['floor_us']:.2f} us: wrong bytes or a warm cache"
        )
        return Row(**common, status="failed", reason=reason)
    if fraction is not None:
        filled["floor_fraction"] = digits(fraction)
        filled["floor_us"] = digits(filled["floor_us"])
        filled["gbps"] = digits(filled["bytes"] / summary.median_us / 1e3)
    times = {name: digits(value) for name, value in asdict(summary).items()}
    return Row(
        **common,
        **filled,
        **times,
        stopped_by=stopped_by,
        max_rel_error=digits(one.check.max_rel_error, 3),
        error_budget_used=digits(one.check.budget_used, 3),
        status="throttled" if clocks.throttle_reasons else "ok",
        reason=clocks.throttle_reasons,
    )
