"""What a method is bound to: both paths refuse the same arguments, each by its name, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, NAN, empty_chunk, empty_step, make_cache, make_method, random, snapshot
from resa_bench.kernels import AttentionShape, KVCache, Layer, SparseConfig, WindowTensors, get_method
from resa_bench.kernels.fused.step import _Arguments
from resa_bench.kernels.method import DenseLayer
from torch import Tensor

DTYPE = DTYPES[0]
SHAPE = AttentionShape(2, 4, 2, 64)
CONFIG = SparseConfig(block_size=8, min_blocks=2)
METHODS = ("resa", "resa-torch", "triton-dense", "torch-dense")
RECTIFIES = ("resa", "resa-torch")


def filled_cache() -> KVCache:
    cache = make_cache([64, 64], 2, 64, dtype=DTYPE)
    cache.lengths.fill_(40)
    return cache


def layer_of(method: str, cache: KVCache | None = None) -> Layer:
    if reason := get_method(method).unavailable(SHAPE, DTYPE, DEVICE):
        pytest.skip(reason)
    return make_method(method, SHAPE, CONFIG, DTYPE).prepare(filled_cache() if cache is None else cache)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


WRONG: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "none": (lambda x: None, TypeError, "got NoneType, expected a torch.Tensor"),
    "list": (lambda x: x.tolist(), TypeError, "got list, expected a torch.Tensor"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "got layout sparse_coo, expected a dense tensor"),
    "dtype": (lambda x: x.double(), TypeError, "got dtype float64, allowed: "),
    "bool": (lambda x: x.bool(), TypeError, "got dtype bool, allowed: "),
    "batch": (lambda x: x[:1], ValueError, "got shape .*, expected "),
    "heads": (lambda x: torch.cat([x, x], -2), ValueError, "got shape .*, expected "),
    "one-head": (lambda x: x[..., :1, :], ValueError, "got shape .*, expected "),
    "dim": (lambda x: x[..., :32], ValueError, "got shape .*, expected "),
    "dims": (lambda x: x[None], ValueError, "got shape .*, expected "),
    "device": (lambda x: x.to("meta"), ValueError, "is on meta, expected "),
    "last-stride": (strided, ValueError, "stride of the last dimension is 2, must be 1"),
    "grad": (lambda x: x.clone().requires_grad_(), ValueError, r"requires grad, .* pass \w+.detach\(\)"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_bad_steps(method: str, name: str, wrong: str) -> None:
    change, error, message = WRONG[wrong]
    layer, step = layer_of(method), empty_step(SHAPE, DTYPE)
    before = snapshot(layer.cache)
    bad = replace(step, **{name: change(getattr(step, name))})
    with pytest.raises(error, match=rf"^{name}: {message}"):
        layer.stages(bad)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(layer.cache), strict=True))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
@pytest.mark.parametrize("method", RECTIFIES)
@pytest.mark.slow
def test_bad_chunks(method: str, name: str, wrong: str) -> None:
    change, error, message = WRONG[wrong]
    layer, chunk = layer_of(method), empty_chunk(SHAPE, 4, DTYPE)
    bad = replace(chunk, **{name: change(getattr(chunk, name))})
    with pytest.raises(error, match=rf"^{name}: {message}"):
        layer.rectify_stages(bad)


@pytest.mark.parametrize("method", RECTIFIES)
def test_chunks_of_no_and_too_many_tokens(method: str) -> None:
    layer = layer_of(method)
    for tokens in (0, 65):
        with pytest.raises(ValueError, match=rf"^q: tokens a sequence: got {tokens}, allowed 1 to 64"):
            layer.rectify_stages(empty_chunk(SHAPE, tokens, DTYPE))


@pytest.mark.parametrize("method", METHODS)
def test_strides(method: str) -> None:
    """Queries may be strided over heads and sequences; k and v alike; out is contiguous."""
    layer, step = layer_of(method), empty_step(SHAPE, DTYPE)
    for seed, tensor in enumerate((step.q, step.k, step.v)):
        tensor.copy_(random(*tensor.shape, dtype=DTYPE, seed=seed))
    other = replace(step, q=step.q.transpose(0, 1).contiguous().transpose(0, 1), out=torch.full_like(step.out, NAN))
    results = []
    for tensors in (step, other):
        for stage in layer.stages(tensors):
            stage.run()
        results.append(layer.output(tensors).clone())
    assert torch.equal(*results)
    with pytest.raises(ValueError, match=r"^v: strides .* differ from k's"):
        layer.stages(replace(step, v=step.v.transpose(0, 1).contiguous().transpose(0, 1)))
    with pytest.raises(ValueError, match=r"^out: must be contiguous"):
        layer.stages(replace(step, out=step.out.transpose(0, 1).contiguous().transpose(0, 1)))


def test_the_stride_of_a_single_sequence_says_nothing() -> None:
    """k and v of one sequence may be parts of one product, whose rows are longer."""
    cache = make_cache((33,), dtype=DTYPE, capacity=64)
    shape = replace(SHAPE, batch=1)
    layer, step = make_method("resa", shape, SparseConfig(), DTYPE).prepare(cache), empty_step(shape, DTYPE)
    v = step.v.as_strided(step.v.shape, (3 * step.v.stride(0), *step.v.stride()[1:]))
    assert v.stride() != step.k.stride()
    for tensor in (step.q, step.k, v):
        tensor.fill_(0.5)
    for stage in layer.stages(replace(step, v=v)):
        stage.run()
    assert (cache.v[0, :, 32] == 0.5).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (AttentionShape(3, 4, 2, 64), "cache: its batch is 2, the method was built for 3"),
        (AttentionShape(2, 4, 4, 64), "cache: its kv_heads is 2, the method was built for 4"),
        (AttentionShape(2, 4, 2, 32), "cache: its head_dim is 64, the method was built for 32"),
    ],
)
def test_caches_of_another_shape(method: str, shape: AttentionShape, message: str) -> None:
    if reason := get_method(method).unavailable(shape, DTYPE, DEVICE):
        pytest.skip(reason)
    with pytest.raises(ValueError, match=f"^{message}"):
        make_method(method, shape, CONFIG, DTYPE).prepare(filled_cache())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_cache_and_another_dtype(method: str) -> None:
    if reason := get_method(method).unavailable(SHAPE, DTYPE, DEVICE):
        pytest.skip(reason)
    cache: Any = (1, 2)
    with pytest.raises(TypeError, match=r"^cache: got tuple, expected a KVCache"):
        make_method(method, SHAPE, CONFIG, DTYPE).prepare(cache)
    with pytest.raises(TypeError, match=r"^dtype: the method was built for torch.float64, the cache holds"):
        make_method(method, SHAPE, CONFIG, torch.float64).prepare(filled_cache())
    with pytest.raises(ValueError, match=r"^device: the method was built for meta, the cache is on"):
        make_method(method, SHAPE, CONFIG, DTYPE, torch.device("meta")).prepare(filled_cache())


@pytest.mark.parametrize("method", RECTIFIES)
def test_what_is_no_config(method: str) -> None:
    config: Any = {}
    with pytest.raises(TypeError, match=r"^config: got dict, expected a SparseConfig"):
        make_method(method, SHAPE, config, DTYPE)


ALLOCATE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no-tokens": (dict(capacity=0), ValueError, "capacity: got 0, allowed 1 to "),
    "negative": (dict(batch=-1), ValueError, "batch: got -1, allowed 1 to "),
    "heads": (dict(kv_heads=0), ValueError, "kv_heads: got 0, allowed 1 to "),
    "fraction": (dict(capacity=1.5), TypeError, "capacity: got 1.5, expected a whole number"),
    "true": (dict(batch=True), TypeError, "batch: got True, expected a whole number"),
    "too-long": (dict(capacity=10**15), ValueError, f"capacity: got {10**15}, allowed 1 to {2**28}"),
    "head-dim": (dict(head_dim=17), ValueError, "head_dim: got 17, allowed are "),
    "dtype": (dict(dtype="fp16"), TypeError, "dtype: got 'fp16', expected a torch.dtype"),
    "device": (dict(device="gpu"), ValueError, "device: got 'gpu', expected a torch.device or a name"),
    "page": (dict(page_size=0), ValueError, "page_size: got 0, allowed 1 to "),
}


@pytest.mark.parametrize("case", ALLOCATE.values(), ids=ALLOCATE)
def test_bad_allocations(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    changes, error, message = case
    good: dict[str, Any] = dict(batch=2, kv_heads=2, capacity=64, head_dim=64, dtype=DTYPE, device=DEVICE)
    with pytest.raises(error, match=f"^{message}"):
        KVCache.allocate(**(good | changes))


@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda k, v: (k[:, :1], v[:, :1]), ValueError),
        (lambda k, v: (k[:1], v[:1]), ValueError),
        (lambda k, v: (k[..., :1], v[..., :1]), ValueError),
        (lambda k, v: (k, v[:, :, :1]), ValueError),
        (lambda k, v: (k[0], v[0]), ValueError),
        (lambda k, v: (k.int(), v.int()), TypeError),
        (lambda k, v: (k.to(torch.complex64), v), TypeError),
        (lambda k, v: (None, v), TypeError),
    ],
    ids=["heads", "batch", "dim", "v-tokens", "dims", "int", "complex", "none"],
)
def test_nothing_is_broadcast_into_a_cache(
    page_size: int | None, change: Callable[[Tensor, Tensor], tuple[Any, Any]], error: type[Exception]
) -> None:
    cache = KVCache.allocate(2, 2, 64, 64, dtype=DTYPE, device=DEVICE, page_size=page_size)
    k, v = random(2, 2, 2, 5, 64, dtype=DTYPE, seed=0)
    with pytest.raises(error, match=r"^[kv]: "):
        cache.store(*change(k, v))
    assert not bool(cache.k.any() or cache.v.any())
    cache.store(k, v)


def test_caches_whose_elements_share_memory() -> None:
    k, v = random(2, 2, 1, 64, 64, dtype=DTYPE, seed=0)
    lengths = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match=r"^k: strides .* make elements share memory"):
        KVCache(k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1), lengths)
    with pytest.raises(ValueError, match=r"^v: is k's memory"):
        KVCache(k, k, lengths)
    with pytest.raises(ValueError, match=r"^k: requires grad"):
        KVCache(k.clone().requires_grad_(), v, lengths)
    with pytest.raises(ValueError, match=r"^k: got shape \[2, 1, 0, 64\], every length must be at least 1"):
        KVCache(k[:, :, :0], v[:, :, :0], lengths)


def test_the_fused_steps_strides_are_of_64_bits() -> None:
    """Every argument of the kernel that an index is multiplied with."""
    import ctypes

    strides = {"q", "summary", "score", "list", "table", "cache", "new", "exchange"}
    wide = [name for name, kind, *_ in _Arguments._fields_ if kind is ctypes.c_longlong]
    assert {name.split("_")[0] for name in wide} == strides
    assert all(name.split("_")[-1] in ("batch", "head", "outer", "row", "token") for name in wide)
    narrow = {name for name, kind, *_ in _Arguments._fields_ if kind is ctypes.c_int}
    assert not {name for name in narrow if name.split("_")[-1] in ("batch", "head", "outer", "row", "token", "stride")}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
@pytest.mark.slow
def test_bad_windows(name: str, wrong: str) -> None:
    """A step of several tokens, of a method that repairs."""
    import resa_bench.baselines  # noqa: F401  (registers it)

    change, error, message = WRONG[wrong]
    layer, chunk = layer_of("retro"), empty_chunk(SHAPE, 2, DTYPE)
    window = WindowTensors(chunk.q, chunk.k, chunk.v, chunk.out, torch.zeros_like(layer.cache.lengths))
    assert layer.window_stages(window)
    with pytest.raises(error, match=rf"^{name}: {message}"):
        layer.window_stages(replace(window, **{name: change(getattr(window, name))}))
    with pytest.raises(ValueError, match=r"^first: got shape \[1\], expected \[2\]"):
        layer.window_stages(replace(window, first=window.first[:1]))


@pytest.mark.parametrize("name", ["q", "k", "v", "out"])
def test_a_rivals_step_is_checked(name: str) -> None:
    """What a rival binds to is checked before its library sees it."""
    layer = DenseLayer(filled_cache(), SHAPE.q_heads, lambda step: lambda: None)
    step = empty_step(SHAPE, DTYPE)
    assert [stage.name for stage in layer.stages(step)] == ["append", "attend"]
    with pytest.raises(ValueError, match=rf"^{name}: got shape \[1, "):
        layer.stages(replace(step, **{name: getattr(step, name)[:1]}))
