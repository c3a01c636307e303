"""The decode suite's measuring: every method of a case decodes from the same caches; rows with times and floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from ...kernels import DecodeMethod, Traffic, Unsupported, get_method
from ...profiling.ceilings import Ceilings
from ...profiling.clocks import ClockReader, ClockState, worst
from ...profiling.device import Environment
from ...profiling.energy import EnergyCounter
from ...profiling.ranges import StageClock, listening
from ...profiling.stats import mean_interval
from ...profiling.timeline import TraceMismatch
from ...profiling.trace import break_down
from ..core.rows import Row, digits
from ..core.speedups import with_speedups
from ..engine.checks import check_attention, check_rectified, check_replay
from ..engine.costs import Costs, TokenCosts, rectification, step_weights, too_large
from ..engine.drift import DriftMeter
from ..engine.engine import Engine, State, bind_layers
from ..engine.gate import Check
from ..engine.loader import Loader, copy_tokens, prompt_ids, release
from ..engine.measure import EAGER_STEPS, Timing, time_decoding, time_period
from ..engine.methods import run_methods
from ..engine.prompt import fill_synthetic
from ..micro.cases import MethodSpec
from .cases import TEXT_PERIODS, DecodeCase, capacity, period, prompt_tokens, rectifies, window

TRACED_STEPS = 2
CLOCKED_STEPS = 8  # of a breakdown by the wall clock
ENERGY_SECONDS = 2.0
TEXT_CHARS = 600  # of a continuation kept in its row


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How long to decode, and what to measure beside the time."""

    periods: int = 2  # whole periods at least, after one of warm-up
    seconds: float = 2.0  # at least, so that the energy counter has something to count
    eager: bool = True  # on a GPU: some steps launched eagerly beside
    breakdown: bool = True
    drift: bool = False  # of methods that rectify: what each rectification says about the steps before it


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    ceilings: Ceilings
    environment: Environment
    plan: DecodePlan
    command: str
    idle_watts: float | None = None


@dataclass(slots=True)
class Contender:
    """A method bound to a case, checked, and how its steps are launched."""

    spec: MethodSpec
    method: DecodeMethod
    engine: Engine
    check: Check
    step: Callable[[], object]
    rectify: Callable[[], object] | None
    launch: str


class CaseRun:
    """One case in hand: its model, its caches, and the rows so far."""

    def __init__(
        self, case: DecodeCase, specs: Sequence[MethodSpec], bench: DecodeBench, on_step: Callable[[str], None]
    ) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")

    def row(self, spec: MethodSpec, **columns: Any) -> Row:
        common = {
            **self.case.columns(),
            "read_ceiling_gbps": round(self.bench.ceilings.read_gbps, 1),
            "started_at": self.started_at,
            "command": self.bench.command,
            "idle_watts": self.bench.idle_watts,
            **asdict(self.bench.environment),
            "method": spec.name,
            "stage": "total",
            **spec.columns(),
        }
        return Row(**(common | columns))

    def prepare(self, loader: Loader) -> None:
        """Model, caches and what they hold."""
        case = self.case
        self.on_step("model")
        self.loaded = loader.model(case, {case.batch, *self.chunk_rows()}, self.bench.device)
        decoder = self.decoder = self.loaded.decoder
        self.prompt = prompt_tokens(case, self.specs)
        history = max([TEXT_PERIODS * period(spec) for spec in self.specs] + [2 * EAGER_STEPS])
        history = max([history, *(window(spec) for spec in self.specs)])
        self.on_step("caches")
        self.state = State.allocate(decoder, case.batch, capacity(case), history, shared_kv=case.shared_kv)
        if case.prompt == "synthetic":
            fill_synthetic(self.state, case.seed)
            self.pending = torch.arange(1, case.batch + 1, device=decoder.device)
            return
        copy_tokens(loader.prefilled(self.loaded, self.prompt, self.on_step), self.state, self.prompt)
        self.pending = prompt_ids(self.loaded, self.prompt + 1)[-1:].repeat(case.batch)

    def chunk_rows(self) -> set[int]:
        """Rows of the passes that take several tokens of each sequence."""
        rows = {spec.config.rectify_every for spec in self.specs if rectifies(spec)}
        rows |= {window(spec) for spec in self.specs}
        return {self.case.batch * n for n in rows}

    def restart(self, tokens: int) -> None:
        """Stand at the start of so many tokens: a text's follow its prompt, synthetic ones end at the context."""
        text = self.case.prompt == "text"
        self.state.start(self.prompt if text else self.case.context - tokens, self.pending)

    def at_period_end(self, tokens: int) -> None:
        """Stand where a period of `tokens` ends, as rectification finds it."""
        text = self.case.prompt == "text"
        self.state.start(self.prompt + tokens if text else self.case.context, self.pending)
        self.state.count.fill_(tokens)

    def contend(self, spec: MethodSpec) -> Contender:
        """Bind a method to the case, check it, and capture it where it can be. Raises CheckFailed, Unsupported."""
        case, decoder = self.case, self.decoder
        kind = get_method(spec.name)
        if kind.fixes_length and case.prompt == "text":
            raise Unsupported("fixes its length when it is bound; a text grows")
        shape, dtype, device = case.shape, case.torch_dtype, self.bench.device
        self.restart(0)
        method = kind(shape, spec.config, dtype=dtype, device=device)
        dense = None
        if spec.dense_layers:
            name = "triton-dense" if device.type == "cuda" else "torch-dense"
            dense = get_method(name)(shape, spec.config, dtype=dtype, device=device)
        layers = bind_layers(self.state, method, dense, spec.dense_layers or 0)
        every = spec.config.rectify_every if rectifies(spec) else None
        engine = Engine(decoder, self.state, layers, rectify_every=every, sampling=case.sampling)
        self.restart(engine.window)
        check = check_attention(engine, {0, spec.dense_layers or 0, case.config.layers - 1})
        graph = can_capture(engine, device)
        step: Callable[[], object] = engine.step
        rectify: Callable[[], object] | None = engine.rectify if every else None
        if graph:
            self.restart(1)
            step = engine.capture(engine.step)
            self.restart(engine.window)
            check = check.worst(check_replay(engine, step))
        if every:
            self.at_period_end(every)
            if graph:
                rectify = engine.capture(engine.rectify)
            check_rectified(engine, rectify if graph else None)
        return Contender(spec, method, engine, check, step, rectify, "graph" if graph else "eager")

    def costs(self, one: Contender) -> Costs:
        """Costs at the lists that the last step selected."""
        case, every = self.case, one.engine.rectify_every
        self.state.lengths.fill_(case.context)
        attention = sum((layer.traffic()["total"] for layer in one.engine.layers), Traffic(0))
        weights = replace(step_weights(case, one.engine.window), bytes=self.decoder.weight_bytes)
        return Costs(weights, attention, rectification(case, every) if every else Traffic(0), every)

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method, as they come: what fails late leaves what was measured before."""
        bench, case, device = self.bench, self.case, self.bench.device
        cuda = device.type == "cuda"
        self.on_step(f"check {spec.label}")
        one = self.contend(spec)
        if cuda:
            release(device)
            torch.cuda.reset_peak_memory_stats(device)  # the gate's fp64 references are not the method's
        tokens = period(spec)
        text = case.prompt == "text"
        self.on_step(f"time {spec.label}")
        reader = ClockReader(device)
        self.restart(tokens)
        time_decoding(one.step, one.rectify, tokens, device, periods=1)  # warm-up
        states = [reader.read()]
        timing = time_decoding(
            one.step,
            one.rectify,
            tokens,
            device,
            restart=(lambda: None) if text else (lambda: self.restart(tokens)),
            periods=TEXT_PERIODS - 1 if text else bench.plan.periods,
            seconds=0.0 if text else bench.plan.seconds,
            energy=EnergyCounter(device),
            context=None if text else case.context,
        )
        states.append(reader.read())
        written = self.text() if text else None
        clocks = worst(states)
        costs = self.costs(one)
        peak = torch.cuda.max_memory_allocated(device) if cuda else None
        total = self.total(one, timing, costs, clocks, one.launch, text=written, peak_memory_bytes=peak)
        yield total
        if bench.plan.breakdown and total.timed:
            self.on_step(f"break down {spec.label}")
            yield from self.stage_rows(one, timing, clocks)
        if bench.plan.eager and one.launch == "graph":
            self.on_step(f"eager {spec.label}")
            yield self.eager(one, costs, clocks)
        if bench.plan.drift and one.engine.rectify_every:
            yield from self.drift_rows(one)

    def eager(self, one: Contender, costs: Costs, clocks: ClockState) -> Row:
        """The row of steps launched eagerly: some steps, and one rectification timed apart."""
        device = self.bench.device
        self.restart(2 * EAGER_STEPS)
        time_period(one.engine.step, None, EAGER_STEPS, device)
        timing = Timing(*time_period(one.engine.step, None, EAGER_STEPS, device))
        every = one.engine.rectify_every
        if every:
            self.at_period_end(every)
            one.engine.rectify()
            _, wall_us = time_period(one.engine.rectify, None, 1, device)
            timing.apart_us = wall_us / every
        return self.total(one, timing, costs, clocks, "eager")

    def drift_rows(self, one: Contender) -> Iterator[Row]:
        """Decode some periods again under the drift meter: rows of what each rectification found."""
        every = one.engine.rectify_every or 0
        meter = DriftMeter(one.engine, lambda drift: self.on_step(f"{one.spec.label}, {drift}"))
        self.restart(TEXT_PERIODS * every)
        for _ in range(TEXT_PERIODS):
            for _ in range(every):
                meter.step()
            meter.rectify()
        for drift in meter.readings:
            common = {"stage": "rectify", "launch": "eager", "step": drift.tokens, "status": "ok"}
            yield self.row(one.spec, **common, metric="kl", value=digits(drift.kl))
            yield self.row(one.spec, **common, metric="top1", value=digits(drift.same_top))
            for layer, value in enumerate(drift.change):
                yield self.row(one.spec, **common, metric="kv_change", layer=layer, value=digits(value))

    def text(self) -> str:
        """What was decoded so far, the first sequence."""
        assert self.loaded.tokenizer is not None
        count = int(self.state.count)
        return self.loaded.tokenizer.decode(self.state.history[:count, 0].tolist())[:TEXT_CHARS]

    def total(
        self, one: Contender, timing: Timing, costs: TokenCosts, clocks: ClockState, launch: str, **columns: Any
    ) -> Row:
        """The row of a whole step, rectification amortised in."""
        case = self.case
        mean, floor = timing.mean_us, costs.floor_us(self.bench.ceilings)
        common = {
            "launch": launch,
            "cache_state": "cold",
            "chunk_kernel": one.engine.layers[-1].chunk_kernel,
            "fixed_length": one.method.fixes_length,
            **asdict(clocks),
            **columns,
        }
        beaten = floor > mean
        if beaten and firm_ceilings(self.bench.device):
            return self.row(
                one.spec, **common, status="failed", reason=f"{mean:.0f} us a step beats the floor of {floor:.0f} us"
            )
        floors = {} if beaten else {"floor_us": digits(floor), "floor_fraction": digits(floor / mean)}
        interval = mean_interval(timing.period_us)
        joules = None  # the counter is too coarse for less than two seconds
        if timing.joules is not None and timing.seconds >= ENERGY_SECONDS:
            joules = digits(timing.joules / (len(timing.token_us) * case.batch), 4)
        return self.row(
            one.spec,
            **common,
            n_samples=len(timing.token_us),
            ci_low_us=digits(interval[0]) if interval else None,
            ci_high_us=digits(interval[1]) if interval else None,
            median_us=digits(timing.quantile_us(0.5)),
            p50_us=digits(timing.quantile_us(0.5)),
            p99_us=None if timing.apart_us else digits(timing.quantile_us(0.99)),  # without rectification, no tail
            q20_us=digits(timing.quantile_us(0.2)),
            q80_us=digits(timing.quantile_us(0.8)),
            min_us=digits(min(timing.token_us)),
            mean_us=digits(mean),
            wall_mean_us=digits(timing.wall_mean_us),
            tokens_per_s=digits(case.batch / mean * 1e6),
            joules_per_token=joules,
            bytes=costs.bytes,
            flops=costs.flops,
            **floors,
            gbps=digits(costs.bytes / mean / 1e3),
            max_rel_error=digits(one.check.max_rel_error, 3),
            error_budget_used=digits(one.check.budget_used, 3),
            status="throttled" if clocks.throttle_reasons else "ok",
            reason=clocks.throttle_reasons,
        )

    def breakdown(self, one: Contender) -> tuple[dict[str, float], dict[str, float]]:
        """Microseconds by stage of one step, and of one rectification."""
        engine, every = one.engine, one.engine.rectify_every
        if self.bench.device.type != "cuda":
            self.restart(CLOCKED_STEPS)
            clock = StageClock()
            with listening(clock):
                for _ in range(CLOCKED_STEPS):
                    engine.step()
            step = {k: v * 1e6 / CLOCKED_STEPS for k, v in clock.seconds.items()}
            if not every:
                return step, {}
            clock = StageClock()
            self.at_period_end(every)
            with listening(clock):
                engine.rectify()
            return step, {k: v * 1e6 for k, v in clock.seconds.items()}
        graph = one.launch == "graph"
        self.restart(4 * TRACED_STEPS)
        step = break_down(engine.step, one.step if graph else None, TRACED_STEPS).stages_us
        if not every:
            return step, {}
        self.at_period_end(every)
        return step, break_down(engine.rectify, one.rectify if graph else None, 1).stages_us

    def stage_rows(self, one: Contender, timing: Timing, clocks: ClockState) -> list[Row]:
        """Where the step's time goes: stages, rectification's share, and the gap up to the mean step."""
        try:
            step, rectified = self.breakdown(one)
        except TraceMismatch as error:
            return [self.row(one.spec, stage="gap", launch=one.launch, status="failed", reason=str(error))]
        every = one.engine.rectify_every or 1
        parts = dict(step)
        if rectified:
            parts["rectify"] = rectified.pop("rectify", 0.0) / every
            parts["rectify+project+ffn"] = sum(rectified.values()) / every
        parts["gap"] = timing.mean_us - sum(parts.values())
        common = {"launch": one.launch, "cache_state": "cold", **asdict(clocks)}
        return [
            self.row(
                one.spec,
                **common,
                stage=name,
                median_us=digits(value),
                mean_us=digits(value),
                status="throttled" if clocks.throttle_reasons else "ok",
                reason=clocks.throttle_reasons,
            )
            for name, value in parts.items()
        ]


def step_us(row: Row) -> float | None:
    """What steps are compared by: the amortised mean."""
    return row.mean_us if row.tokens_per_s else None


def firm_ceilings(device: torch.device) -> bool:
    """Whether a step faster than its floor is an error. A CPU's ceilings move with whatever else it does."""
    return device.type == "cuda"


def can_capture(engine: Engine, device: torch.device) -> bool:
    """Whether steps and rectifications can be graphs."""
    return device.type == "cuda" and engine.graph_safe


def run_case(
    case: DecodeCase,
    specs: Sequence[MethodSpec],
    bench: DecodeBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
    kind: type[CaseRun] = CaseRun,
) -> list[Row]:
    """Decode with every method of `specs`; a method that fails costs its own rows alone."""
    run = kind(case, specs, bench, on_step)
    rows = run_methods(run, specs, bench.device, loader, lambda able: too_large(case, able, bench.device))
    return with_speedups(rows, step_us)
