"""Two runs against each other, row by row: same, faster, slower or unclear, what newly failed, what only one has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .rows import FAILED, IDENTITY, Row, identity
from .spec import Names
from .stages import WHOLE_STEPS

VERDICTS = ("slower", "faster", "unclear", "same")
TOLERANCE = 0.05
"""Relative difference of two times up to which they count as the same, where a command is told nothing else."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One measurement in both files, timed in both."""

    a: Row
    b: Row
    ratio: float  # B's median over A's: above 1, B is slower
    verdict: str  # one of VERDICTS

    def within(self, relative: float) -> bool:
        """Whether the medians differ by at most this share of A's."""
        return _within(self.a, self.b, relative)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs' rows in pairs, and what stands in one of them alone."""

    tolerance: float  # relative
    pairs: tuple[Pair, ...]
    newly_failed: tuple[Row, ...]  # rows of B that failed or ran out of memory, where A had none that did
    status_changes: tuple[tuple[Row, Row], ...]  # in both files, with another status; throttled or not counts too
    only_a: tuple[Row, ...]
    only_b: tuple[Row, ...]
    devices_a: tuple[str, ...]
    devices_b: tuple[str, ...]

    def count(self, verdict: str) -> int:
        """Pairs with this verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)

    def share_within(self, relative: float) -> float:
        """Share of the pairs whose medians differ by at most this. Needs at least one pair."""
        return sum(pair.within(relative) for pair in self.pairs) / len(self.pairs)

    @property
    def exit_code(self) -> int:
        """1 if a whole step got slower or anything newly failed, else 2 if nothing was comparable, else 0.

        Stages of a few microseconds, and eager rows, which time the host, move between runs of one commit: they are
        listed, but decide only where there are no cold whole steps as graphs (then all whole steps do, or all rows).
        """
        if self.newly_failed or any(pair.verdict == "slower" for pair in self.deciding):
            return 1
        return 0 if self.pairs else 2

    @property
    def deciding(self) -> tuple[Pair, ...]:
        """The pairs that decide the exit status."""
        whole = tuple(pair for pair in self.pairs if pair.a.stage in WHOLE_STEPS)
        graphs = tuple(pair for pair in whole if (pair.a.launch, pair.a.cache_state) == ("graph", "cold"))
        return graphs or whole or self.pairs


def verdict(a: Row, b: Row, tolerance: float) -> str:
    """What two timed rows say, by the 95 % intervals of their medians.

    "faster" or "slower" (B than A): the intervals share no point, and the medians differ by more than the tolerance.
    "same": the medians differ by no more than the tolerance, and each interval's half-width is within it too.
    "unclear": anything else, a missing interval included.
    """
    if a.ci_low_us is None or a.ci_high_us is None or b.ci_low_us is None or b.ci_high_us is None:
        return "unclear"
    if _within(a, b, tolerance):
        return "same" if _narrow(a, tolerance) and _narrow(b, tolerance) else "unclear"
    if b.ci_low_us > a.ci_high_us:
        return "slower"
    return "faster" if b.ci_high_us < a.ci_low_us else "unclear"


def compare(a: Iterable[Row], b: Iterable[Row], tolerance: float = 0.02) -> Comparison:
    """Pair the rows of two runs by their identity; of a row that a file has twice, the later counts.

    Args:
        a: the earlier run, or the reference.
        b: the later run, or the one in question.
        tolerance: relative difference of two medians that does not matter, such as 0.02.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance: got {tolerance}, expected a relative difference from 0 to below 1, such as 0.02")
    in_a, in_b = {identity(row): row for row in a}, {identity(row): row for row in b}
    both = [(row, in_b[key]) for key, row in in_a.items() if key in in_b]
    only_b = tuple(row for key, row in in_b.items() if key not in in_a)
    failed = [y for x, y in both if y.status in FAILED and x.status not in FAILED]
    failed += [row for row in only_b if row.status in FAILED and any(_stands_for(row, x) for x in in_a.values())]
    return Comparison(
        tolerance=tolerance,
        pairs=tuple(Pair(x, y, _ratio(x, y), verdict(x, y, tolerance)) for x, y in both if _comparable(x, y)),
        newly_failed=tuple(failed),
        status_changes=tuple((x, y) for x, y in both if x.status != y.status),
        only_a=tuple(row for key, row in in_a.items() if key not in in_b),
        only_b=only_b,
        devices_a=_devices(in_a.values()),
        devices_b=_devices(in_b.values()),
    )


def _ratio(a: Row, b: Row) -> float:
    if not a.time_us or not b.time_us or min(a.time_us, b.time_us) < 0:
        raise ValueError(
            f"times must be above 0, got {a.time_us} and {b.time_us} us ({a.case} {Names([a])[a]} {a.stage})"
        )
    return b.time_us / a.time_us


def _within(a: Row, b: Row, relative: float) -> bool:
    # Not by the ratio: 102 / 100 - 1 is a little more than 0.02.
    return abs((b.time_us or 0.0) - (a.time_us or 0.0)) <= relative * (a.time_us or 0.0)


def _narrow(row: Row, relative: float) -> bool:
    """Whether half the interval is within this share of the time."""
    return ((row.ci_high_us or 0.0) - (row.ci_low_us or 0.0)) / 2 <= relative * (row.time_us or 0.0)


def _comparable(a: Row, b: Row) -> bool:
    """Timed in both. The stages of a decode step have no interval (a trace of few steps, and the remainder)."""
    return a.timed and b.timed and (a.suite != "decode" or a.stage == "total")


def _stands_for(broken: Row, row: Row) -> bool:
    """Whether a failed row is what has become of `row`: it may stand for all stages, and leave settings empty."""
    settings = (name for name in IDENTITY if name != "stage" and getattr(broken, name) is not None)
    return row.status not in FAILED and all(getattr(row, name) == getattr(broken, name) for name in settings)


def _devices(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(sorted({row.device for row in rows if row.device}))
