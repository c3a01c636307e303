"""How far advice is off where it can be judged: every measured case predicted without its own rows, and without more.

| level | left out for each case | what it stands for |
|---|---|---|
| case | all rows of the case | another context of a model and batch that were measured |
| batch | all rows of its model at its batch | a batch that was not measured |
| model | all rows of its model | a model that was not measured |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

from .evidence import Measured
from .model import StepModel, Unpredictable

Level = Literal["case", "batch", "model"]
BAND = 0.9  # of the errors lie within a band
LEFT_OUT: dict[Level, Callable[[Measured], Hashable]] = {
    "case": lambda m: m.case.slug,
    "batch": lambda m: (m.case.config.name, m.case.batch),
    "model": lambda m: m.case.config.name,
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A measured step and what was predicted of it without the rows of its level."""

    measured: Measured
    predicted_us: float

    @property
    def error(self) -> float:
        """log(predicted / measured); its size is near the relative error."""
        return log(self.predicted_us / self.measured.us)


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one level: times of steps, and ratios of the best dense step to a sparse one.

    Attributes:
        unpredicted: rows that the others say too little of (no stages are left, say).
    """

    level: Level
    judged: tuple[Judged, ...]
    unpredicted: int

    @property
    def times(self) -> list[float]:
        """Relative errors of times, |log(predicted / measured)|, the smallest first."""
        return sorted(abs(j.error) for j in self.judged)

    @property
    def ratios(self) -> list[float]:
        """The same of speed-ups over the best dense step of the same run."""
        runs: dict[Hashable, list[Judged]] = defaultdict(list)
        for judged in self.judged:
            row = judged.measured.row
            runs[row.case, row.commit, row.started_at].append(judged)
        errors = []
        for run in runs.values():
            dense = [j for j in run if j.measured.spec.is_dense]
            if dense:
                best = min(j.measured.us for j in dense) / min(j.predicted_us for j in dense)
                errors += [abs(j.error + log(best)) for j in run if not j.measured.spec.is_dense]
        return sorted(errors)


def judge(measured: Sequence[Measured], level: Level = "case") -> Errors:
    """Predict every measured step from the rows that its level leaves. Raises Unpredictable where none can be."""
    key = LEFT_OUT[level]
    judged, unpredicted = [], 0
    for left_out in dict.fromkeys(map(key, measured)):
        own = [m for m in measured if key(m) == left_out]
        try:
            model = StepModel([m for m in measured if key(m) != left_out])
            judged += [Judged(m, model.predict(m.case, m.spec).us) for m in own]
        except Unpredictable:
            unpredicted += len(own)
    if not judged:
        raise Unpredictable(f"no measured step can be predicted without its {level}: too few were measured")
    return Errors(level, tuple(judged), unpredicted)


def quantile_of(errors: Sequence[float], share: float) -> float:
    """The error that a share of all does not exceed. `errors`: sorted."""
    return errors[min(int(share * len(errors)), len(errors) - 1)]


def level_of(measured: Sequence[Measured], model: str, batch: int) -> Level:
    """What advice on a model and batch would be judged by."""
    of_model = {m.case.batch for m in measured if m.case.config.name == model}
    return "model" if not of_model else "case" if batch in of_model else "batch"
