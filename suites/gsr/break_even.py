"""Whether a phase's steps are sparse: by times predicted from committed rows of this GPU. Nothing is timed for it.

Below the break-even context (which depends on batch, weights and GPU) a sparse step takes longer than a dense one, and
costs quality. `advise`'s model predicts both steps at the contexts of the phase; the sums decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..advise.answer import runs
from ..advise.command import WAYS
from ..advise.evidence import available_gpus, read_measured
from ..advise.model import StepModel, Unpredictable
from ..core.spec import MethodSpec
from ..decode.cases import DecodeCase
from .cases import GsrCase, Segment
from .phase import Point, contexts, integrate

PAYS = 0.02  # of a phase's time, that sparse steps must save: less is within what two runs differ
DENSE = "dense"  # way of a phase whose steps are dense, though the method is sparse
CHOOSES = "resa"  # the method that takes the faster way; a way that is named (`resa-fused`) stays what it is


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of a phase.

    Attributes:
        ratio: seconds of dense steps over those of sparse ones.
        source: the measured step that counts most, for a reader to look up.
    """

    ratio: float
    source: str

    @property
    def pays(self) -> bool:
        """Whether steps are to be sparse."""
        return self.ratio >= 1 + PAYS

    @property
    def steps(self) -> str:
        """What a plan says."""
        kind = "sparse" if self.pays else DENSE
        return f"{kind} steps, since sparse ones are predicted {self.ratio:.2f}x (from {self.source})"

    @property
    def reason(self) -> str:
        """Why steps are dense."""
        return (
            f"dense below break-even: sparse steps are predicted {self.ratio:.2f}x, {1 + PAYS:.2f}x is wanted "
            f"(from {self.source}; --always-sparse runs them)"
        )


@cache
def model_of(device: str) -> StepModel | None:
    """Fitted to the committed rows of a GPU by this name; None where there are none, or too few."""
    for gpu in available_gpus():
        try:
            measured = read_measured(gpu)
            if measured[0].row.device == device:
                return StepModel(measured)
        except (Unpredictable, ValueError):
            continue
    return None


def predict(
    model: StepModel, case: GsrCase, spec: MethodSpec, dense: MethodSpec, prompt: int, script: Sequence[Segment]
) -> Predicted | None:
    """Of a phase's script after a prompt; None where the rows do not hold what it needs.

    (Products other than ours are left out of the rows: they shorten both steps alike, so that the truth is a little
    more in favour of sparse steps.)
    """
    ways = [replace(spec, name=way) for way in WAYS]
    whole = DecodeCase(case.model, case.config, 1, prompt + script[-1].last, case.weights, case.dtype)
    try:
        seconds = {kinds: _seconds(model, whole, kinds, case, prompt, script) for kinds in ((dense,), tuple(ways))}
        support = model.predict(replace(whole, batch=script[0].active), dense).support
    except Unpredictable:
        return None
    dense_s, sparse_s = seconds.values()
    return Predicted(dense_s / sparse_s, f"{support[0].case.slug}, {support[0].source}" if support else "no near row")


def _seconds(
    model: StepModel, whole: DecodeCase, kinds: Sequence[MethodSpec], case: GsrCase, prompt: int,
    script: Sequence[Segment],
) -> float:  # fmt: skip
    """Of a phase by the fastest of these at each point. Raises Unpredictable."""

    def step_us(active: int, context: int) -> float:
        at = replace(whole, batch=active, context=max(context, kinds[0].period + 1))
        times = [model.predict(at, spec).us for spec in kinds if runs(at, spec)]
        if not times:
            raise Unpredictable(f"{at.slug}: no method serves it")
        return min(times)

    return sum(
        integrate(part, [Point(part.active, c, step_us(part.active, c)) for c in contexts(part, prompt, case.points)])
        for part in script
    )
