"""The sparse methods in plain torch, where Triton kernels cannot run, beside the same methods on the kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import DEVICE, DTYPES, NAN, dtype_name, empty_chunk, empty_step, make_cache, make_method, random
from resa_bench.kernels import (
    AttentionShape,
    KVCache,
    Layer,
    SparseConfig,
    StepTensors,
    Unsupported,
    build_summaries,
    get_method,
    pipeline,
)
from resa_bench.kernels.attention.selection import selection_reference
from resa_bench.kernels.attention.summaries import Summaries
from resa_bench.kernels.pipeline import SparseLayer, SparseMethod
from resa_bench.kernels.portable import TorchSparseLayer, refresh_torch
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.engine.gate import check_selection
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import check_rectify, check_step, dense_exact
from resa_bench.suites.micro.inputs import Inputs, make_inputs

CONFIG = SparseConfig(active_ratio=0.3, min_blocks=3)
SHAPE = AttentionShape(2, 6, 2, 64)
DTYPE = DTYPES[-1]
METHODS = {
    "quest-per-head": ("quest", {"gqa_policy": "per-head", "budget_tokens": 48}),
    "quest-group-sum": ("quest", {"gqa_policy": "group-sum", "budget_tokens": 48}),
    "sparse": ("sparse", {}),
    "sparse-all-heads-meanstd": ("sparse", {"gqa_policy": "all-heads", "summary_kind": "meanstd"}),
    "sparse-b64": ("sparse", {"block_size": 64, "min_blocks": 1}),
    "sink-window": ("sink-window", {}),
    "sink-window-2": ("sink-window", {"sink_blocks": 2}),
    "oracle": ("oracle", {}),
}
LENGTHS = [(101, 38), (102, 39), (111, 48), (112, 49), (50, 3), (51, 4), (0, 6)]
"""Steps of a ragged batch: over block borders, back to shorter lengths, into an idle slot."""


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that runs no Triton kernels."""
    monkeypatch.setattr(pipeline, "can_run_on", lambda device: f"Triton kernels need a CUDA device, got {device.type}")


def make(name: str, cache: KVCache, **changes: Any) -> TorchSparseLayer:
    """A layer of a method in plain torch."""
    layer = make_method(name, SHAPE, replace(CONFIG, **changes), DTYPE).prepare(cache)
    assert isinstance(layer, TorchSparseLayer)
    return layer


def filled_step(seed: int) -> StepTensors:
    step = empty_step(SHAPE, DTYPE)
    for i, x in enumerate((step.q, step.k, step.v)):
        x.copy_(random(*x.shape, dtype=DTYPE, seed=100 * seed + i))
    return step


def checked(layer: Layer, step: StepTensors) -> None:
    """One step through the gate of the suites."""
    inputs = Inputs(layer.cache, step, empty_chunk(SHAPE, 1, DTYPE))
    layer.stages(step)[0].run()
    check_step(layer, inputs, dense_exact(inputs))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.slow
def test_the_same_lists_as_the_kernels(method: tuple[str, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, while lengths change under bound stages; outputs of both within their budget."""
    name, changes = method
    caches = [make_cache(LENGTHS[0], dtype=DTYPE, capacity=128) for _ in range(2)]
    on_kernels = make_method(name, SHAPE, replace(CONFIG, **changes), DTYPE).prepare(caches[0])
    assert isinstance(on_kernels, SparseLayer)
    monkeypatch.setattr(pipeline, "can_run_on", lambda device: "no")
    in_torch = make(name, caches[1], **changes)
    parts = [part for stage in on_kernels.stages(filled_step(0)) for part in stage.name.split("+")]
    assert parts == [*(s.name for s in in_torch.stages(filled_step(0))), "merge"]
    assert not any(stage.graph_safe for stage in in_torch.stages(filled_step(0)))
    for t, lengths in enumerate(LENGTHS):
        if t and lengths[0] > LENGTHS[t - 1][0] + 1:  # a jump, where decoding would have stepped
            for cache, layer in zip(caches, (on_kernels, in_torch), strict=True):
                tail = random(2, 2, 2, 128, 64, dtype=DTYPE, seed=t)
                for b in range(2):
                    span = slice(LENGTHS[t - 1][b], lengths[b])
                    cache.k[b, :, span], cache.v[b, :, span] = tail[0, b, :, span], tail[1, b, :, span]
                cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
                if layer.summaries is not None:
                    build_summaries(cache, layer.summaries)
        steps = [filled_step(t) for _ in range(2)]
        for cache, layer, step in zip(caches, (on_kernels, in_torch), steps, strict=True):
            cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
            checked(layer, step)
        for b, length in enumerate(lengths):
            assert torch.equal(on_kernels.selection().lists[b], in_torch.selection().lists[b]), (t, b)
            assert torch.equal(on_kernels.work.counts[b], in_torch.work.counts[b])
            assert length or not steps[1].out[b].any(), "an idle slot gives zeros"
        torch.testing.assert_close(steps[0].out, steps[1].out, rtol=1e-2, atol=1e-2)
        assert in_torch.traffic() == on_kernels.traffic()


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("capacity", [128, 120], ids=["whole-blocks", "cut-block"])
def test_the_gate_holds(method: tuple[str, dict], capacity: int) -> None:
    name, changes = method
    case = Case("tiny", ModelShape(6, 2, 64), 2, 101, dtype_name(DTYPE), "clustered")
    inputs = make_inputs(case, DEVICE, 4)
    cache = KVCache(inputs.cache.k[:, :, :capacity], inputs.cache.v[:, :, :capacity], inputs.cache.lengths)
    cache.lengths.copy_(torch.tensor([101, 38], dtype=torch.int32))
    inputs = Inputs(cache, inputs.step, inputs.chunk)
    layer = make(name, cache, **changes)
    layer.stages(inputs.step)[0].run()
    assert 0 < check_step(layer, inputs, dense_exact(inputs)).budget_used <= 1
    assert layer.scores_blocks == (name != "sink-window")
    assert layer.rectify_stages(inputs.chunk) == ()
    assert layer.chunk_kernel is None


@pytest.mark.usefixtures("no_kernels")
def test_the_gate_catches_wrong_lists_scores_and_summaries() -> None:
    for name, spoil, message in (
        ("quest", lambda layer: layer.summaries.data[0, 0, 5, 1].add_(1.0), "summaries: block"),
        ("quest", lambda layer: layer.work.scores[0, 0, 1:2].add_(1.0), "error budget"),
        ("sparse", lambda layer: layer.work.lists[1, 1, -1:].fill_(0), "not the best"),
        ("oracle", lambda layer: layer.work.scores[0, 0, :6].neg_(), "not the best"),
    ):
        layer = make(name, make_cache((101, 38), dtype=DTYPE, capacity=128))
        step = filled_step(1)
        for stage in layer.stages(step):
            stage.run()
        check_selection(layer, step.q)
        spoil(layer)
        with pytest.raises(CheckFailed, match=message):
            check_selection(layer, step.q)


def test_oracle_scores_are_the_kernels_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the valid tokens alone or over the whole buffer, whose rest is NaN: the same masses."""
    step = filled_step(2)
    scores = []
    for reason in (None, "no"):
        monkeypatch.setattr(pipeline, "can_run_on", lambda device, reason=reason: reason)
        layer = make_method("oracle", SHAPE, CONFIG, DTYPE).prepare(make_cache((101, 38), dtype=DTYPE, capacity=512))
        for stage in layer.stages(step):
            stage.run()
        scores.append(layer.work.scores)
    for b, length in enumerate((101, 38)):
        blocks = CONFIG.blocks(length)
        torch.testing.assert_close(scores[0][b, :, :blocks], scores[1][b, :, :blocks], rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.work.lists[b, :, :3], selection_reference(scores[1][b, :, :blocks], 3)[:, :3])


@pytest.mark.usefixtures("no_kernels")
def test_what_can_run_without_the_kernels() -> None:
    """Every sparse method but `resa`, which in plain torch is `resa-torch`, and those without a portable layer."""

    class OnKernels(SparseMethod):
        layer_class = type("OwnLayer", (SparseLayer,), {})

    class Everywhere(OnKernels):
        torch_layer_class = type("OwnTorchLayer", (TorchSparseLayer,), {})

    for name in ("quest", "sparse", "sink-window", "oracle", "resa-torch"):
        assert get_method(name).unavailable(SHAPE, DTYPE, DEVICE) is None
        with pytest.raises(Unsupported, match="contiguous caches only"):
            make(name, make_cache((101, 38), dtype=DTYPE, layout="paged"))
    assert "need a CUDA device" in str(OnKernels.unavailable(SHAPE, DTYPE, DEVICE))
    assert Everywhere.unavailable(SHAPE, DTYPE, DEVICE) is None
    if DEVICE.type == "cpu":
        assert get_method("resa").unavailable(SHAPE, DTYPE, DEVICE) is None, "the interpreter runs it"


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("name", ["quest", "sink-window", "oracle", "resa-torch"])
def test_layers_share_work_space_and_lengths(name: str) -> None:
    """Layers of one method on one tensor of lengths, in turn: each as if it were alone."""
    method = make_method(name, SHAPE, CONFIG, DTYPE)
    lengths = torch.tensor((101, 38), dtype=torch.int32, device=DEVICE)

    def cache_of(seed: int, lengths: torch.Tensor) -> KVCache:
        cache = make_cache((101, 38), dtype=DTYPE, capacity=128, seed=seed)
        return KVCache(cache.k, cache.v, lengths)

    layers = [method.prepare(cache_of(seed, lengths)) for seed in (0, 1)]
    alone = [make_method(name, SHAPE, CONFIG, DTYPE).prepare(cache_of(seed, lengths.clone())) for seed in (0, 1)]
    assert layers[0].work is layers[1].work
    assert layers[0].gathered is layers[1].gathered
    assert layers[0].kernel is layers[1].kernel
    assert layers[0].summaries is None or layers[0].summaries is not layers[1].summaries
    for t in range(3):
        lengths.add_(1)
        for i, layer in enumerate(layers):
            outs = []
            alone[i].cache.lengths.copy_(lengths)
            for bound in (layer, alone[i]):
                step = filled_step(10 * t + i)
                step.out.fill_(NAN)
                for stage in bound.stages(step):
                    stage.run()
                outs.append(step.out)
            assert torch.equal(*outs)


@pytest.mark.parametrize("kept_in", [None, "fp8"], ids=["", "fp8"])
@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize("tokens", [None, 1, 20, 200], ids=lambda t: f"last-{t}")
@pytest.mark.slow
def test_refreshing_touches_the_blocks_of_the_last_tokens(tokens: int | None, kind: str, kept_in: str | None) -> None:
    lengths = (101, 64, 0)
    cache = make_cache(lengths, dtype=DTYPE, capacity=128)
    summaries, built = (Summaries.allocate(cache, 16, kind, kept_in) for _ in range(2))
    built.data.fill_(NAN)
    build_summaries(cache, built)
    summaries.data.fill_(NAN)
    refresh_torch(cache, summaries, tokens)
    for b, length in enumerate(lengths):
        first = 0 if tokens is None else max(length - tokens, 0) // 16
        refreshed, wanted = (x.data[b].float() for x in (summaries, built))
        assert bool(refreshed[:, :first].isnan().all())
        assert bool(refreshed[:, -(-length // 16) :].isnan().all())
        part = slice(first, -(-length // 16))
        if kind == "minmax":
            assert torch.equal(refreshed[:, part], wanted[:, part])
        # a mean that falls between two numbers of the cache's dtype may be rounded to either
        rtol, atol = (2.0**-3, 2.0**-9) if kept_in else (torch.finfo(DTYPE).eps, 1e-5)
        torch.testing.assert_close(refreshed[:, part], wanted[:, part], rtol=rtol, atol=atol)


@pytest.mark.usefixtures("no_kernels")
def test_rectification_after_portable_steps(dtype: torch.dtype) -> None:
    case = Case("tiny", ModelShape(6, 2, 64), 2, 101, dtype_name(dtype), "clustered")
    inputs = make_inputs(case, DEVICE, 40)  # more than two blocks
    inputs.cache.lengths.copy_(torch.tensor((101, 20), dtype=torch.int32))
    layer = make_method("resa-torch", SHAPE, CONFIG, dtype).prepare(inputs.cache)
    check_rectify(layer, inputs.chunk)
    for stage in layer.stages(inputs.step):
        stage.run()
    check_selection(layer, inputs.step.q)
