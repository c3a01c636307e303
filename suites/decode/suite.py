"""The decode suite's measuring: every method of a case decodes from the same caches; rows with times and floors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

from ...kernels import DecodeMethod, Traffic, Unsupported, get_method
from ...profiling.ceilings import Ceilings
from ...profiling.clocks import ClockReader, ClockState, worst
from ...profiling.device import Environment
from ...profiling.ranges import StageClock, listening
from ...profiling.trace import TraceMismatch, break_down
from ..cases import MethodSpec
from ..checks import Check
from ..micro import failure
from ..model.load import LoadedModel, load_decoder
from ..model.smollm import ModelNotHere
from ..rows import Row, digits
from .cases import TEXT_PERIODS, DecodeCase, capacity, period, prompt_tokens, rectifies
from .checks import check_attention, check_linears, check_replay
from .costs import Costs, Floor, memory_bytes, rectification, weight_traffic
from .engine import Engine, State, bind_layers
from .measure import EAGER_STEPS, EnergyCounter, Timing, time_decoding, time_period
from .prompt import english_text, fill_synthetic, prefill

TRACED_STEPS = 2
TEXT_CHARS = 600  # of a continuation kept in its row


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """How long to decode, and what to measure beside the time."""

    periods: int = 2  # whole periods at least, after one of warm-up
    seconds: float = 2.0  # at least, so that the energy counter has something to count
    eager: bool = True  # on a GPU: some steps launched eagerly beside
    breakdown: bool = True


@dataclass(frozen=True, slots=True)
class DecodeBench:
    """What a run measures with, the same for all its cases."""

    device: torch.device
    ceilings: Ceilings
    environment: Environment
    plan: DecodePlan
    command: str
    idle_watts: float | None = None


class Loader:
    """Keeps the model in use, and the longest prompt it was given, for the cases that follow."""

    def __init__(self) -> None:
        self._key: Any = None
        self._model: LoadedModel | None = None
        self._prefilled: State | None = None

    def model(self, case: DecodeCase, device: torch.device) -> LoadedModel:
        """The case's model; another one than the last takes its place. Raises CheckFailed on wrong linear layers."""
        key = (case.model, case.weights, case.dtype, case.seed)
        if self._model is None or self._key != key:
            self._model = self._prefilled = None
            release(device)
            loaded = load_decoder(
                case.model, dtype=case.torch_dtype, device=device, weight_dtype=case.weights, seed=case.seed
            )
            check_linears(loaded.decoder, (1, case.batch, 64))
            self._model, self._key = loaded, key
        return self._model

    def prefilled(self, loaded: LoadedModel, tokens: int, on_step: Callable[[str], None]) -> State:
        """A state whose caches hold at least `tokens` tokens of the text prompt, at batch 1."""
        have = self._prefilled
        if have is None or have.capacity < tokens:
            ids = prompt_ids(loaded, tokens)
            state = State.allocate(loaded.decoder, 1, tokens, 1)
            done = 0 if have is None else have.capacity
            if have is not None:
                copy_tokens(have, state, done)
            prefill(
                loaded.decoder, state, ids[None], done=done, on_tokens=lambda n: on_step(f"prefill {n} of {tokens}")
            )
            self._prefilled = state
            return state
        return have


def copy_tokens(source: State, target: State, tokens: int) -> None:
    """Copy the first tokens' K and V of one sequence to every sequence of another state."""
    for theirs, mine in zip(source.caches, target.caches, strict=True):
        mine.k[:, :, :tokens] = theirs.k[:, :, :tokens]
        mine.v[:, :, :tokens] = theirs.v[:, :, :tokens]


def release(device: torch.device) -> None:
    """Give unused device memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def prompt_ids(loaded: LoadedModel, tokens: int) -> torch.Tensor:
    """The first `tokens` ids of plain English, int64 `[tokens]`. Raises Unsupported without a tokenizer."""
    if loaded.tokenizer is None:
        raise Unsupported("prompt: a text prompt needs a model with a tokenizer; this one has random weights")
    ids = loaded.tokenizer.encode(english_text()[: tokens * 8])[:tokens]
    if len(ids) < tokens:
        raise ValueError(f"prompt: the text holds {len(ids)} tokens, {tokens} are asked for")
    return torch.tensor(ids, dtype=torch.int64, device=loaded.decoder.device)


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
        self.floor = Floor(bench.ceilings.read_gbps, bench.ceilings.matrix_tflops)

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
        self.loaded = loader.model(case, self.bench.device)
        decoder = self.decoder = self.loaded.decoder
        size = capacity(case)
        self.prompt = prompt_tokens(case, self.specs)
        longest = max(period(spec) for spec in self.specs)
        self.on_step("caches")
        self.state = State.allocate(decoder, case.batch, size, 4 * longest, shared_kv=case.shared_kv)
        if case.prompt == "synthetic":
            fill_synthetic(self.state, case.seed)
            self.pending = torch.arange(1, case.batch + 1, device=decoder.device)
            return
        copy_tokens(loader.prefilled(self.loaded, self.prompt, self.on_step), self.state, self.prompt)
        self.pending = prompt_ids(self.loaded, self.prompt + 1)[-1:].repeat(case.batch)

    def restart(self, tokens_before_end: int) -> None:
        """Stand that many tokens before the case's context; a text always starts after its prompt."""
        text = self.case.prompt == "text"
        self.state.start(self.prompt if text else self.case.context - tokens_before_end, self.pending)

    def contend(self, spec: MethodSpec) -> Contender:
        """Bind a method to the case, check it, and capture it where it can be. Raises CheckFailed, Unsupported."""
        case, decoder = self.case, self.decoder
        kind = get_method(spec.name)
        if kind.fixes_length and case.prompt == "text":
            raise Unsupported("fixes its length when it is bound; a text grows")
        shape, dtype, device = case.shape, case.torch_dtype, self.bench.device
        self.state.lengths.fill_(case.context)
        method = kind(shape, spec.config, dtype=dtype, device=device)
        dense = None
        if spec.dense_layers:
            name = "triton-dense" if device.type == "cuda" else "torch-dense"
            dense = get_method(name)(shape, spec.config, dtype=dtype, device=device)
        layers = bind_layers(self.state, method, dense, spec.dense_layers)
        every = spec.config.rectify_every if rectifies(spec) else None
        engine = Engine(decoder, self.state, layers, rectify_every=every, sampling=case.sampling)
        self.restart(1)
        last = case.config.layers - 1  # with a shared cache the later layers overwrite the token of the earlier ones
        check = check_attention(engine, (last,) if case.shared_kv else (0, spec.dense_layers, last))
        if device.type != "cuda" or not engine.graph_safe:
            return Contender(spec, method, engine, check, engine.step, engine.rectify if every else None, "eager")
        eager = engine.logits.clone()
        self.restart(1)
        step = engine.capture(engine.step)
        self.restart(1)
        step()
        if not case.sampling.temperature:
            check_replay(engine.logits, eager)
        rectify = None
        if every:
            self.at_period_end(every)
            rectify = engine.capture(engine.rectify)
        return Contender(spec, method, engine, check, step, rectify, "graph")

    def at_period_end(self, tokens: int) -> None:
        """Stand where a period of `tokens` ends, as rectification finds it."""
        self.restart(0)
        self.state.count.fill_(tokens)

    def costs(self, one: Contender) -> Costs:
        """Costs at the lists that the last step selected."""
        case, every = self.case, one.engine.rectify_every
        self.state.lengths.fill_(case.context)
        attention = sum((layer.traffic()["total"] for layer in one.engine.layers), Traffic(0))
        return Costs(
            weight_traffic(case, case.batch), attention, rectification(case, every) if every else Traffic(0), every
        )

    def measure(self, spec: MethodSpec) -> list[Row]:
        """Rows of one method."""
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
        )
        states.append(reader.read())
        written = self.text() if text else None
        clocks = worst(states)
        costs = self.costs(one)
        peak = torch.cuda.max_memory_allocated(device) if cuda else None
        rows = [self.total(one, timing, costs, clocks, one.launch, text=written, peak_memory_bytes=peak)]
        if bench.plan.breakdown and rows[0].timed:
            self.on_step(f"break down {spec.label}")
            rows += self.stage_rows(one, timing, clocks)
        if bench.plan.eager and one.launch == "graph":
            self.on_step(f"eager {spec.label}")
            rows.append(self.eager(one, costs, clocks))
        return rows

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

    def text(self) -> str:
        """What was decoded so far, the first sequence."""
        assert self.loaded.tokenizer is not None
        count = int(self.state.count)
        return self.loaded.tokenizer.decode(self.state.history[:count, 0].tolist())[:TEXT_CHARS]

    def total(
        self, one: Contender, timing: Timing, costs: Costs, clocks: ClockState, launch: str, **columns: Any
    ) -> Row:
        """The row of a whole step, rectification amortised in."""
        case = self.case
        mean, floor = timing.mean_us, costs.floor_us(self.floor)
        common = {
            "launch": launch,
            "cache_state": "cold",
            "chunk_kernel": one.engine.layers[-1].chunk_kernel,
            "fixed_length": one.method.fixes_length,
            **asdict_clocks(clocks),
            **columns,
        }
        if floor > mean:
            return self.row(
                one.spec, **common, status="failed", reason=f"{mean:.0f} us a step beats the floor of {floor:.0f} us"
            )
        joules = None
        if timing.joules is not None:
            joules = digits(timing.joules / (len(timing.token_us) * case.batch), 4)
        return self.row(
            one.spec,
            **common,
            n_samples=len(timing.token_us),
            median_us=digits(timing.quantile_us(0.5)),
            p50_us=digits(timing.quantile_us(0.5)),
            p99_us=digits(timing.quantile_us(0.99)),
            q20_us=digits(timing.quantile_us(0.2)),
            q80_us=digits(timing.quantile_us(0.8)),
            min_us=digits(min(timing.token_us)),
            mean_us=digits(mean),
            wall_mean_us=digits(timing.wall_mean_us),
            tokens_per_s=digits(case.batch / mean * 1e6),
            joules_per_token=joules,
            bytes=costs.bytes,
            flops=costs.flops,
            floor_us=digits(floor),
            floor_fraction=digits(floor / mean),
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
            steps = 8
            self.restart(steps)
            clock = StageClock()
            with listening(clock):
                for _ in range(steps):
                    engine.step()
            step = {k: v * 1e6 / steps for k, v in clock.seconds.items()}
            if not every:
                return step, {}
            clock = StageClock()
            with listening(clock):
                self.state.count.fill_(every)
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
        common = {"launch": one.launch, "cache_state": "cold", **asdict_clocks(clocks)}
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


def asdict_clocks(clocks: ClockState) -> dict[str, Any]:
    return {
        "sm_clock_mhz": clocks.sm_clock_mhz,
        "memory_clock_mhz": clocks.memory_clock_mhz,
        "temperature_c": clocks.temperature_c,
        "throttle_reasons": clocks.throttle_reasons,
    }


def run_case(
    case: DecodeCase,
    specs: Sequence[MethodSpec],
    bench: DecodeBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Decode with every method of `specs`; a method that fails costs its own rows alone."""
    run = CaseRun(case, specs, bench, on_step)
    rows: list[Row] = []
    able = []
    for spec in specs:
        reason = get_method(spec.name).unavailable(case.shape, case.torch_dtype, bench.device)
        if reason:
            rows.append(run.row(spec, status="skipped", reason=reason))
        else:
            able.append(spec)
    run.specs = able
    reason = too_large(case, able, bench.device)
    if reason:
        return rows + [run.row(spec, status="skipped", reason=reason) for spec in able]
    with torch.inference_mode():
        try:
            if able:
                run.prepare(loader)
        except ModelNotHere as error:
            return rows + [run.row(spec, status="skipped", reason=str(error)) for spec in able]
        except Exception as error:
            status, reason = failure(error)
            return rows + [run.row(spec, status=status, reason=reason) for spec in able]
        for spec in able:
            try:
                rows += run.measure(spec)
            except Exception as error:
                status, reason = failure(error)
                rows.append(run.row(spec, status=status, reason=reason))
            release(bench.device)
    return with_speedups(rows)


def too_large(case: DecodeCase, specs: Sequence[MethodSpec], device: torch.device) -> str | None:
    """Why the case does not fit the device's memory, or None."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    need = memory_bytes(case, list(specs))
    return None if need <= total else f"needs {need / 1e9:.0f} GB of memory, the device has {total / 1e9:.0f}"


def with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Fill `speedup_vs_best_dense`, `best_dense` and `floor_speedup` of whole steps, by tokens per second."""
    out = []
    for row in rows:
        rivals = [r for r in rows if r.tokens_per_s and get_method(r.method).is_dense and r.launch == row.launch]
        if row.tokens_per_s and rivals:
            best = max(rivals, key=lambda r: r.tokens_per_s or 0.0)
            assert best.tokens_per_s
            limit = best.floor_us / row.floor_us if best.floor_us and row.floor_us else None
            row = replace(
                row,
                speedup_vs_best_dense=digits(row.tokens_per_s / best.tokens_per_s),
                best_dense=best.method,
                floor_speedup=digits(limit) if limit else None,
            )
        out.append(row)
    return out
