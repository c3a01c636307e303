"""Chunk kernels: which one is taken, that each attends right, and what rectification makes of their results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals' kernels
import torch
from kernel_cases import (
    DEVICE,
    DTYPES,
    NAN,
    assert_summaries,
    dtype_name,
    empty_chunk,
    make_cache,
    make_method,
    random,
    same,
)
from resa_bench.kernels import (
    AttentionShape,
    ChunkKernel,
    ChunkTensors,
    KVCache,
    SparseConfig,
    Unsupported,
    best_chunk_kernel,
    build_summaries,
    chunk_kernels,
    get_method,
    register_chunk_kernel,
    write_tokens,
)
from resa_bench.kernels.attention import chunk
from resa_bench.kernels.exact import UNIT_ROUNDOFF
from resa_bench.kernels.workspace import BlockSparseLayer
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import check_rectify
from resa_bench.suites.micro.inputs import make_inputs
from torch import Tensor

CONFIG = SparseConfig(active_ratio=0.3, min_blocks=3)
SHAPE = AttentionShape(2, 6, 2, 64)
TOKENS = 4
DTYPE = DTYPES[-1]


def cache_of(*lengths: int, layout: str = "contiguous", seed: int = 0) -> KVCache:
    return make_cache(lengths, dtype=DTYPE, layout=layout, capacity=128, seed=seed)


def fill(tensors: ChunkTensors, seed: int) -> None:
    """Random inputs, a poisoned output."""
    for i, x in enumerate((tensors.q, tensors.k, tensors.v)):
        x.copy_(random(*x.shape, dtype=x.dtype, seed=seed + i))
    tensors.out.fill_(NAN)


# --- choice -----------------------------------------------------------------------------------------------------------


def test_the_registry_knows_ours_and_the_rivals() -> None:
    assert {"triton", "torch", "flash-attn-2", "flash-attn-3"} <= set(chunk_kernels())
    assert all(kernel.name == name for name, kernel in chunk_kernels().items())
    with pytest.raises(ValueError, match=r"chunk kernel 'triton' is registered already, by TritonChunk"):
        register_chunk_kernel("triton")(chunk_kernels()["torch"])
    assert chunk_kernels()["triton"].name == "triton"


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_the_best_is_the_first_that_can_run(layout: str) -> None:
    cache = cache_of(101, 38, layout=layout)
    hopper = layout == "contiguous" and chunk_kernels()["flash-attn-3"].unavailable(SHAPE, DTYPE, DEVICE, cache) is None
    assert best_chunk_kernel(SHAPE, cache).name == ("flash-attn-3" if hopper else "triton")


def test_a_preferred_kernel_that_can_run_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    preferred = type("Fast", (chunk.TorchChunk,), {})
    monkeypatch.setattr(chunk, "_registry", chunk._registry | {"flash-attn-3": preferred})
    assert isinstance(best_chunk_kernel(SHAPE, cache_of(101, 38)), preferred)
    assert best_chunk_kernel(SHAPE, cache_of(101, 38, layout="paged")).name == "triton"


def test_a_named_kernel_is_taken_or_refused() -> None:
    cache = cache_of(101, 38)
    assert best_chunk_kernel(SHAPE, cache, "torch").name == "torch"
    with pytest.raises(ValueError, match=r"chunk_kernel: got 'trition', known are triton, torch, flash"):
        best_chunk_kernel(SHAPE, cache, "trition")
    with pytest.raises(Unsupported, match=r"chunk_kernel: torch: takes contiguous caches only, got a paged one"):
        best_chunk_kernel(SHAPE, cache_of(101, 38, layout="paged"), "torch")


def test_the_reason_why_a_rival_cannot_run() -> None:
    cache = KVCache.allocate(2, 2, 128, 64, dtype=torch.bfloat16, device="cpu")
    with pytest.raises(Unsupported, match=r"chunk_kernel: flash-attn-3: needs a CUDA device, got cpu"):
        best_chunk_kernel(SHAPE, cache, "flash-attn-3")


def test_ours_takes_the_dtypes_of_the_kernels() -> None:
    cache = KVCache.allocate(2, 2, 128, 64, dtype=torch.float64, device=DEVICE)
    with pytest.raises(Unsupported, match=r"chunk_kernel: triton: got float64, takes "):
        best_chunk_kernel(SHAPE, cache, "triton")
    assert best_chunk_kernel(SHAPE, cache).name == "torch"


@pytest.mark.parametrize(("method", "best"), [("resa", "triton"), ("resa-torch", "torch")])
def test_a_layer_names_its_kernel(method: str, best: str) -> None:
    layer = make_method(method, SHAPE, CONFIG, DTYPE).prepare(cache_of(101, 38))
    if DEVICE.type == "cpu" or method == "resa-torch":
        assert layer.chunk_kernel == best
    named = make_method(method, SHAPE, SparseConfig(chunk_kernel="torch"), DTYPE).prepare(cache_of(101, 38))
    assert named.chunk_kernel == "torch"
    assert [stage.graph_safe for stage in named.rectify_stages(empty_chunk(SHAPE, TOKENS, DTYPE))] == [False]


def test_a_method_refuses_an_unknown_kernel() -> None:
    with pytest.raises(ValueError, match=r"chunk_kernel: got 'best', known are triton"):
        make_method("resa", SHAPE, SparseConfig(chunk_kernel="best"), DTYPE).prepare(cache_of(101, 38))


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.sanitizer
@pytest.mark.parametrize("lengths", [(101, 38), (128, 3)], ids=["ragged", "fewer-than-the-chunk"])
@pytest.mark.parametrize("kernel", ["triton", "torch", "flash-attn-2", "flash-attn-3"])
@pytest.mark.slow
def test_each_kernel_rectifies(kernel: str, lengths: tuple[int, int], dtype: torch.dtype) -> None:
    case = Case("tiny", ModelShape(6, 2, 64), 2, max(lengths), dtype_name(dtype), "clustered")
    inputs = make_inputs(case, DEVICE, TOKENS)
    inputs.cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
    config = SparseConfig(active_ratio=0.3, min_blocks=3, chunk_kernel=kernel)
    try:
        layer = make_method("resa", SHAPE, config, dtype).prepare(inputs.cache)
    except Unsupported as error:
        pytest.skip(str(error))
    assert layer.chunk_kernel == kernel
    try:
        assert 0 < check_rectify(layer, inputs.chunk).budget_used <= 1
    except RuntimeError as error:
        if "left out of this build" not in str(error):
            raise
        pytest.skip(str(error))


def test_a_librarys_own_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rectified` is the tensor that the kernel returned, and `chunk.out` is left alone."""

    class Library(ChunkKernel):
        name = "library"

        def bind(self, cache: KVCache, shape: AttentionShape, chunk: ChunkTensors) -> Callable[[], Tensor]:
            inner = ChunkTensors(chunk.q, chunk.k, chunk.v, torch.empty_like(chunk.out))
            attend = best_chunk_kernel(shape, cache, "torch").bind(cache, shape, inner)
            return lambda: attend() or inner.out.clone()

    monkeypatch.setattr(chunk, "_registry", chunk._registry | {"library": Library})
    config = SparseConfig(active_ratio=0.3, min_blocks=3, chunk_kernel="library")
    results = []
    for used in (config, SparseConfig(active_ratio=0.3, min_blocks=3, chunk_kernel="torch")):
        layer = make_method("resa", SHAPE, used, DTYPE).prepare(cache_of(101, 38))
        tensors = empty_chunk(SHAPE, TOKENS, DTYPE)
        fill(tensors, 7)
        for stage in layer.rectify_stages(tensors):
            stage.run()
        results.append(layer.rectified(tensors))
        assert bool(tensors.out.isnan().all()) == (used is config)
    assert torch.equal(*results)


@pytest.mark.slow
def test_layers_share_one_kernel_and_chunks_of_two_lengths_its_scratch() -> None:
    """Results of interleaved layers and chunk lengths are those of layers alone."""
    lengths, tokens = (101, 38), (TOKENS, 2)
    method = make_method("resa", SHAPE, SparseConfig(chunk_kernel="triton"), DTYPE)
    layers = [method.prepare(cache_of(*lengths, seed=seed)) for seed in (0, 1)]
    assert isinstance(layers[0], BlockSparseLayer)
    assert isinstance(layers[1], BlockSparseLayer)
    assert layers[0].kernel is layers[1].kernel
    together = {(i, t): empty_chunk(SHAPE, t, DTYPE) for i in range(2) for t in tokens}
    bound = {key: layers[key[0]].rectify_stages(tensors) for key, tensors in together.items()}
    for key in sorted(bound, reverse=True):
        fill(together[key], 10 * key[0])
        bound[key][0].run()
    for seed in (0, 1):
        layer = make_method("resa", SHAPE, SparseConfig(chunk_kernel="triton"), DTYPE).prepare(
            cache_of(*lengths, seed=seed)
        )
        for t in sorted(tokens, reverse=True):
            alone = empty_chunk(SHAPE, t, DTYPE)
            fill(alone, 10 * seed)
            layer.rectify_stages(alone)[0].run()
            assert torch.equal(layer.rectified(alone), together[seed, t].out)


# --- overwriting alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(101, 38), (64, 2)], ids=["ragged", "fewer-than-the-chunk"])
@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
@pytest.mark.parametrize(
    "name", ["resa", "resa-torch", "quest", "sparse", "sink-window", "triton-dense", "torch-dense"]
)
@pytest.mark.slow
def test_overwrite_leaves_what_rectification_would(name: str, kind: str, lengths: tuple[int, int]) -> None:
    """K, V and summaries are those of the new tokens; the output is not touched."""
    reason = get_method(name).unavailable(SHAPE, DTYPE, DEVICE)
    if reason:
        pytest.skip(f"{name} {reason}")
    cache, wanted = cache_of(*lengths), cache_of(*lengths)
    layer = make_method(name, SHAPE, SparseConfig(summary_kind=kind), DTYPE).prepare(cache)
    tensors = empty_chunk(SHAPE, TOKENS, DTYPE)
    fill(tensors, 3)
    layer.overwrite(tensors)
    write_tokens(wanted, tensors.k, tensors.v)
    assert same(cache.k, wanted.k)
    assert same(cache.v, wanted.v)
    assert bool(tensors.out.isnan().all())
    if not isinstance(layer, BlockSparseLayer) or layer.summaries is None:
        return
    kept = [layer.summaries.data[b, :, : layer.config.blocks(length)].clone() for b, length in enumerate(lengths)]
    layer.summaries.data.fill_(NAN)
    build_summaries(cache, layer.summaries)
    assert_summaries(cache, layer.summaries)
    slack = 0.0 if kind == "minmax" else 4 * UNIT_ROUNDOFF[DTYPE]
    for b, rewritten in enumerate(kept):
        fresh = layer.summaries.data[b, :, : rewritten.shape[1]]
        assert bool(((rewritten.double() - fresh.double()).abs() <= slack * fresh.double().abs().amax()).all())
