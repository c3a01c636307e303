"""What tables show of metrics, at any size of their means."""

from __future__ import annotations

import pytest
from resa_bench.suites.core.metrics import metrics


@pytest.mark.parametrize(
    ("loss", "shown"),
    [(0.0, "1.000"), (2.5, "12.182"), (13.0, "442413.392"), (20.0, "4.85e+08"), (800.0, "inf"), (1e30, "inf")],
)
def test_perplexity(loss: float, shown: str) -> None:
    (metric,) = (metric for metric in metrics() if metric.name == "loss")
    assert metric.cell(loss) == shown


def test_every_metric_shows_any_mean() -> None:
    for metric in metrics():
        assert metric.cell(None) == ""
        for mean in (-1e300, -1.0, 0.0, 1e-30, 1e300, float("inf")):
            assert len(metric.cell(mean)) <= 12, (metric.name, mean)
