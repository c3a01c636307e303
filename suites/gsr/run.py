"""The GSR suite's measuring: every method decodes the candidates, then the answer; seconds of each part, and of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ...kernels import Layer, Unsupported
from ...kernels.config import ceil_div
from ..core.bench import Bench, Conditions, Report
from ..core.rows import Row, digits
from ..core.spec import MethodSpec, dense_here, make_spec
from ..core.speedups import with_speedups
from ..engine.bind import Bound, Place, bind, layers_of
from ..engine.costs import SCRATCH_BYTES, element_bytes, kv_bytes, second_bytes, too_large, weight_bytes
from ..engine.engine import State
from ..engine.gate import Check
from ..engine.loader import Loader, prompt_ids, release
from ..engine.measure import time_decoding, wall_seconds
from ..engine.methods import MethodRun, run_methods
from ..engine.prompt import fill_synthetic, prefill
from ..engine.sound import Watch
from .break_even import CHOOSES, DENSE, model_of, predict
from .cases import INSTRUCTION, GsrCase, Segment, segments
from .phase import Launch, Point, contexts, integrate, run_in_full
from .shared import allocate, share_summaries, spread_prompt

STAGES = ("candidates", "refine", "answer")


@dataclass(frozen=True, slots=True)
class Timed:
    """A phase that was decoded or integrated, or the whole way to the answer.

    Attributes:
        samples: steps, or points of the integration.
        points: the mean step of each segment, at its end, where all of it was decoded; else the steps timed.
    """

    seconds: float
    steps: int
    tokens: int
    samples: int
    launch: str
    check: Check
    points: tuple[Point, ...] = ()


def reach(spec: MethodSpec) -> int:
    """Tokens that a period, or a window, goes back."""
    return max(spec.period, spec.window)


def step_us(row: Row) -> float | None:
    """What phases are compared by; of `answer` the whole time."""
    return row.mean_us if row.tokens_per_s else None


class GsrRun(MethodRun):
    """One case in hand."""

    case: GsrCase
    stage = "answer"

    def __init__(self, case: GsrCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report) -> None:
        super().__init__(case, specs, bench, on_step)
        self.script = segments(case.lengths)
        self._candidates: dict[bool, State] = {}  # by whether they are paged

    def prepare(self, loader: Loader) -> None:
        """Model, prompt ids, the time of both prefills (the same for every method)."""
        case = self.case
        self.load(loader, {part.active for part in self.script} | {1})
        self.reach = max(reach(spec) for spec in self.specs)
        count = INSTRUCTION + case.prompt + 1
        if self.loaded.tokenizer is None:
            generator = torch.Generator().manual_seed(case.seed)
            ids = torch.randint(0, case.config.vocab, (count,), generator=generator).to(self.device)
        else:
            ids = prompt_ids(self.loaded, count)
        self.instruction, self.problem, last = ids.split((INSTRUCTION, case.prompt, 1))
        self.pending = last.repeat(case.batch)
        self.answering = State.allocate(self.decoder, 1, self.room(case.refine, case.answer), self.history(case.answer))
        self.prompt_seconds = self.prefill_seconds(case.prompt)
        self.refine_seconds = self.prefill_seconds(case.refine)
        if case.run == "sampled":
            fill_synthetic(self.answering, case.seed)

    def room(self, prompt: int, tokens: int) -> int:
        """Tokens that caches hold: what is decoded, or what checking a rectification takes."""
        return ceil_div(prompt + max(tokens, self.reach + 1), 64) * 64

    def history(self, tokens: int) -> int:
        """Tokens of each sequence that are remembered: all in full runs, else what is timed at once."""
        return max(tokens, self.reach) + 1 if self.case.run == "full" else 2 * self.reach + 1

    def prefill_seconds(self, tokens: int) -> float:
        """Of a prompt of so many tokens at batch 1; on a GPU the second time, when kernels are compiled."""
        ids = self.problem.repeat(ceil_div(tokens, len(self.problem)))[None, :tokens]
        seconds = 0.0
        for _ in range(2 if self.device.type == "cuda" else 1):
            self.on_step(f"prefill {tokens}")
            seconds, _ = wall_seconds(lambda: prefill(self.decoder, self.answering, ids), self.device)
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
                self.store(state.part(slice(1)), self.problem)
                spread_prompt(state, case.prompt)
            self._candidates[paged] = state
        return self._candidates[paged]

    def store(self, state: State, ids: Tensor) -> None:
        """Prefill one sequence beside, and put its keys and values into the state's caches, paged or not."""
        scratch = State.allocate(self.decoder, 1, len(ids), 1)
        prefill(self.decoder, scratch, ids[None])
        for cache, written in zip(state.caches, scratch.caches, strict=True):
            cache.store(written.k, written.v)

    def layout(self, spec: MethodSpec) -> bool:
        """Whether the method reads pages: then the candidates share the prompt's. A method that does not has copies."""
        if self.case.page_size is None:
            return False
        state = self.candidates(True).part(slice(1))
        state.start(self.case.prompt, self.pending[:1])
        try:
            layers_of(self.decoder, state, spec)
        except Unsupported:
            return False
        return True

    def place(self, state: State, length: int) -> Place:
        """Where sequences of so many tokens stand: in full runs what follows is written to, else their last tokens."""
        return Place(state, length, self.pending[: state.batch], ahead=self.case.run == "full")

    def bind(self, spec: MethodSpec, state: State, length: int, whole: Sequence[Layer] = ()) -> Bound:
        """Bind a method to sequences of `length` tokens; check it, capture it where it can be.

        Args:
            whole: layers of all candidates, whose summaries these use; none where these are all.

        Raises:
            CheckFailed, Unsupported: as `engine.bind`.
        """

        def adjust(layers: list[Layer]) -> None:
            if whole:
                share_summaries(layers, whole)

        bound = bind(self.decoder, self.place(state, length), spec, sampling=self.case.sampling, adjust=adjust)
        self.row.took(spec, bound.engine.layers)
        return bound

    def full(self, spec: MethodSpec, what: str, state: State, prompt: int, script: Sequence[Segment]) -> Timed:
        """Decode every token of a phase's script; the state's history holds what was written.

        Args:
            what: the phase in words, for the line of progress.
            state: of all sequences, after a prompt of so many tokens.
        """
        if spec.kind.fixes_length:
            raise Unsupported("fixes its length when it is bound; candidates grow (--run sampled times it)")
        bound: dict[int, Bound] = {}
        for part in script:
            whole = bound[script[0].active].engine.layers if bound else ()
            bound[part.active] = self.bind(spec, state.part(slice(part.active)), prompt, whole)
        self.place(state, prompt).before(0)
        torch.manual_seed(self.case.seed)
        last, watch = script[-1].last, Watch(self.device)
        seconds = run_in_full(
            {n: Launch(b.watched(watch), b.rectify, b.engine.rectify_every) for n, b in bound.items()}, script,
            self.device, lambda n: self.on_step(f"{what} of {spec.label}, step {n} of {last}"),
        )  # fmt: skip
        watch.check()
        check = reduce(Check.worst, (b.check for b in bound.values()))
        means = tuple(
            Point(part.active, prompt + part.last, took / part.steps * 1e6)
            for part, took in zip(script, seconds, strict=True)
        )
        return Timed(sum(seconds), last, _tokens(script), last, bound[script[0].active].launch, check, means)

    def sampled(self, spec: MethodSpec, what: str, state: State, prompt: int, script: Sequence[Segment]) -> Timed:
        """Time whole periods of steps at points of each segment, and integrate over its contexts; as `full`."""
        plan, device = self.bench.plan, self.device
        fixed, period, least = spec.kind.fixes_length, spec.period, reach(spec) + 1
        points: list[Point] = []
        seconds, launch, check, watch = 0.0, "eager", Check(), Watch(device)
        for part in script:
            active = state.part(slice(part.active))
            bound: Bound | None = None
            timed = []
            for context in contexts(part, prompt, self.case.points):
                at = max(context, least)
                self.on_step(f"{what} of {spec.label}, {part.active} at {at} tokens")
                if bound is None or fixed:
                    bound = self.bind(spec, active, at if fixed else max(prompt + part.last, least))
                    check, launch = check.worst(bound.check), bound.launch
                place = self.place(active, at)
                place.before(period)
                time_decoding(bound.watched(watch), bound.rectify, period, device, periods=1, ranks=self.bench.ranks)
                timing = time_decoding(
                    bound.step, bound.rectify, period, device, restart=lambda place=place: place.before(period),  # type: ignore[misc]
                    periods=plan.periods, seconds=plan.seconds, ranks=self.bench.ranks,
                )  # fmt: skip
                timed.append(Point(part.active, context, timing.mean_us))
            seconds += integrate(part, timed)
            points += timed
            bound = None
            release(device)
        watch.check()
        return Timed(seconds, script[-1].last, _tokens(script), len(points), launch, check, tuple(points))

    def chosen(self, spec: MethodSpec, prompt: int, script: Sequence[Segment]) -> tuple[MethodSpec, str | None]:
        """What runs a phase: the method, or below its break-even the dense one that follows lengths, and why."""
        if spec.name != CHOOSES or self.case.always_sparse:
            return spec, None
        model = model_of(self.bench.environment.device)
        dense = make_spec(dense_here(self.device), spec.config)
        predicted = predict(model, self.case, spec, dense, prompt, script) if model is not None else None
        return (spec, None) if predicted is None or predicted.pays else (dense, predicted.reason)

    def took(self, spec: MethodSpec, ran: MethodSpec, why: str | None, clocks: dict[str, Any]) -> dict[str, Any]:
        """What a phase's rows say of how its steps ran."""
        if ran is spec:
            return {"way": self.row.way(spec)}
        return {"way": DENSE, "reason": "; ".join(filter(None, (clocks["reason"], why)))}

    def refine_prompt(self, state: State) -> Tensor:
        """Instruction, problem, and what each candidate wrote last: its summary; the longest one first."""
        case = self.case
        longest_first = sorted(case.lengths, reverse=True)
        summaries = [state.history[n - case.summary : n, b] for b, n in enumerate(longest_first)]
        return torch.cat((self.instruction, self.problem, *summaries))

    def measure(self, spec: MethodSpec) -> Iterator[Row]:
        """Rows of one method: each phase, the prefills, the whole way to the answer; points where they were timed."""
        case = self.case
        self.on_step(f"check {spec.label}")
        answer = [Segment(1, 0, case.answer)]
        ran_a, why_a = self.chosen(spec, case.prompt, self.script)
        ran_b, why_b = self.chosen(spec, case.refine, answer)
        paged = self.layout(ran_a)
        state = self.candidates(paged)
        decode = self.full if case.run == "full" else self.sampled
        with Conditions(self.device) as conditions:
            first = decode(ran_a, "candidates", state, case.prompt, self.script)
            if case.run == "full":
                self.store(self.answering, self.refine_prompt(state))
            release(self.device)
            second = decode(ran_b, "answer", self.answering, case.refine, answer)
        clocks = conditions.columns()
        took_a, took_b = (self.took(spec, ran, why, clocks) for ran, why in ((ran_a, why_a), (ran_b, why_b)))
        a = {"context": case.prompt + max(case.lengths), "paged": paged}
        b = {"context": case.refine + case.answer, "paged": False, "batch": 1}
        yield self.timed_row(spec, "candidates", first, **(clocks | took_a | a))
        yield self.timed_row(spec, "refine", second, **(clocks | took_b | b))
        whole = Timed(
            self.prompt_seconds + first.seconds + self.refine_seconds + second.seconds, first.steps + second.steps,
            first.tokens + second.tokens, first.samples + second.samples, first.launch,
            first.check.worst(second.check),
        )  # fmt: skip
        ways = dict.fromkeys(way for took in (took_a, took_b) if (way := took["way"]))
        yield self.timed_row(spec, "answer", whole, **clocks, paged=paged, way="+".join(ways) or None)
        for tokens, seconds in ((case.prompt, self.prompt_seconds), (case.refine, self.refine_seconds)):
            yield self.row(
                spec, stage="prefill", context=tokens, batch=1, metric="seconds", value=digits(seconds), status="ok"
            )
        for timed, stage, pages, took in ((first, "candidates", paged, took_a), (second, "refine", False, took_b)):
            for point in timed.points:
                yield self.row(
                    spec, stage=f"{stage}_step", context=point.context, batch=point.active, paged=pages,
                    median_us=digits(point.step_us), mean_us=digits(point.step_us), launch=timed.launch,
                    tokens_per_s=digits(point.active / point.step_us * 1e6), status="ok", way=took["way"],
                )  # fmt: skip

    def timed_row(self, spec: MethodSpec, stage: str, timed: Timed, **columns: Any) -> Row:
        """`mean_us` is of a step of the phase, and of `answer` the whole time."""
        mean = timed.seconds * 1e6 / (1 if stage == "answer" else timed.steps)
        return self.row(
            spec, stage=stage, launch=timed.launch, cache_state="cold", fixed_length=spec.kind.fixes_length,
            n_samples=timed.samples, median_us=digits(mean), mean_us=digits(mean), metric="seconds",
            value=digits(timed.seconds), tokens_per_s=digits(timed.tokens / timed.seconds), **timed.check.columns(),
            **columns,
        )  # fmt: skip


def _tokens(script: Sequence[Segment]) -> int:
    return sum(part.active * part.steps for part in script)


def memory_bytes(case: GsrCase) -> int:
    """What the case needs at least: weights, both layouts of the candidates' caches, the answer's, work space."""
    config = case.config
    embedding = config.embedding_parameters * element_bytes(case)
    candidates = 2 * kv_bytes(case, case.prompt + max(case.lengths))
    answer = kv_bytes(case, case.refine + case.answer) // case.batch
    return weight_bytes(case) + second_bytes(case) + embedding + config.layers * (candidates + answer) + SCRATCH_BYTES


def run_case(case: GsrCase, specs: Sequence[MethodSpec], bench: Bench, on_step: Report = lambda _: None) -> list[Row]:
    """Both phases with every method of `specs`; a method that fails costs its own rows alone."""
    run = GsrRun(case, specs, bench, on_step)
    rows = run_methods(run, specs, bench, lambda able: too_large(memory_bytes(case), bench.device))
    for stage in STAGES:
        rows = with_speedups(rows, step_us, (stage,), stage)
    return rows
