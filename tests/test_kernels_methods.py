"""Whole methods through the registry: their steps and rectification against fp64, and against one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import (
    DEVICE,
    DTYPES,
    NAN,
    assert_summaries,
    empty_chunk,
    empty_step,
    make_cache,
    make_method,
    random,
    same,
)
from method_cases import CHUNK, CONFIG, make, run, written
from resa_bench.kernels import (
    AttentionShape,
    ChunkTensors,
    KVCache,
    SparseConfig,
    Stage,
    StepTensors,
    build_summaries,
    get_method,
    register,
    registered,
    write_tokens,
)
from resa_bench.kernels.attention.selection import selection_reference
from resa_bench.kernels.attention.sparse_decode import sparse_reference
from resa_bench.kernels.config import ceil_div
from resa_bench.kernels.exact import UNIT_ROUNDOFF
from resa_bench.kernels.method import DenseLayer
from resa_bench.kernels.pipeline import SparseLayer
from resa_bench.kernels.selectors.window import sink_window_reference
from resa_bench.suites.engine.gate import compare
from resa_bench.suites.micro.cases import ModelShape
from resa_bench.suites.micro.checks import check_rectify, check_step

SPARSE = {
    "resa": ("resa", {}),
    "resa-per-head": ("resa", {"gqa_policy": "per-head"}),
    "resa-all-heads-meanstd": ("resa", {"gqa_policy": "all-heads", "summary_kind": "meanstd"}),
    "resa-b64": ("resa", {"block_size": 64, "min_blocks": 1}),
    "sparse": ("sparse", {}),
    "resa-torch": ("resa-torch", {}),
    "resa-torch-per-head": ("resa-torch", {"gqa_policy": "per-head"}),
    "quest-per-head": ("quest", {"gqa_policy": "per-head", "budget_tokens": 48}),
    "quest-group-sum": ("quest", {"gqa_policy": "group-sum", "budget_tokens": 48}),
    "sink-window": ("sink-window", {}),
    "oracle": ("oracle", {}),
    "resa-fp8": ("resa", {"summary_dtype": "fp8"}),
    "resa-torch-fp8-meanstd": ("resa-torch", {"summary_dtype": "fp8", "summary_kind": "meanstd"}),
}
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "triton-dense": ("triton-dense", {}),
    "torch-dense": ("torch-dense", {}),
}
METHODS = SPARSE | DENSE
RAGGED = {"ragged": (101, 38), "one-token": (1, 17), "whole-blocks": (96, 64)}


@pytest.mark.thinned(2)
@pytest.mark.sanitizer
@pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.slow
def test_step(method: tuple[str, dict], lengths: Sequence[int]) -> None:
    """The output is attention over the blocks it says it read, and those are the best of its scores."""
    layer, inputs = make(method[0], DTYPES[-1], lengths, **method[1])
    check = check_step(layer, inputs, written(layer, inputs))
    assert 0 < check.budget_used <= 1


@pytest.mark.parametrize("method", [METHODS[n] for n in ("resa", "quest-per-head", "triton-dense")], ids=lambda m: m[0])
@pytest.mark.parametrize("heads", [ModelShape(2, 2, 128), ModelShape(14, 2, 64)], ids=["g1-d128", "g7-d64"])
@pytest.mark.parametrize("page_size", [None, 64], ids=["contiguous", "paged"])
@pytest.mark.slow
def test_step_of_other_shapes(method: tuple[str, dict], heads: ModelShape, page_size: int | None) -> None:
    layer, inputs = make(method[0], DTYPES[0], (70, 33), heads=heads, page_size=page_size, **method[1])
    check_step(layer, inputs, written(layer, inputs))


@pytest.mark.parametrize("name", ["resa", "resa-torch", "sink-window", "oracle", "triton-dense", "torch-dense"])
@pytest.mark.slow
def test_sequences_without_a_token(name: str) -> None:
    """Idle slots of a batch have length 0: zeros out, and the neighbours are right."""
    layer, inputs = make(name, DTYPES[-1], (0, 38))
    out = run(layer, inputs.step).clone()
    alone_layer, alone = make(name, DTYPES[-1], (38, 38))
    assert torch.equal(out[1], run(alone_layer, alone.step)[1])
    assert not out[0].any()


@pytest.mark.parametrize("method", SPARSE.values(), ids=SPARSE)
@pytest.mark.slow
def test_selection_is_of_the_right_size(method: tuple[str, dict]) -> None:
    layer, inputs = make(method[0], DTYPES[-1], **method[1])
    run(layer, inputs.step)
    selection, config = layer.selection(), replace(CONFIG, **method[1])
    assert selection is not None
    assert selection.block_size == config.block_size
    for b, length in enumerate(inputs.cache.lengths.tolist()):
        lists, n = selection.lists[b].tolist(), config.selected(length)
        newest = config.blocks(length) - 1
        for row in lists:
            assert row[:n] == sorted(set(row[:n]))
            assert row[n:] == [-1] * (len(row) - n)
            assert row[n - 1] == newest, "the newest block is always read"
            assert row[0] >= 0


@pytest.mark.parametrize("method", [SPARSE["resa"], SPARSE["resa-torch"]], ids=["resa", "resa-torch"])
def test_selecting_everything_is_dense(method: tuple[str, dict], dtype: torch.dtype) -> None:
    """With r = 1 a sparse step meets the budget of dense attention."""
    layer, inputs = make(method[0], dtype, active_ratio=1.0)
    exact = written(layer, inputs)
    out = run(layer, inputs.step)
    for b, wanted in enumerate(exact):
        assert bool(((out[b].double() - wanted.out[0]).abs() <= wanted.budget(dtype)[0]).all())


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize("policy", ["group-mean", "group-sum", "per-head", "all-heads"])
@pytest.mark.slow
def test_triton_and_torch_select_the_same_blocks(policy: str, kind: str) -> None:
    """On small integers every score is exact (groups of 2, blocks of 8 tokens), so ties must agree too."""
    config = replace(CONFIG, block_size=8, gqa_policy=policy, summary_kind=kind)
    shape, dtype = AttentionShape(2, 4, 2, 16), DTYPES[-1]
    selections = []
    for name in ("resa", "resa-torch"):
        cache = make_cache([101, 38], 2, 16, dtype=dtype, capacity=128)
        step = empty_step(shape, dtype)
        generator = torch.Generator().manual_seed(0)
        for x in (cache.k, step.q, step.k):
            x.copy_(torch.randint(-1, 2, x.shape, generator=generator))
        step.v.zero_()
        if kind == "meanstd":  # exact too if a block's tokens are one vector with either sign: mean 0, deviation |it|
            sign = torch.tensor([1.0, -1.0], device=DEVICE, dtype=dtype).repeat(64)
            cache.k.copy_(cache.k[:, :, ::8].repeat_interleave(8, 2) * sign[None, None, :, None])
        layer = make_method(name, shape, config, dtype).prepare(cache)
        run(layer, step)
        selections.append((layer.work.scores.clone(), layer.work.lists.clone()))
    for b, length in enumerate((101, 38)):
        scores = [x[0][b, :, : config.blocks(length)] for x in selections]
        assert torch.equal(*scores)
        if length == 101:
            assert all(len(row.unique()) < len(row) for row in scores[0]), "no ties"
    assert torch.equal(selections[0][1], selections[1][1])


def test_sink_window() -> None:
    for sink, lengths in ((1, (101, 38)), (2, (1, 17)), (0, (64, 5)), (9, (101, 80))):
        layer, inputs = make("sink-window", DTYPES[-1], lengths, sink_blocks=sink)
        run(layer, inputs.step)
        for b, length in enumerate(lengths):
            wanted = sink_window_reference(length, replace(CONFIG, sink_blocks=sink)).tolist()
            row = layer.selection().lists[b, 0].tolist()
            assert row == wanted + [-1] * (len(row) - len(wanted))
            assert wanted == sorted(set(wanted))
            assert len(wanted) == CONFIG.selected(length)


def test_oracle_scores_are_exact_masses() -> None:
    """Softmax mass per block, summed over the group; logits are rounded to the inputs' precision."""
    dtype = DTYPES[-1]
    layer, inputs = make("oracle", dtype)
    run(layer, inputs.step)
    for b, length in enumerate(inputs.cache.lengths.tolist()):
        q = inputs.step.q[b].double().view(2, 3, 64)
        logits = q @ inputs.cache.k[b, :, :length].double().transpose(1, 2) / 8
        mass = torch.softmax(logits, -1).sum(1)
        wanted = torch.stack([part.sum(1) for part in mass.split(16, 1)], 1)[:, :-1]
        masses = layer.work.scores[b, :, : wanted.shape[1]].double()
        logit_error = 2 * torch.finfo(dtype).eps * float(logits.abs().max()) + 1e-5
        assert bool(((masses - wanted).abs() <= (2 * logit_error) * wanted + 1e-7).all())
        n = CONFIG.selected(length)
        assert torch.equal(
            layer.work.lists[b, :, :n], selection_reference(layer.work.scores[b, :, : CONFIG.blocks(length)], n)
        )


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", ["resa", "resa-torch"])
def test_rectify(name: str, dtype: torch.dtype) -> None:
    layer, inputs = make(name, dtype)
    check = check_rectify(layer, inputs.chunk)
    assert 0 < check.budget_used <= 1


def test_rectify_of_more_tokens_than_there_are(dtype: torch.dtype) -> None:
    layer, inputs = make("resa", dtype, (38, 2))
    check_rectify(layer, inputs.chunk)
    assert not layer.rectified(inputs.chunk)[1, : CHUNK - 2].any()


@pytest.mark.parametrize("name", ["resa", "resa-torch"])
@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.slow
def test_rectification_leaves_what_dense_decoding_would(name: str, kind: str) -> None:
    """Sparse steps write approximate K/V (here: large ones, so that every maximum grows), rectification the right ones.

    Afterwards cache and summaries are those of a cache that never saw the approximate tokens.
    """
    dtype = DTYPES[0] if name == "resa" else DTYPES[-1]
    start, capacity = (27, 8), 40
    shape = AttentionShape(2, 4, 2, 64)
    cache = make_cache(start, dtype=dtype, capacity=capacity)
    config = replace(CONFIG, summary_kind=kind)
    right = random(2, 2, CHUNK, 2, 64, dtype=dtype, seed=9)

    dense = KVCache(cache.k.clone(), cache.v.clone(), cache.lengths + CHUNK)
    write_tokens(dense, right[0], right[1])

    layer = make_method(name, shape, config, dtype).prepare(cache)
    step = empty_step(shape, dtype)
    for t in range(CHUNK):
        for x in (step.q, step.k, step.v):
            x.copy_(50 * random(*x.shape, dtype=dtype, seed=20 + t))
        cache.lengths.add_(1)
        run(layer, step)
    assert not same(cache.k, dense.k)
    chunk = empty_chunk(shape, CHUNK, dtype)
    chunk = ChunkTensors(random(*chunk.q.shape, dtype=dtype, seed=30), right[0], right[1], chunk.out)
    for stage in layer.rectify_stages(chunk):
        stage.run()
    assert same(cache.k, dense.k)
    assert same(cache.v, dense.v)
    if name == "resa":
        fresh = make_method(name, shape, config, dtype).prepare(dense)
        for b, length in enumerate(cache.lengths.tolist()):
            blocks = config.blocks(length)
            assert torch.equal(layer.summaries.data[b, :, :blocks], fresh.summaries.data[b, :, :blocks])
        layer.summaries.data.fill_(NAN)
        build_summaries(cache, layer.summaries)
        assert_summaries(cache, layer.summaries)


@pytest.mark.parametrize("name", ["resa", "resa-torch"])
@pytest.mark.slow
def test_steps_keep_summaries_right(name: str) -> None:
    """Decoding across block borders leaves the summaries that building them anew would give."""
    dtype = DTYPES[-1]
    shape, config = AttentionShape(1, 2, 2, 16), SparseConfig(block_size=8, min_blocks=2)
    cache = make_cache([13], 2, 16, dtype=dtype, capacity=32)
    layer = make_method(name, shape, config, dtype).prepare(cache)
    step = empty_step(shape, dtype)
    for t in range(6):
        for x in (step.q, step.k, step.v):
            x.copy_(random(*x.shape, dtype=dtype, seed=t))
        cache.lengths.add_(1)
        assert bool(run(layer, step).isfinite().all())
    blocks = config.blocks(19)
    kept = layer.summaries.data[:, :, :blocks].clone()
    layer.summaries.data.fill_(NAN)
    build_summaries(cache, layer.summaries)
    assert torch.equal(kept, layer.summaries.data[:, :, :blocks])


class FewerLayer(SparseLayer):
    """A selector that takes only the first two blocks of its list."""

    def choose_stages(self, step: StepTensors) -> tuple[Stage, ...]:
        return (*super().choose_stages(step), Stage("fewer", self.cut))

    def cut(self) -> None:
        self.work.counts.clamp_(max=2)


def test_counts_of_another_selector_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, shape = make_cache([101, 38], dtype=DTYPES[0], capacity=112), AttentionShape(2, 6, 2, 64)
    method = make_method("resa", shape, CONFIG, DTYPES[0])
    monkeypatch.setattr(type(method), "layer_class", FewerLayer)
    layer, step = method.prepare(cache), empty_step(shape, DTYPES[0])
    for seed, tensor in enumerate((step.q, step.k, step.v)):
        tensor.copy_(random(*tensor.shape, dtype=tensor.dtype, seed=seed))
    for stage in layer.stages(step):
        stage.run()
    lists = layer.work.lists[:, :, :2]
    keys, values = cache.gather()
    for b, length in enumerate((101, 38)):
        exact = sparse_reference(step.q[b], keys[b], values[b], length, lists[b], block_size=16)
        compare("two blocks", step.out[b], exact, step.out.dtype)


@pytest.mark.slow
def test_layers_share_work_space() -> None:
    """Two layers of one method use the same buffers, one after the other."""
    dtype = DTYPES[-1]
    shape = AttentionShape(2, 4, 2, 64)
    method = make_method("resa", shape, CONFIG, dtype)
    caches = [make_cache([50, 20], dtype=dtype, seed=s) for s in (0, 1)]
    layers = [method.prepare(cache) for cache in caches]
    assert layers[0].work is layers[1].work
    outs = []
    for layer in (*layers, layers[0]):
        step = empty_step(shape, dtype)
        for i, x in enumerate((step.q, step.k, step.v)):
            x.copy_(random(*x.shape, dtype=dtype, seed=i))
        outs.append(run(layer, step))
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])


def test_torch_masks_the_tail_of_a_block_not_listed_last(dtype: torch.dtype) -> None:
    """Without local blocks the newest block need not be on a list; what lies past the end must not matter then."""
    shape = AttentionShape(1, 8, 4, 16)
    config = SparseConfig(block_size=8, min_blocks=2, active_ratio=0.01, local_blocks=0)
    cache = make_cache([29], 4, 16, dtype=dtype, capacity=32)
    layer = make_method("resa-torch", shape, config, dtype).prepare(cache)
    step = empty_step(shape, dtype)
    for i, x in enumerate((step.q, step.k, step.v)):
        x.copy_(random(*x.shape, dtype=dtype, seed=i))
    out = run(layer, step)
    newest = (layer.selection().lists == 3).any(-1)
    assert bool(newest.any())
    assert not bool(newest.all())
    assert bool(out.isfinite().all())


# The registry.


def test_registry() -> None:
    names = registered()
    assert {name for name, _ in METHODS.values()} <= set(names)
    assert all(get_method(name) is cls and cls.name == name for name, cls in names.items())
    with pytest.raises(KeyError, match=r"no method 'reza'; known are resa-torch"):
        get_method("reza")
    with pytest.raises(ValueError, match=r"'resa' is registered already, by Resa"):
        register("resa")(get_method("triton-dense"))
    assert get_method("triton-dense").name == "triton-dense"


def test_only_resa_rectifies() -> None:
    for name in ("sparse", "quest", "sink-window", "triton-dense"):
        layer, inputs = make(name, DTYPES[-1])
        assert layer.chunk_kernel is None
        assert layer.rectify_stages(inputs.chunk) == ()
        assert layer.rectify_traffic(CHUNK).bytes == 0


def test_dense_layer_is_a_step() -> None:
    """What rivals build on: `append` and `attend` in order, no selection."""
    cache = make_cache([5], dtype=DTYPES[-1])
    calls = []
    layer = DenseLayer(cache, 2, lambda step: lambda: calls.append("attend"), lambda *a: calls.append("append"))
    for stage in layer.stages(empty_step(AttentionShape(1, 2, 2, 64), DTYPES[-1])):
        stage.run()
    assert calls == ["append", "attend"]
    assert layer.selection() is None
    layer.overwrite(empty_chunk(AttentionShape(1, 2, 2, 64), CHUNK, DTYPES[-1]))
    assert calls == ["append", "attend", "append"]


def test_only_rivals_that_fix_their_length_say_so() -> None:
    assert {n for n, m in registered().items() if m.fixes_length} == {"sdpa-cudnn", "sdpa-flash", "flashinfer"}


def test_traffic_of_a_step() -> None:
    """Bytes of a sparse step, counted by hand: the union of the lists, a partly filled last block as it is."""
    layer, inputs = make("resa", DTYPES[-1], (101,), heads=ModelShape(6, 2, 64))
    run(layer, inputs.step)
    size = inputs.cache.k.element_size()
    tokens = sum(
        min(16, 101 - 16 * block) for row in layer.selection().lists[0].tolist() for block in row if block >= 0
    )
    parts = layer.traffic()
    entries = 4 * 2 * CONFIG.selected(101)
    assert parts["attend"].bytes == entries + 2 * tokens * 64 * size + 2 * 6 * 64 * size
    assert parts["append"].bytes == 4 * 2 * 64 * size + 2 * 2 * 64 * size
    dense = make("triton-dense", DTYPES[-1], (101,))[0].traffic()
    assert dense["attend"].bytes == 2 * 101 * 2 * 64 * size + 2 * 6 * 64 * size
    assert dense["attend"].flops == 4 * 101 * 6 * 64
    assert parts["score"].bytes >= 2 * ceil_div(101, 16) * 2 * 64 * size


def test_roundings_are_known_for_every_dtype() -> None:
    assert set(UNIT_ROUNDOFF) >= set(DTYPES)
