"""The decode suite's measuring: every method of a case decodes from the same caches; rows with times and floors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...profiling.energy import EnergyCounter
from ...profiling.ranges import StageClock, listening
from ...profiling.stats import mean_interval
from ...profiling.timeline import TraceMismatch
from ...profiling.trace import break_down
from ..core.bench import Bench, Conditions, Report
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, is_dense
from ..core.speedups import with_speedups
from ..core.work import NOTHING, Work
from ..engine.bind import Bound, Place, bind
from ..engine.case import capacity
from ..engine.costs import device_bytes, largest_batch, memory_bytes, model_work, step_weights, too_large
from ..engine.drift import DriftMeter
from ..engine.engine import State, generate
from ..engine.exchange_time import exchange_time
from ..engine.loader import Loader, copy_tokens, prompt_ids, release
from ..engine.measure import EAGER_STEPS, Timing, time_decoding, time_period
from ..engine.methods import MethodRun, run_methods
from ..engine.prompt import fill_synthetic
from ..engine.sound import Watch
from .cases import TEXT_PERIODS, DecodeCase, prompt_tokens

TRACED_STEPS = 2
CLOCKED_STEPS = 8  # of a breakdown by the wall clock
ENERGY_SECONDS = 2.0
TEXT_CHARS = 600  # of a continuation kept in its row


class CaseRun(MethodRun):
    """One case in hand: its model and its caches."""

    case: DecodeCase

    def prepare(self, loader: Loader) -> None:
        """Model, caches and what they hold."""
        case = self.case
        self.load(loader)
        self.prompt = prompt_tokens(case, self.specs)
        history = max([TEXT_PERIODS * spec.period for spec in self.specs] + [2 * EAGER_STEPS])
        history = max([history, *(spec.window for spec in self.specs)])
        self.on_step("caches")
        self.state = State.allocate(
            self.decoder, case.batch, capacity(case), history, shared_kv=case.shared_kv, kv_dtype=case.kv_dtype
        )
        if case.prompt == "synthetic":
            fill_synthetic(self.state, case.seed)
            pending = torch.arange(1, case.batch + 1, device=self.device)
            lengths = torch.tensor(case.sequence_tokens, dtype=torch.int32, device=self.device)
            self.place = Place(self.state, lengths if case.pattern else case.context, pending)
            return
        copy_tokens(loader.prefilled(self.loaded, self.prompt, self.on_step), self.state, self.prompt)
        pending = prompt_ids(self.loaded, self.prompt + 1)[-1:].repeat(case.batch)
        self.place = Place(self.state, self.prompt, pending, ahead=True)

    def contend(self, spec: MethodSpec) -> Bound:
        """Bind a method to the case, check it, and capture it where it can be. Raises CheckFailed, Unsupported."""
        return bind(self.decoder, self.place, spec, sampling=self.case.sampling)

    def work(self, bound: Bound) -> Work:
        """A step's work at the lists that the last step selected."""
        case, engine = self.case, bound.engine
        self.state.lengths.copy_(torch.tensor(case.sequence_tokens, dtype=torch.int32))
        attention = sum((layer.traffic()["total"] for layer in engine.layers), NOTHING)
        weights = replace(step_weights(case, engine.window), bytes=self.decoder.weight_bytes)
        return model_work(case, bound.spec, weights + attention, engine.rectify_every is not None)

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method, as they come: what fails late leaves what was measured before."""
        bench, case, device = self.bench, self.case, self.device
        cuda = device.type == "cuda"
        self.on_step(f"check {spec.label}")
        bound = self.contend(spec)
        self.row.took(spec, bound.engine.layers)
        if cuda:
            release(device)
            torch.cuda.reset_peak_memory_stats(device)  # the gate's fp64 references are not the method's
        tokens = spec.period
        text = case.prompt == "text"
        self.on_step(f"time {spec.label}")
        watch = Watch(device)
        looked = bound.watched(watch)
        self.place.before(tokens)
        time_decoding(looked, bound.rectify, tokens, device, periods=1, ranks=bench.ranks)  # warm-up
        with Conditions(device) as conditions:
            timing = time_decoding(
                bound.step if cuda else looked,  # on a CPU the look took 0.03 ms of a SmolLM2 step of 75
                bound.rectify,
                tokens,
                device,
                restart=(lambda: None) if text else (lambda: self.place.before(tokens)),
                periods=TEXT_PERIODS - 1 if text else bench.plan.periods,
                seconds=0.0 if text else bench.plan.seconds,
                energy=EnergyCounter(device),
                context=None if text else case.context,
                ranks=bench.ranks,
            )
        written = self.text() if text else None
        if text and cuda:  # other contexts stay as the warm-up had them; a text went on, and nobody looked
            self.place.before(tokens)
            generate(looked, bound.rectify, tokens, TEXT_PERIODS * tokens)
        watch.check()
        clocks = conditions.columns()
        work = self.work(bound)
        peak = max(bench.ranks.gathered(torch.cuda.max_memory_allocated(device))) if cuda else None
        memory = device_bytes(device) if cuda else None
        most = None if memory is None else largest_batch(case, spec, memory)
        total = self.total(
            bound, timing, work, clocks, bound.launch, text=written, peak_memory_bytes=peak, largest_batch=most
        )
        yield total
        if bench.plan.breakdown and bench.ranks.same(total.timed):
            self.on_step(f"break down {spec.label}")
            yield from self.stage_rows(bound, timing, clocks)
        if bench.plan.eager and bound.launch == "graph":
            self.on_step(f"eager {spec.label}")
            yield self.eager(bound, work, clocks)
        if bench.plan.drift and bound.engine.rectify_every:
            yield from self.drift_rows(bound)

    def eager(self, bound: Bound, work: Work, clocks: dict[str, Any]) -> Row:
        """The row of steps launched eagerly: some steps, and one rectification timed apart."""
        device = self.device
        self.place.before(2 * EAGER_STEPS)
        time_period(bound.engine.step, None, EAGER_STEPS, device)
        timing = Timing(*time_period(bound.engine.step, None, EAGER_STEPS, device))
        every = bound.engine.rectify_every
        if every:
            self.place.after(every)
            bound.engine.rectify()
            _, wall_us = time_period(bound.engine.rectify, None, 1, device)
            timing.apart_us = wall_us / every
        return self.total(bound, timing, work, clocks, "eager")

    def drift_rows(self, bound: Bound) -> Iterator[Row]:
        """Decode some periods again under the drift meter: rows of what each rectification found."""
        every = bound.engine.rectify_every or 0
        meter = DriftMeter(bound.engine, lambda drift: self.on_step(f"{bound.spec.label}, {drift}"))
        self.place.before(TEXT_PERIODS * every)
        for _ in range(TEXT_PERIODS):
            for _ in range(every):
                meter.step()
            meter.rectify()
        for drift in meter.readings:
            common = {"stage": "rectify", "launch": "eager", "step": drift.tokens, "status": "ok"}
            yield self.row(bound.spec, **common, metric="kl", value=digits(drift.kl))
            yield self.row(bound.spec, **common, metric="top1", value=digits(drift.same_top))
            for layer, value in enumerate(drift.change):
                yield self.row(bound.spec, **common, metric="kv_change", layer=layer, value=digits(value))

    def text(self) -> str:
        """What was decoded so far, the first sequence."""
        assert self.loaded.tokenizer is not None
        count = int(self.state.count)
        return self.loaded.tokenizer.decode(self.state.history[:count, 0].tolist())[:TEXT_CHARS]

    def total(
        self, bound: Bound, timing: Timing, work: Work, clocks: dict[str, Any], launch: str, **columns: Any
    ) -> Row:
        """The row of a whole step, rectification amortised in."""
        case = self.case
        mean = timing.mean_us
        common = {
            "launch": launch,
            "cache_state": "cold",
            "chunk_kernel": bound.engine.layers[-1].chunk_kernel,
            "fixed_length": bound.spec.kind.fixes_length,
            **clocks,
            **columns,
        }
        verdict = self.bench.ceilings.verdict(work.floor_us(self.bench.ceilings), mean)
        if verdict.kind == "impossible" and firm_ceilings(self.device):
            return self.row(bound.spec, **(common | {"status": "failed", "reason": verdict.reason}))
        common |= work.columns(mean, verdict, common["reason"])
        interval = mean_interval(timing.period_us)
        joules = None  # the counter is too coarse for less than two seconds
        if timing.joules is not None and timing.seconds >= ENERGY_SECONDS:
            joules = digits(timing.joules / (len(timing.token_us) * case.batch), 4)
        return self.row(
            bound.spec,
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
            **self.exchange(bound.spec, mean),
            **bound.check.columns(),
        )

    def exchange(self, spec: MethodSpec, mean_us: float) -> dict[str, Any]:
        """What the exchange between ranks takes by its model; of simulated ranks, the step with it."""
        case, model = self.case, exchange_time(self.case.config, self.bench.plan.exchange)
        if model is None:
            return {}
        us = model.step_us(case, spec)
        rate = digits(case.batch / (mean_us + us) * 1e6) if case.config.simulated else None
        return {"modelled_exchange_us": digits(us), "exchange_model": model.source, "modelled_tokens_per_s": rate}

    def breakdown(self, bound: Bound) -> tuple[dict[str, float], dict[str, float]]:
        """Microseconds by stage of one step, and of one rectification."""
        engine, every = bound.engine, bound.engine.rectify_every
        if self.device.type != "cuda":
            self.place.before(CLOCKED_STEPS)
            clock = StageClock()
            with listening(clock):
                for _ in range(CLOCKED_STEPS):
                    engine.step()
            step = {k: v * 1e6 / CLOCKED_STEPS for k, v in clock.seconds.items()}
            if not every:
                return step, {}
            clock = StageClock()
            self.place.after(every)
            with listening(clock):
                engine.rectify()
            return step, {k: v * 1e6 for k, v in clock.seconds.items()}
        graph = bound.launch == "graph"
        self.place.before(4 * TRACED_STEPS)
        ready = self.bench.ranks.wait
        try:
            replay = bound.step if graph else None
            step = break_down(engine.step, replay, TRACED_STEPS, ready=ready).stages_us
        finally:  # other ranks go on to the rectification, whatever this one's trace looks like
            rectified: dict[str, float] = {}
            if every:
                self.place.after(every)
                replay = bound.rectify if graph else None
                rectified = break_down(engine.rectify, replay, 1, ready=ready).stages_us
        return step, rectified

    def stage_rows(self, bound: Bound, timing: Timing, clocks: dict[str, Any]) -> list[Row]:
        """Where the step's time goes: stages, rectification's share, and the gap up to the mean step."""
        try:
            step, rectified = self.breakdown(bound)
        except TraceMismatch as error:
            return [self.row(bound.spec, stage="gap", launch=bound.launch, status="failed", reason=str(error))]
        every = bound.engine.rectify_every or 1
        parts = dict(step)
        if rectified:
            parts["rectify"] = rectified.pop("rectify", 0.0) / every
            if (exchanged := rectified.pop("all-reduce", None)) is not None:
                parts["rectify+all-reduce"] = exchanged / every
            parts["rectify+project+ffn"] = sum(rectified.values()) / every
        parts["gap"] = timing.mean_us - sum(parts.values())
        common = {"launch": bound.launch, "cache_state": "cold", **clocks}
        return [
            self.row(
                bound.spec,
                **common,
                stage=name,
                median_us=digits(value),
                mean_us=digits(value),
            )
            for name, value in parts.items()
        ]


def step_us(row: Row) -> float | None:
    """What steps are compared by: the amortised mean."""
    return row.mean_us if row.tokens_per_s else None


def firm_ceilings(device: torch.device) -> bool:
    """Whether a step faster than its floor is an error. A CPU's ceilings move with whatever else it does."""
    return device.type == "cuda"


def run_case(
    case: DecodeCase,
    specs: Sequence[MethodSpec],
    bench: Bench,
    on_step: Report = lambda _: None,
    kind: type[CaseRun] | None = None,
) -> list[Row]:
    """Decode with every method of `specs`; a method that fails costs its own rows alone."""
    run = (kind or CaseRun)(case, specs, bench, on_step)
    rows = run_methods(run, specs, bench, lambda able: too_large(memory_bytes(case, able), bench.device))
    return with_modelled_speedups(with_speedups(rows, step_us))


def with_modelled_speedups(rows: Sequence[Row]) -> list[Row]:
    """Of simulated ranks, fill `modelled_speedup`: against the best dense step, the modelled exchange in both."""

    def rate(row: Row) -> float:
        return row.modelled_tokens_per_s or 0.0

    def filled(row: Row) -> Row:
        rivals = [rate(r) for r in rows if is_dense(r.method) and r.launch == row.launch and rate(r)]
        return replace(row, modelled_speedup=digits(rate(row) / max(rivals))) if rate(row) and rivals else row

    return [filled(row) for row in rows]
