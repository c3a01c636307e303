"""The GSR suite's measuring: every method decodes the candidates, then the answer; seconds of each part, and of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from ...kernels import AttentionShape, Layer, Unsupported, get_method
from ...kernels.config import ceil_div
from ...profiling.clocks import ClockReader, ClockState, worst
from ..core.rows import Row, digits
from ..core.speedups import with_speedups
from ..decode.cases import rectifies
from ..decode.suite import DecodeBench, can_capture, step_us
from ..engine.checks import check_attention, check_rectified, check_replay
from ..engine.costs import SCRATCH_BYTES, element_bytes, kv_bytes, weight_bytes
from ..engine.engine import Engine, State, bind_layers
from ..engine.gate import Check
from ..engine.loader import Loader, prompt_ids, release
from ..engine.measure import time_decoding
from ..engine.methods import run_methods
from ..engine.prompt import fill_synthetic, prefill
from ..micro.cases import MethodSpec
from ..model.load import LoadedModel
from .cases import INSTRUCTION, GsrCase, Segment, segments
from .phase import Launch, Point, contexts, integrate, run_in_full, synchronize
from .shared import allocate, at_work, share_summaries, spread_prompt

STAGES = ("candidates", "refine", "answer")


@dataclass(slots=True)
class Bound:
    """A method bound to so many sequences, checked, and how it is launched."""

    layers: list[Layer]
    launch: Launch
    how: str  # "graph" or "eager"
    check: Check


@dataclass(frozen=True, slots=True)
class Timed:
    """A phase that was decoded or integrated.

    Attributes:
        points: the mean step of each segment, at its end, where all of it was decoded; else the steps timed.
    """

    seconds: float
    steps: int
    tokens: int
    samples: int  # steps, or points of the integration
    paged: bool
    how: str
    check: Check
    points: tuple[Point, ...] = ()


class GsrRun:
    """One case in hand."""

    def __init__(
        self, case: GsrCase, specs: Sequence[MethodSpec], bench: DecodeBench, on_step: Callable[[str], None]
    ) -> None:
        self.case, self.specs, self.bench, self.on_step = case, list(specs), bench, on_step
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.script = segments(case.lengths)
        self._candidates: dict[bool, State] = {}  # by whether they are paged

    def row(self, spec: MethodSpec, **columns: Any) -> Row:
        common = {
            **self.case.columns(),
            "read_ceiling_gbps": round(self.bench.ceilings.read_gbps, 1),
            "started_at": self.started_at,
            "command": self.bench.command,
            **asdict(self.bench.environment),
            "method": spec.name,
            "stage": "answer",
            **spec.columns(),
        }
        return Row(**(common | columns))

    def prepare(self, loader: Loader) -> None:
        """Model, prompt ids, the time of both prefills (the same for every method)."""
        case, device = self.case, self.bench.device
        self.on_step("model")
        sizes = {part.active for part in self.script} | {1}
        chunks = {n * spec.config.rectify_every for n in sizes for spec in self.specs if rectifies(spec)}
        self.loaded: LoadedModel = loader.model(case, sizes | chunks, device)
        decoder = self.decoder = self.loaded.decoder
        self.every = max([spec.config.rectify_every for spec in self.specs], default=1)
        count = INSTRUCTION + case.prompt + 1
        if self.loaded.tokenizer is None:
            generator = torch.Generator().manual_seed(case.seed)
            ids = torch.randint(0, case.config.vocab, (count,), generator=generator).to(device)
        else:
            ids = prompt_ids(self.loaded, count)
        self.instruction, self.problem, last = ids.split((INSTRUCTION, case.prompt, 1))
        self.pending = last.repeat(case.batch)
        self.answering = State.allocate(decoder, 1, self.room(case.refine, case.answer), self.history(case.answer))
        self.prompt_seconds = self.prefill_seconds(case.prompt)
        self.refine_seconds = self.prefill_seconds(case.refine)
        if case.run == "sampled":
            fill_synthetic(self.answering, case.seed)

    def room(self, prompt: int, tokens: int) -> int:
        """Tokens that caches hold: what is decoded, or what checking a rectification takes."""
        return ceil_div(prompt + max(tokens, self.every + 1), 64) * 64

    def history(self, tokens: int) -> int:
        return max(tokens, self.every) + 1 if self.case.run == "full" else 2 * self.every + 1

    def prefill_seconds(self, tokens: int) -> float:
        """Of a prompt of so many tokens at batch 1; on a GPU the second time, when kernels are compiled."""
        device = self.bench.device
        ids = self.problem.repeat(ceil_div(tokens, len(self.problem)))[None, :tokens]
        seconds = 0.0
        for _ in range(2 if device.type == "cuda" else 1):
            self.on_step(f"prefill {tokens}")
            synchronize(device)
            start = time.perf_counter()
            prefill(self.decoder, self.answering, ids)
            synchronize(device)
            seconds = time.perf_counter() - start
        return seconds

    def candidates(self, paged: bool) -> State:
        """The candidates' caches after the prompt, or full of noise; kept for the methods that follow."""
        case = self.case
        if paged not in self._candidates:
            longest = max(case.lengths)
            state = allocate(
                self.decoder, case.batch, case.prompt, self.room(case.prompt, longest), self.history(longest),
                case.page_size if paged else None,
            )  # fmt: skip
            if case.run == "sampled":
                fill_synthetic(state, case.seed)
            else:
                self.store(at_work(state, 1), self.problem)
                spread_prompt(state, case.prompt)
            self._candidates[paged] = state
        return self._candidates[paged]

    def store(self, state: State, ids: Tensor) -> None:
        """Prefill one sequence beside, and put its keys and values into the state's caches, paged or not."""
        scratch = State.allocate(self.decoder, 1, len(ids), 1)
        prefill(self.decoder, scratch, ids[None])
        for mine, theirs in zip(state.caches, scratch.caches, strict=True):
            mine.store(theirs.k, theirs.v)

    def layout(self, spec: MethodSpec) -> bool:
        """Whether the method reads pages: then the candidates share the prompt's. A method that does not has copies."""
        if self.case.page_size is None:
            return False
        state = at_work(self.candidates(True), 1)
        state.start(self.case.prompt, self.pending[:1])
        try:
            self.method(spec, 1).prepare(state.caches[0])
        except Unsupported:
            return False
        return True

    def method(self, spec: MethodSpec, batch: int) -> Any:
        config = self.case.config
        shape = AttentionShape(batch, config.q_heads, config.kv_heads, config.head_dim)
        return get_method(spec.name)(shape, spec.config, dtype=self.case.torch_dtype, device=self.bench.device)

    def bind(self, spec: MethodSpec, state: State, length: int, whole: list[Layer] | None = None) -> Bound:
        """Bind a method to sequences of `length` tokens; check it, capture it where it can be.

        In full runs what follows `length` is written to, otherwise its last tokens are.

        Args:
            whole: layers of all candidates, whose summaries these use.

        Raises:
            CheckFailed, Unsupported: as the decode suite's gate.
        """
        ahead = self.case.run == "full"
        pending = self.pending[: state.batch]
        state.start(length, pending)
        layers = bind_layers(state, self.method(spec, state.batch), None, 0)
        if whole is not None:
            share_summaries(layers, whole)
        every = spec.config.rectify_every if rectifies(spec) else None
        engine = Engine(self.decoder, state, layers, rectify_every=every, sampling=self.case.sampling)
        start = length if ahead else length - 1
        state.start(start, pending)
        check = check_attention(engine, {0, len(layers) - 1})
        step: Callable[[], object] = engine.step
        rectify: Callable[[], object] | None = engine.rectify if every else None
        graph = can_capture(engine, self.bench.device)
        if graph:
            state.start(start, pending)
            step = engine.capture(engine.step)
            state.start(start, pending)
            check = check.worst(check_replay(engine, step))
        if every:
            state.start(length + every if ahead else length, pending)
            state.count.fill_(every)
            if graph:
                rectify = engine.capture(engine.rectify)
            check_rectified(engine, rectify if graph else None)
        return Bound(layers, Launch(step, rectify, every), "graph" if graph else "eager", check)

    def phase(
        self, spec: MethodSpec, state: State, prompt: int, script: Sequence[Segment], paged: bool, name: str
    ) -> Timed:
        """Decode a script from a state that stands after its prompt, in full or at points."""
        timed = self.full if self.case.run == "full" else self.sampled
        return timed(spec, state, prompt, script, paged, name)

    def full(
        self, spec: MethodSpec, state: State, prompt: int, script: Sequence[Segment], paged: bool, name: str
    ) -> Timed:
        """Decode every token; the state's history holds what was said."""
        if get_method(spec.name).fixes_length:
            raise Unsupported("fixes its length when it is bound; candidates grow (--run sampled times it)")
        bound: dict[int, Bound] = {}
        for part in script:
            whole = bound[script[0].active].layers if bound else None
            bound[part.active] = self.bind(spec, at_work(state, part.active), prompt, whole)
        state.start(prompt, self.pending[: state.batch])
        torch.manual_seed(self.case.seed)
        last = script[-1].last
        seconds = run_in_full(
            {n: one.launch for n, one in bound.items()}, script, self.bench.device,
            lambda n: self.on_step(f"{name} of {spec.label}, step {n} of {last}"),
        )  # fmt: skip
        check = bound[script[0].active].check
        for one in bound.values():
            check = check.worst(one.check)
        how = bound[script[0].active].how
        tokens = sum(part.active * part.steps for part in script)
        means = tuple(
            Point(part.active, prompt + part.last, took / part.steps * 1e6)
            for part, took in zip(script, seconds, strict=True)
        )
        return Timed(sum(seconds), last, tokens, last, paged, how, check, means)

    def sampled(
        self, spec: MethodSpec, state: State, prompt: int, script: Sequence[Segment], paged: bool, name: str
    ) -> Timed:
        """Time whole periods of steps at points of each segment, and integrate over its contexts."""
        case, plan, device = self.case, self.bench.plan, self.bench.device
        fixed = get_method(spec.name).fixes_length
        period = spec.config.rectify_every
        points: list[Point] = []
        seconds, how, check = 0.0, "eager", Check(0.0, 0.0)
        for part in script:
            mine = at_work(state, part.active)
            bound: Bound | None = None
            found = []
            for context in contexts(part, prompt, case.points):
                at = max(context, period + 1)
                self.on_step(f"{name} of {spec.label}, {part.active} at {at} tokens")
                if bound is None or fixed:
                    bound = self.bind(spec, mine, at if fixed else max(prompt + part.last, period + 1))
                    check, how = check.worst(bound.check), bound.how

                def restart(at: int = at, mine: State = mine) -> None:
                    mine.start(at - period, self.pending[: mine.batch])

                one = bound.launch
                restart()
                time_decoding(one.step, one.rectify, period, device, periods=1)
                timing = time_decoding(
                    one.step, one.rectify, period, device, restart=restart, periods=plan.periods, seconds=plan.seconds
                )
                found.append(Point(part.active, context, timing.mean_us))
            seconds += integrate(part, found)
            points += found
            bound = None
            release(device)
        tokens = sum(part.active * part.steps for part in script)
        return Timed(seconds, script[-1].last, tokens, len(points), paged, how, check, tuple(points))

    def refine_prompt(self, state: State) -> Tensor:
        """Instruction, problem, and what each candidate said last: its summary; the longest one first."""
        case = self.case
        longest_first = sorted(case.lengths, reverse=True)
        said = [state.history[n - case.summary : n, b] for b, n in enumerate(longest_first)]
        return torch.cat((self.instruction, self.problem, *said))

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: each phase, the prefills, the whole way to the answer; points where they were timed."""
        case, device = self.case, self.bench.device
        reader = ClockReader(device)
        self.on_step(f"check {spec.label}")
        paged = self.layout(spec)
        state = self.candidates(paged)
        states = [reader.read()]
        first = self.phase(spec, state, case.prompt, self.script, paged, "candidates")
        if case.run == "full":
            self.store(self.answering, self.refine_prompt(state))
        release(device)
        second = self.phase(spec, self.answering, case.refine, [Segment(1, 0, case.answer)], False, "answer")
        states.append(reader.read())
        clocks = worst(states)
        yield self.timed_row(spec, "candidates", first, clocks, context=case.prompt + max(case.lengths))
        yield self.timed_row(spec, "refine", second, clocks, context=case.refine + case.answer, batch=1)
        whole = Timed(
            self.prompt_seconds + first.seconds + self.refine_seconds + second.seconds, first.steps + second.steps,
            first.tokens + second.tokens, first.samples + second.samples, paged, first.how,
            first.check.worst(second.check),
        )  # fmt: skip
        yield self.timed_row(spec, "answer", whole, clocks)
        for tokens, seconds in ((case.prompt, self.prompt_seconds), (case.refine, self.refine_seconds)):
            yield self.row(
                spec, stage="prefill", context=tokens, batch=1, metric="seconds", value=digits(seconds), status="ok"
            )
        for one, timed in ((first, "candidates"), (second, "refine")):
            for point in one.points:
                yield self.row(
                    spec, stage=f"{timed}_step", context=point.context, batch=point.active, paged=one.paged,
                    median_us=digits(point.step_us), mean_us=digits(point.step_us), launch=one.how,
                    tokens_per_s=digits(point.active / point.step_us * 1e6), status="ok",
                )  # fmt: skip

    def timed_row(self, spec: MethodSpec, stage: str, timed: Timed, clocks: ClockState, **columns: Any) -> Row:
        """`mean_us` is of a step of the phase, and of `answer` the whole time."""
        seconds = timed.seconds
        mean = seconds * 1e6 / (1 if stage == "answer" else timed.steps)
        return self.row(
            spec, stage=stage, **columns, **asdict(clocks), launch=timed.how, cache_state="cold", paged=timed.paged,
            fixed_length=get_method(spec.name).fixes_length,
            n_samples=timed.samples, median_us=digits(mean), mean_us=digits(mean),
            tokens_per_s=digits(timed.tokens / seconds), metric="seconds", value=digits(seconds),
            max_rel_error=digits(timed.check.max_rel_error, 3),
            error_budget_used=digits(timed.check.budget_used, 3),
            status="throttled" if clocks.throttle_reasons else "ok", reason=clocks.throttle_reasons,
        )  # fmt: skip


def memory_bytes(case: GsrCase) -> int:
    """What the case needs at least: weights, both layouts of the candidates' caches, the answer's, work space."""
    config = case.config
    embedding = 0 if config.tied_head else config.head_parameters * element_bytes(case)
    candidates = 2 * kv_bytes(case, case.prompt + max(case.lengths))
    answer = kv_bytes(case, case.refine + case.answer) // case.batch
    return weight_bytes(case) + embedding + config.layers * (candidates + answer) + SCRATCH_BYTES


def too_large(case: GsrCase, device: torch.device) -> str | None:
    """Why the case does not fit the device's memory, or None."""
    if device.type != "cuda":
        return None
    total, need = torch.cuda.get_device_properties(device).total_memory, memory_bytes(case)
    return None if need <= total else f"needs {need / 1e9:.0f} GB of memory, the device has {total / 1e9:.0f}"


def run_case(
    case: GsrCase,
    specs: Sequence[MethodSpec],
    bench: DecodeBench,
    loader: Loader,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Both phases with every method of `specs`; a method that fails costs its own rows alone."""
    run = GsrRun(case, specs, bench, on_step)
    rows = run_methods(run, specs, bench.device, loader, lambda able: too_large(case, bench.device))
    for stage in STAGES:
        rows = with_speedups(rows, step_us, (stage,), stage)
    return rows
