"""Layers in rotation: the steps of several layers, each on a cache of its own, back to back in one graph.

A lone step that follows a flush is no model. There the caches of other layers displace a layer's own, and one layer's
kernels start while the last one's end. So nothing is flushed here; the time is a layer's share of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...kernels import Traffic
from ...kernels.config import ceil_div
from ..engine.gate import Check
from .cases import Case
from .checks import check_step, check_window
from .inputs import Inputs, make_window

if TYPE_CHECKING:
    from .run import Prepared

STATE = "rotation"  # of the cache, in rows
LEAST, MOST = 4, 64  # layers: fewer are no rotation; models have no more
MOST_BYTES = 8 * 2**30  # of keys and values, of all layers


@dataclass(frozen=True, slots=True)
class Rotation:
    """Layers whose steps are one round.

    Attributes:
        check: of the last one's step.
        work: of all of them together.
    """

    layers: int
    check: Check
    work: Traffic

    @property
    def work_of_a_layer(self) -> Traffic:
        """The mean."""
        return Traffic(self.work.bytes // self.layers, self.work.flops // self.layers)


def layers_in_rotation(case: Case, step_bytes: int, flush_bytes: int) -> int:
    """So many that a layer's cache is displaced before its next turn, within LEAST, MOST and MOST_BYTES.

    Args:
        step_bytes: that the cheapest step reads.
        flush_bytes: that displace the cache of the device.
    """
    wanted = min(max(ceil_div(flush_bytes, max(step_bytes, 1)), LEAST), MOST)
    return max(min(wanted, MOST_BYTES // max(case.kv_bytes, 1)), 1)


def make_rotation(inputs: Inputs, layers: int) -> list[Inputs]:
    """Inputs of each layer: one step for all, and caches that hold the same; the first is the case's own."""
    return [inputs, *(replace(inputs, cache=inputs.cache.clone()) for _ in range(layers - 1))]


def bind_rotation(
    prepared: Prepared, case: Case, rotation: Sequence[Inputs], exact: Sequence[Any]
) -> tuple[Callable[[], None], bool, Rotation]:
    """The round of a method: every layer's step, the first layer's as it is bound already.

    Where layers differ (`DecodeMethod.layer_period`), of so many that each kind has its share, if there are enough.

    Returns:
        The round, whether it can be a graph, and what is known of its layers.

    Raises:
        CheckFailed: the last layer's step is too far from the exact one.
    """
    stages, check, work = list(prepared.stages), Check(), prepared.traffic["total"]
    period = prepared.method.layer_period
    count = len(rotation) // period * period or len(rotation)
    for inputs in rotation[1:count]:
        layer = prepared.method.prepare(inputs.cache)
        last = inputs is rotation[count - 1]
        if layer.window > 1:
            window = make_window(inputs, layer.window, case.seed)
            check = check_window(layer, window) if last else check
            stages += layer.window_stages(window)
        else:
            check = check_step(layer, inputs, list(exact)) if last else check
            stages += layer.stages(inputs.step)
        work += layer.traffic()["total"]

    def run() -> None:
        for stage in stages:
            stage.run()

    return run, all(stage.graph_safe for stage in stages), Rotation(count, check, work)
