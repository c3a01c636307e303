"""Lists that several layers share: layers that follow append while they attend, score nothing and keep nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, NAN, empty_chunk, empty_step, make_cache, make_method, random
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, StepTensors, Unsupported, pipeline
from resa_bench.kernels.attention.merge import Partials
from resa_bench.kernels.attention.sparse_decode import sparse_decode
from resa_bench.kernels.pipeline import SparseLayer
from resa_bench.kernels.portable import TorchSparseLayer
from resa_bench.kernels.selectors import Following, Selector, selectors
from resa_bench.kernels.workspace import BlockSparseLayer
from resa_bench.suites.micro.checks import check_rectify

DTYPE = DTYPES[-1]
LENGTHS = (101, 38)
SHAPE = AttentionShape(2, 6, 2, 64)
CONFIG = SparseConfig(8, active_ratio=0.2, min_blocks=4, selector="shared2")
STEPS = ((101, 38), (102, 39), (105, 42))
"""Lengths, of which the first follow each other as in decoding."""


def caches(count: int, layout: str = "contiguous") -> list[KVCache]:
    """Of layers that share their lengths."""
    made = [make_cache(LENGTHS, dtype=DTYPE, capacity=128, layout=layout, seed=seed) for seed in range(count)]
    return [replace(cache, lengths=made[0].lengths) for cache in made]


def bound(
    count: int, config: SparseConfig = CONFIG, name: str = "resa-chain", layout: str = "contiguous"
) -> list[BlockSparseLayer]:
    """Layers of one method."""
    method = make_method(name, SHAPE, config, DTYPE)
    return [method.prepare(cache) for cache in caches(count, layout)]


def filled_step(seed: int) -> StepTensors:
    """Random q, k and v; an output that is NaN."""
    step = empty_step(SHAPE, DTYPE)
    for i, x in enumerate((step.q, step.k, step.v)):
        x.copy_(random(*x.shape, dtype=DTYPE, seed=10 * seed + i))
    step.out.fill_(NAN)
    return step


def decode(layers: Sequence[BlockSparseLayer], steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs and lists of each layer in each of so many steps, of which each makes the sequences longer."""
    seen = []
    for t in range(steps):
        layers[0].cache.lengths.add_(1)
        for i, layer in enumerate(layers):
            step = filled_step(10 * t + i)
            for stage in layer.stages(step):
                stage.run()
            seen.append((step.out, layer.work.lists.clone()))
    return seen


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"selector": "pairs-shared2"}, {"selector": "shared4", "gqa_policy": "per-head"},
        {"gqa_policy": "all-heads", "block_size": 16}, {"local_blocks": 0},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "shared2",
)  # fmt: skip
def test_lists_and_outputs_are_those_of_plain_torch(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by layer, over some steps; followers read what the layer before them chose, in the same memory."""
    config = replace(CONFIG, **changes)
    count = 1 + len(selectors()[config.selector or ""].choosing)
    runs = []
    for reason in (None, "no kernels"):
        monkeypatch.setattr(pipeline, "can_run_on", lambda device, reason=reason: reason)
        layers = bound(count, config)
        assert {type(layer) for layer in layers} == {TorchSparseLayer if reason else SparseLayer}
        runs.append((layers, decode(layers, 3)))
    (kernels, ours), (plain, wanted) = runs
    for i, ((out, lists), (other, others)) in enumerate(zip(ours, wanted, strict=True)):
        assert torch.equal(lists, others), f"layer {i % count}"
        torch.testing.assert_close(out, other, rtol=1e-2, atol=1e-2)
        follows = isinstance(kernels[i % count].selector, Following)
        assert follows == torch.equal(lists, ours[i - 1][1]) or not i
    for ours_of_layer, of_layer in zip(kernels, plain, strict=True):
        assert ours_of_layer.traffic() == of_layer.traffic()
        for ours_kept, kept in ((ours_of_layer.cache.k, of_layer.cache.k), (ours_of_layer.cache.v, of_layer.cache.v)):
            assert torch.equal(ours_kept.nan_to_num(), kept.nan_to_num())


@pytest.mark.parametrize("selector", ["shared2", "pairs-shared2"])
def test_followers_keep_nothing_and_launch_two_kernels(selector: str) -> None:
    first, second, third = bound(3, replace(CONFIG, selector=selector))
    step = filled_step(0)
    assert [stage.name for stage in second.stages(step)] == ["append+attend", "merge"]
    assert [stage.name for stage in third.stages(step)] == [stage.name for stage in first.stages(step)]
    assert all(stage.graph_safe for stage in second.stages(step))
    assert second.stages(step)[0].blocks is not None
    assert (second.summaries, second.table, second.known) == (None, None, None)
    assert second.work is first.work is third.work
    assert (first.scores_blocks, second.scores_blocks) == (True, False)
    for layer in (first, second):
        for stage in layer.stages(step):
            stage.run()
    whole, less = (layer.traffic()["total"].bytes for layer in (first, second))
    size = second.cache.k.element_size()
    kept = 2 * 2 * 2 * 64 * size if selector == "shared2" else 0  # a summary of each row, written anew
    read = sum(first.selector.score_bytes(SHAPE, CONFIG, size, length) for length in LENGTHS)
    assert whole - less == read + kept > 0
    assert first.rectify_traffic(4).bytes > second.rectify_traffic(4).bytes


@pytest.mark.sanitizer
@pytest.mark.parametrize("layout", ["token-major", "paged"])
def test_attention_writes_the_newest_token_and_no_other(layout: str) -> None:
    layers = bound(2, layout=layout)
    before = [x.clone() for x in layers[1].cache.gather()]
    step = filled_step(3)
    for layer in layers:
        for stage in layer.stages(step):
            stage.run()
    for data, old, new in zip(layers[1].cache.gather(), before, (step.k, step.v), strict=True):
        for b, length in enumerate(LENGTHS):
            old[b, :, length - 1] = new[b]
        assert torch.equal(data.nan_to_num(), old.nan_to_num())


@pytest.mark.sanitizer
def test_nothing_is_written_without_room_or_without_a_token() -> None:
    """A sequence longer than its cache, whose output says so, and an idle slot."""
    layers = bound(2)
    layers[0].cache.lengths.copy_(torch.tensor((129, 0), dtype=torch.int32))
    before = [x.clone() for x in layers[1].cache.gather()]
    step = filled_step(4)
    for layer in layers:
        for stage in layer.stages(step):
            stage.run()
    for data, old in zip(layers[1].cache.gather(), before, strict=True):
        assert torch.equal(data.nan_to_num(), old.nan_to_num())
    assert bool(step.out[0].isnan().all())
    assert not step.out[1].any()


def test_a_token_is_appended_with_counts_alone() -> None:
    """Of settings the kernel would read the query before the kernel that writes k and v has ended."""
    layer, step = bound(1)[0], filled_step(0)
    partials = Partials.allocate(12, 1, 64, DEVICE)
    with pytest.raises(ValueError, match="counts: got settings, expected a tensor where a token is appended"):
        sparse_decode(step.q, layer.cache, layer.work.lists, CONFIG, partials, block_size=8, append=(step.k, step.v))
    with pytest.raises(ValueError, match="k_new"):
        sparse_decode(
            step.q, layer.cache, layer.work.lists, layer.work.counts, partials, block_size=8, append=(step.q, step.v)
        )


def test_a_follower_is_rectified() -> None:
    """Its chunk is written and attended to densely, and the next step sees it."""
    layers = bound(2, replace(CONFIG, selector="pairs-shared2"))
    chunk = empty_chunk(SHAPE, 5, DTYPE)
    for i, x in enumerate((chunk.q, chunk.k, chunk.v)):
        x.copy_(random(*x.shape, dtype=DTYPE, seed=i))
    check_rectify(layers[1], chunk)
    layers[1].refresh(5)
    for b, length in enumerate(LENGTHS):
        assert torch.equal(layers[1].cache.k[b, :, length - 5 : length], chunk.k[b].transpose(0, 1))


@pytest.mark.parametrize("reason", [None, "no kernels"], ids=["kernels", "torch"])
def test_caches_of_other_capacities_are_refused(reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "can_run_on", lambda device: reason)
    method = make_method("resa-chain", SHAPE, CONFIG, DTYPE)
    short, long = (make_cache(LENGTHS, dtype=DTYPE, capacity=capacity) for capacity in (128, 136))
    method.prepare(short)
    with pytest.raises(Unsupported, match="has room for 17 blocks, the layer whose lists it reads for 16; give all"):
        method.prepare(long)
    assert isinstance(method.prepare(short).selector, Following), "what is refused does not count"


@pytest.mark.parametrize("name", ["shared2", "shared4", "pairs-shared2"])
def test_layers_take_turns(name: str) -> None:
    selector = selectors()[name]
    chosen = [not isinstance(selector.of_layer(i, CONFIG), Following) for i in range(28)]
    assert chosen == [selector.choosing[i % len(selector.choosing)] for i in range(28)]
    assert sum(chosen) == selector.choosing_layers(28) < 28
    assert chosen[0]
    assert Selector.choosing == (True,)
