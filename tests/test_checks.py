"""The gate before any time is taken must be able to fail: outputs, selections and summaries that were spoilt."""

from __future__ import annotations

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
from kernel_cases import DTYPES, NAN
from method_cases import make, run, written
from resa_bench.kernels import ChunkTensors, Layer, Stage, StepTensors
from resa_bench.kernels.pipeline import SparseLayer
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.engine.gate import check_selection
from resa_bench.suites.micro.checks import check_rectify, check_step
from torch import Tensor


class Spoilt(Layer):
    """A layer with one stage more, which spoils what the others left."""

    def __init__(self, inner: Layer, spoil) -> None:
        self.inner, self.cache, self.spoil = inner, inner.cache, spoil

    def stages(self, step: StepTensors) -> tuple[Stage, ...]:
        return (*self.inner.stages(step), Stage("spoil", lambda: self.spoil(self.inner, step.out)))

    def rectify_stages(self, chunk: ChunkTensors) -> tuple[Stage, ...]:
        spoil = Stage("spoil", lambda: self.spoil(self.inner, self.rectified(chunk)))
        return (*self.inner.rectify_stages(chunk), spoil)

    def rectified(self, chunk: ChunkTensors) -> Tensor:
        return self.inner.rectified(chunk)

    def selection(self):
        return self.inner.selection()

    def traffic(self):
        return self.inner.traffic()


def drop_block(layer: Layer, out: Tensor) -> None:
    """The output stays, the list says that one block less was read."""
    assert isinstance(layer, SparseLayer)
    layer.work.lists[0, 0, 0] = -1


SPOILS = {
    "scaled": lambda layer, out: out.mul_(1.05),
    "one-element": lambda layer, out: out[0, 0, :1].add_(0.5),
    "unwritten": lambda layer, out: out.view(-1)[-1:].fill_(NAN),
    "heads-swapped": lambda layer, out: out.copy_(out.roll(1, -2)),
    "another-sequence": lambda layer, out: out.copy_(out.roll(1, 0)),
}


@pytest.mark.parametrize("name", ["resa", "triton-dense"])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
@pytest.mark.slow
def test_check_step_catches(name: str, spoil) -> None:
    layer, inputs = make(name, DTYPES[0], (101, 38))
    exact = written(layer, inputs)
    with pytest.raises(CheckFailed, match=r"^attention"):
        check_step(Spoilt(layer, spoil), inputs, exact)


def test_check_step_catches_a_block_that_was_not_read() -> None:
    layer, inputs = make("resa", DTYPES[-1])
    with pytest.raises(CheckFailed, match=r"^attention, sequence 0 over its blocks"):
        check_step(Spoilt(layer, drop_block), inputs, written(layer, inputs))


@pytest.mark.parametrize("spoil", [SPOILS["scaled"], SPOILS["unwritten"]], ids=["scaled", "unwritten"])
def test_check_rectify_catches(spoil) -> None:
    layer, inputs = make("resa", DTYPES[-1])
    with pytest.raises(CheckFailed, match=r"^rectif"):
        check_rectify(Spoilt(layer, spoil), inputs.chunk)


def test_check_selection_catches() -> None:
    """A wrong score, a worse block, a wrong local block, padding that is not -1."""
    layer, inputs = make("resa", DTYPES[-1])
    assert isinstance(layer, SparseLayer)
    run(layer, inputs.step)
    check_selection(layer, inputs.step.q)
    work = layer.work
    unread = min(set(range(6)) - set(work.lists[0, 0].tolist()))
    for tensor, index, value, message in (
        (work.scores, (0, 0, 1), float(work.scores[0, 0, 1]) + 1, "error budget"),
        (work.scores, (0, 0, 6), 1e9, "local blocks"),
        (work.lists, (0, 0, 0), unread, "not the best"),
        (work.lists, (1, 1, -1), 0, "not the best"),
    ):
        before = tensor[index].clone()
        tensor[index] = value
        with pytest.raises(CheckFailed, match=message):
            check_selection(layer, inputs.step.q)
        tensor[index] = before
    check_selection(layer, inputs.step.q)


def test_check_selection_takes_sequences_without_a_token() -> None:
    layer, inputs = make("resa", DTYPES[-1], (0, 38))
    run(layer, inputs.step)
    check_selection(layer, inputs.step.q)


def test_a_stale_summary_fails_the_check() -> None:
    """A summary that its keys have left behind is caught, though the scores made from it are consistent."""
    layer, inputs = make("resa", DTYPES[-1], (101, 38))
    run(layer, inputs.step)
    layer.summaries.data[0, 0, layer.config.blocks(101) - 1, 1] += 1.0
    with pytest.raises(CheckFailed, match="summaries: block"):
        check_selection(layer, inputs.step.q)
