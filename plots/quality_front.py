"""Bytes read against quality: a point a method and setting, and the Pareto front of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..suites.core.analysis import mean_of
from ..suites.core.rows import Row
from ..suites.core.spec import Variant
from .quality_data import QualitySet, kl_error


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """One method and setting.

    Attributes:
        share: of dense attention's bytes, that a step's attention reads (metric `read_share`).
        kl: mean over all steps, nats.
        kl_error: one standard error of it, over texts where rows know it.
        rows: all of the variant.
    """

    share: float
    kl: float
    kl_error: float
    rows: tuple[Row, ...]

    @property
    def variant(self) -> Variant:
        """Of its rows."""
        return self.rows[0].variant


def read_points(quality: QualitySet) -> list[ReadPoint]:
    """The methods whose rows say what they read, least bytes first."""
    points = []
    for rows in quality.lines.values():
        share, kl = mean_of(rows, "read_share"), mean_of(rows, "kl")
        if share is not None and kl is not None:
            points.append(ReadPoint(share, kl, kl_error(rows), tuple(rows)))
    return sorted(points, key=lambda point: (point.share, point.kl))


def least_read(points: Sequence[ReadPoint]) -> list[ReadPoint]:
    """Points that no other beats in bytes and KL at once, by bytes."""
    kept: list[ReadPoint] = []
    for point in sorted(points, key=lambda point: (point.share, point.kl)):
        if not kept or point.kl < kept[-1].kl:
            kept.append(point)
    return kept
