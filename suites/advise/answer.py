"""From a case to an answer: tokens/s with a band, the speed-up, the break-even context, memory, a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp

from ...kernels.config import DTYPES, MAX_BLOCKS
from ...kernels.fused.served import unsupported
from ...profiling.ceilings import Ceilings
from ..core.flags import K
from ..core.report import BreakEven, crossing
from ..core.spec import MethodSpec, make_spec, steps_of
from ..decode.cases import DecodeCase
from ..engine.costs import memory_bytes, plan_costs
from .evidence import Measured, gpu_memory
from .model import Prediction, StepModel, Unpredictable
from .validate import BAND, Errors, Level, judge, level_of, quantile_of

BREAK_EVEN = [K * 2**i for i in range(11)]  # contexts between which the break-even is looked for


@dataclass(frozen=True, slots=True)
class Choice:
    """A method in a case: what was predicted of it, and tokens/s of all sequences together, with the band's ends."""

    spec: MethodSpec
    prediction: Prediction
    tokens_per_s: float
    low: float
    high: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one case.

    Attributes:
        speedup, low, high: the best sparse setting over the best dense method, and the band's ends.
        break_even: the context from which it stays faster; None where it wins at none that was tried.
        longest: the longest context that was tried for it, in tokens.
        memory: bytes of the GPU; None where they are not known.
        level: what the band was judged by.
    """

    case: DecodeCase
    dense: Choice
    sparse: Choice
    speedup: float
    low: float
    high: float
    break_even: BreakEven | None
    longest: int
    memory: int | None
    level: Level

    def fits(self, choice: Choice) -> bool:
        """Whether a method fits the GPU's memory; taken for granted where that is not known."""
        return self.memory is None or choice.memory_bytes <= self.memory

    @property
    def verdict(self) -> str:
        """One plain sentence: whether it pays."""
        batch = "1 sequence" if self.case.batch == 1 else f"{self.case.batch} sequences"
        where = f"{batch} of {_tokens(self.case.context)} tokens, {self.case.weights} weights"
        name, memory = self.sparse.spec.label, f"the GPU has {(self.memory or 0) / 1e9:.0f}"
        if not self.fits(self.dense):
            need = min(self.dense.memory_bytes, self.sparse.memory_bytes)
            return f"{where}: does not fit: {need / 1e9:.0f} GB are needed, {memory}."
        if not self.fits(self.sparse):
            need = self.sparse.memory_bytes
            rival = self.dense.spec.label
            return f"{where}: no, stay dense ({rival}): it fits, {name} would need {need / 1e9:.0f} GB, {memory}."
        ratio = f"{self.speedup:.2f}x ({self.low:.2f} to {self.high:.2f})"
        if self.low > 1:
            gain = f"{self.sparse.tokens_per_s:.0f} against {self.dense.tokens_per_s:.0f} tokens/s"
            return f"{where}: yes, {name} pays: {gain}, {ratio}."
        if self.high < 1:
            start = self._break_even("it wins from about {}")
            return f"{where}: no, stay dense ({self.dense.spec.label}): {name} would be {ratio}; {start}."
        start = self._break_even("break-even near {}, within the band")
        return f"{where}: too close to tell: {name} would be {ratio}; stay dense unless you measure it; {start}."

    def floor_speedup(self, ceilings: Ceilings) -> float:
        """What the floors of both steps allow."""
        dense, sparse = (plan_costs(self.case, c.spec).floor_us(ceilings) for c in (self.dense, self.sparse))
        return dense / sparse

    def _break_even(self, words: str) -> str:
        if self.break_even is None:
            return f"it does not win at any context up to {_tokens(self.longest)}"
        return words.format(f"{_tokens(round(self.break_even.tokens / K) * K or K)} tokens")


class Advisor:
    """Answers from the measured rows of one GPU."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        """Raises Unpredictable where too little was measured."""
        self.measured = measured
        self.model = StepModel(measured)
        self._errors: dict[Level, Errors] = {}

    def errors(self, level: Level) -> Errors:
        """Of predictions without the rows of a level; of the next finer level where the rows do not allow it."""
        if level not in self._errors:
            try:
                self._errors[level] = judge(self.measured, level)
            except Unpredictable:
                if level == "case":
                    raise
                self._errors[level] = self.errors("batch" if level == "model" else "case")
        return self._errors[level]

    @cached_property
    def device(self) -> str:
        """The GPU's name, as rows have it."""
        return self.measured[0].row.device or "an unknown GPU"

    @cached_property
    def memory(self) -> int | None:
        """Bytes of the GPU; None where they are not known."""
        return gpu_memory(self.measured)

    def dense_specs(self) -> list[MethodSpec]:
        """The dense methods that were measured here."""
        names = dict.fromkeys(m.spec.name for m in self.measured if m.spec.is_dense)
        return [make_spec(name) for name in names]

    def sparse_specs(self) -> list[MethodSpec]:
        """ReSA's forms that were measured here, at the settings that their names mean."""
        names = dict.fromkeys(m.spec.name for m in self.measured if steps_of(m.spec.name) == "resa")
        return [make_spec(name) for name in names]

    def answer(self, case: DecodeCase, sparse: Sequence[MethodSpec] = ()) -> Answer:
        """Of one case; of several sparse settings (by default ReSA's forms) the fastest. Raises Unpredictable."""
        level = level_of(self.measured, case.config.name, case.batch)
        errors = self.errors(level)
        best = self._best(case, self.dense_specs(), errors)
        rival = self._best(case, list(sparse) or self.sparse_specs(), errors)
        band = exp(quantile_of(errors.ratios, BAND))
        ratio = best.prediction.us / rival.prediction.us
        start, longest = self.break_even(case, rival.spec)
        return Answer(case, best, rival, ratio, ratio / band, ratio * band, start, longest, self.memory, level)

    def break_even(self, case: DecodeCase, spec: MethodSpec) -> tuple[BreakEven | None, int]:
        """The context from which a setting stays ahead of dense decoding, and the longest tried, in tokens.

        Batch and weights are the case's.
        """
        points = []
        for context in BREAK_EVEN:
            at = replace(case, context=context)
            if runs(at, spec):
                dense = min(self.model.predict(at, rival).us for rival in self.dense_specs())
                points.append((context, dense / self.model.predict(at, spec).us))
        contexts, tokens = [context for context, _ in points], crossing(points)
        start = None if tokens is None else BreakEven(tokens, tokens <= min(contexts))
        return start, max(contexts, default=case.context)

    def _best(self, case: DecodeCase, specs: Sequence[MethodSpec], errors: Errors) -> Choice:
        able = [spec for spec in specs if runs(case, spec)]
        if not able:
            names = ", ".join(spec.label for spec in specs) or "none that was measured"
            raise Unpredictable(f"{case.slug}: no method serves it ({names}; at most {MAX_BLOCKS} blocks a sequence)")
        spec, prediction = min(((s, self.model.predict(case, s)) for s in able), key=lambda pair: pair[1].us)
        rate, band = case.batch / prediction.us * 1e6, exp(quantile_of(errors.times, BAND))
        return Choice(spec, prediction, rate, rate / band, rate * band, memory_bytes(case, [spec]))


def runs(case: DecodeCase, spec: MethodSpec) -> bool:
    """Whether a method serves a case, as far as shapes say it."""
    if spec.is_dense:
        return True
    if spec.config.blocks(case.context) > MAX_BLOCKS or case.context <= spec.period:
        return False
    return spec.name != "resa-fused" or unsupported(case.shape, spec.config, DTYPES[case.dtype]) is None


def _tokens(count: int) -> str:
    return f"{count // K}K" if count % K == 0 else str(count)
