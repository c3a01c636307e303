"""What a tracer saw, whichever it was: kernels on the device, the host's calls that enqueued them, ranges around these.

A *pass* is one step or rectification: the kernels whose launch lies in its range. Ranges opened at capture do not show
in a replay, but the kernels of a replay are those of an eager pass in the same order. So stages come from an eager
pass, where each kernel has the stage whose range its launch lies in, and a replay's kernels take them over one by one;
where the two sequences differ, or a kernel was launched outside every stage, there is no breakdown. (A table from names
to stages could not tell the kernels apart that serve several stages, such as those of the linear layers.)

A kernel is charged from the end of the kernel before it, or from its own start where that is later: with programmatic
dependent launch a kernel may start early and wait. Charges and gaps add up to the span exactly.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from .ranges import SPANS

UNMARKED = "outside every stage"


class TraceMismatch(RuntimeError):
    """The replay's kernels are not those of the eager pass, or a kernel belongs to no stage."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel (or copy) on the device. Times in microseconds."""

    name: str
    start_us: float
    end_us: float
    stage: str = UNMARKED

    @property
    def duration_us(self) -> float:
        """From its own start, whatever ran before it."""
        return self.end_us - self.start_us


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the host's that enqueued kernels: one, or a whole graph."""

    thread: Hashable
    start_us: float
    end_us: float


@dataclass(frozen=True, slots=True)
class Range:
    """A range that the host opened and closed; `value` is its payload."""

    thread: Hashable
    name: str
    start_us: float
    end_us: float
    value: int | None = None


@dataclass(slots=True)
class Timeline:
    """One trace. A kernel's call is that of its correlation.

    Attributes:
        kernels: each with its correlation.
        calls: by correlation.
        missing: what the tool's report lacks and what is therefore not known, a line each.
    """

    kernels: list[tuple[Kernel, Hashable]] = field(default_factory=list)
    calls: dict[Hashable, Call] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """One step or rectification.

    Attributes:
        kind: "step" or "rectification".
        graph: whether graphs were replayed (then kernels have no stages of their own).
        context: the range's payload.
        kernels: in device order.
        host_us: that the host spent in the range; `call_us` of it in the calls that enqueue.
    """

    kind: str
    graph: bool
    context: int | None
    kernels: tuple[Kernel, ...]
    host_us: float
    call_us: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Mean microseconds of one repetition, by stage, and what the device idled between its first and last kernel."""

    stages_us: dict[str, float]
    gap_us: float
    kernels: int

    @property
    def wall_us(self) -> float:
        """From the start of the first kernel to the end of the last."""
        return sum(self.stages_us.values()) + self.gap_us


class _Spans:
    """Ranges of one thread that do not nest, by where they start."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = sorted(ranges, key=lambda r: r.start_us)
        self._starts = [r.start_us for r in self._ranges]

    def at(self, time_us: float) -> Range | None:
        """The range that is open at this time."""
        i = bisect_right(self._starts, time_us) - 1
        return self._ranges[i] if i >= 0 and time_us <= self._ranges[i].end_us else None


def _by_thread(ranges: Sequence[Range]) -> dict[Hashable, _Spans]:
    of_thread: defaultdict[Hashable, list[Range]] = defaultdict(list)
    for opened in ranges:
        of_thread[opened.thread].append(opened)
    return {thread: _Spans(opened) for thread, opened in of_thread.items()}


def staged_kernels(timeline: Timeline) -> list[tuple[Kernel, Hashable]]:
    """Kernels in device order with the stage that enclosed their launch, and their correlation."""
    stages = _by_thread([r for r in timeline.ranges if r.name not in SPANS])

    def stage(correlation: Hashable) -> str:
        call = timeline.calls.get(correlation)
        spans = stages.get(call.thread) if call else None
        around = spans.at(call.start_us) if call and spans else None
        return around.name if around else UNMARKED

    kernels = [(replace(kernel, stage=stage(c)), c) for kernel, c in timeline.kernels]
    return sorted(kernels, key=lambda pair: pair[0].start_us)


def passes(timeline: Timeline) -> list[Pass]:
    """Every step and rectification in the order they were enqueued; what was launched outside them is left out."""
    spans = _by_thread([r for r in timeline.ranges if r.name in SPANS and r.name != "layer"])
    inside: defaultdict[Range, list[tuple[Kernel, Hashable]]] = defaultdict(list)
    for kernel, correlation in staged_kernels(timeline):
        call = timeline.calls.get(correlation)
        around = spans[call.thread].at(call.start_us) if call and call.thread in spans else None
        if around is not None:
            inside[around].append((kernel, correlation))
    return [_pass(around, inside[around], timeline) for around in sorted(inside, key=lambda r: r.start_us)]


def _pass(around: Range, launched: Sequence[tuple[Kernel, Hashable]], timeline: Timeline) -> Pass:
    """The pass of a range and the kernels launched in it."""
    calls = [timeline.calls[correlation] for correlation in dict.fromkeys(c for _, c in launched)]
    return Pass(
        kind=around.name,
        graph=len(calls) < len(launched),
        context=around.value,
        kernels=tuple(kernel for kernel, _ in launched),
        host_us=around.end_us - around.start_us,
        call_us=sum(call.end_us - call.start_us for call in calls),
    )


def short_name(name: str) -> str:
    """A kernel's name without template arguments and parameters; `copy` for copies, which graphs do by kernels."""
    if name.lower().startswith("memcpy"):
        return "copy"
    plain = re.sub(r"(\(anonymous namespace\)|<unnamed>)::", "", name.removeprefix("void "))
    return re.split(r"[<(]", plain)[0].strip()


def with_stages(replayed: Sequence[Kernel], eager: Sequence[Kernel], repeats: int = 1) -> list[Kernel]:
    """`replayed` (the eager sequence `repeats` times over) with the eager kernels' stages.

    Raises:
        TraceMismatch: another number of kernels, another kernel at some place, or one outside every stage.
    """
    if len(replayed) != repeats * len(eager):
        raise TraceMismatch(f"{len(replayed)} kernels in {repeats} replays, {len(eager)} in an eager pass")
    check_marked(eager)
    out = []
    for i, kernel in enumerate(replayed):
        source = eager[i % len(eager)]
        if kernel.name != source.name:
            raise TraceMismatch(
                f"kernel {i % len(eager)} is {kernel.name} in the replay, {source.name} in the eager pass"
            )
        out.append(replace(kernel, stage=source.stage))
    return out


def check_marked(kernels: Sequence[Kernel]) -> None:
    """Raises TraceMismatch if a kernel belongs to no stage."""
    stray = sorted({kernel.name for kernel in kernels if kernel.stage == UNMARKED})
    if stray:
        raise TraceMismatch(f"kernels launched outside every stage: {', '.join(stray)}")


def charge(kernels: Sequence[Kernel], repeats: int = 1, *, between: bool = False) -> Breakdown:
    """Microseconds by stage and gap per repetition.

    Args:
        kernels: in device order, of `repeats` repetitions of the same number each.
        between: count the gaps between repetitions, too (repetitions that follow each other at once).
    """
    stages: defaultdict[str, float] = defaultdict(float)
    gap, per_repeat = 0.0, len(kernels) // repeats if repeats else 0
    for i, kernel in enumerate(kernels):
        if i == 0 or (i % per_repeat == 0 and not between):
            end = kernel.start_us
        gap += max(0.0, kernel.start_us - end)
        stages[kernel.stage] += max(0.0, kernel.end_us - max(kernel.start_us, end))
        end = max(end, kernel.end_us)
    return Breakdown({k: v / repeats for k, v in stages.items()}, gap / repeats, per_repeat)


def pick(of: Sequence[Pass], kind: str, *, graph: bool) -> list[Pass]:
    """Those passes of a kind ("step" or "rectification") that replayed graphs, or that did not, in their order."""
    return [candidate for candidate in of if candidate.kind == kind and candidate.graph == graph]
