"""Metrics of a step's quality, an entry each: rows, tables and figures iterate over them.

One more is one more entry: `register_metric(Metric(...))` in a module that RESA_BENCH_PLUGINS names. What a result file
holds already is not measured again for it, unless with --fresh.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Steps:
    """What a method's steps yield beside dense decoding fed the same tokens; N is steps times sequences.

    Attributes:
        dense, method: log-probabilities of the next token, float32 `[N, vocab]`.
        following: int64 `[N]`, the token that comes next.
        kv_errors: float32 `[layers, N]`, the relative 2-norm distance of the new key and value to dense's.
    """

    dense: Tensor
    method: Tensor
    following: Tensor
    kv_errors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of the quality suite.

    Attributes:
        name: in the rows' column `metric`.
        of: from steps to a value each, `[N]`; None: the suite itself measures it, once over all steps.
        average: of a stretch's values, float64 `[steps, B]`, what its row says, a number. Tables and figures take the
            mean of stretches, weighted by their samples.
        heading: of its column in the table; empty: no column. It stands only where a row has the metric.
        shown: from the mean to what the table shows; `form` and `unit` say how.
    """

    name: str
    of: Callable[[Steps], Tensor] | None = None
    average: Callable[[Tensor], Tensor] = torch.mean
    heading: str = ""
    shown: Callable[[float], float] = float
    form: str = ".4f"
    unit: str = ""

    def values(self, steps: Steps) -> Tensor:
        """Float32 `[N]`. Raises ValueError for a metric that gives another shape."""
        assert self.of is not None
        values = self.of(steps).float()
        if values.shape != steps.following.shape:
            shapes = f"gives {list(values.shape)}, expected a value a step, {list(steps.following.shape)}"
            raise ValueError(f"metric {self.name}: {shapes}")
        return values

    def cell(self, mean: float | None) -> str:
        """What the table shows of a mean; empty for None. What is beyond a million has three digits."""
        if mean is None:
            return ""
        value = self.shown(mean)
        return format(value, self.form if abs(value) < 1e6 else ".3g") + self.unit


_metrics: dict[str, Metric] = {}


def register_metric(metric: Metric) -> Metric:
    """Make a metric known to rows, tables and figures. Raises ValueError for a name that is taken."""
    if metric.name in _metrics:
        raise ValueError(f"metric {metric.name!r} is there already; known are {', '.join(_metrics)}")
    _metrics[metric.name] = metric
    return metric


def metrics() -> tuple[Metric, ...]:
    """Every metric in the order of columns."""
    return tuple(_metrics.values())


def step_metrics() -> tuple[Metric, ...]:
    """Those that each step has a value of."""
    return tuple(metric for metric in metrics() if metric.of is not None)


def kl(steps: Steps) -> Tensor:
    """KL(dense || method) of the next token, nats, `[N]`."""
    return (steps.dense.exp() * (steps.dense - steps.method)).sum(-1).clamp(min=0)


def same_top(steps: Steps) -> Tensor:
    """1 where both rank the same token first, `[N]`."""
    return (steps.dense.argmax(-1) == steps.method.argmax(-1)).float()


def loss_of(log_probabilities: Tensor, following: Tensor) -> Tensor:
    """Minus the log-likelihood of the token that follows, nats, `[N]` of `[N, vocab]`."""
    return -log_probabilities.gather(-1, following[:, None])[:, 0]


def perplexity(loss: float) -> float:
    """Of a loss in nats; infinite where it is beyond a float."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def extra_loss(steps: Steps) -> Tensor:
    """The method's loss over dense decoding's, nats, `[N]`."""
    return loss_of(steps.method, steps.following) - loss_of(steps.dense, steps.following)


for _metric in (
    Metric(name="kl", of=kl, heading="KL, nats"),
    Metric(name="recall", heading="recall", form=".1%"),
    Metric(name="read_share", heading="bytes read", form=".1%"),
    Metric(name="top1", of=same_top, heading="same top", form=".1%"),
    Metric(
        name="loss", of=lambda s: loss_of(s.method, s.following), heading="perplexity", shown=perplexity, form=".3f"
    ),
    Metric(name="extra_loss", of=extra_loss),
    Metric(name="kv_error", of=lambda steps: steps.kv_errors.mean(0), heading="K/V error"),
    Metric(name="kv_error_repaired", heading="repaired"),
    Metric(name="kv_exposure", heading="KV seen", form=".2f", unit="x"),
):  # fmt: skip
    register_metric(_metric)
