"""Where kernels may reach: caches of more than 2^31 elements are read right, and nothing is touched outside of one."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    DEVICE,
    DTYPES,
    INTERPRET,
    NAN,
    empty_step,
    make_cache,
    make_method,
    poisoned_partials,
    random,
    snapshot,
)
from resa_bench.kernels import (
    AttentionShape,
    KVCache,
    Layer,
    SparseConfig,
    StepTensors,
    Summaries,
    Unsupported,
    WindowTensors,
    build_summaries,
    dense_attention,
    get_method,
    merge_partials,
    score_blocks,
    select_blocks,
    sparse_decode,
    write_tokens,
)
from resa_bench.kernels.attention.dense import dense_reference
from resa_bench.kernels.attention.scores import scores_reference
from resa_bench.kernels.attention.selection import selection_reference
from resa_bench.kernels.attention.sparse_decode import sparse_reference
from resa_bench.kernels.attention.summaries import summaries_reference
from resa_bench.kernels.cache import MAX_TOKENS
from resa_bench.kernels.launch import launch
from resa_bench.suites.engine.gate import compare
from torch import Tensor

DTYPE = torch.float16  # of two bytes, and one that the interpreter has right
DIM, BLOCK = 128, 128
CONFIG = SparseConfig(block_size=BLOCK, min_blocks=1, active_ratio=1.0)
OVER = 2**31


def untouched(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """A tensor of more elements than 32 bits count, whose memory is taken where it is touched."""
    try:
        return torch.empty(shape, dtype=dtype, device="cpu")
    except RuntimeError as error:
        pytest.skip(f"cannot reserve memory: {error}")


def huge_cache(layout: str) -> tuple[KVCache, int]:
    """A cache of one sequence whose last head, tokens or pages lie past 2^31 elements, and tokens in it."""
    if layout == "heads":
        tensors = (untouched(1, 33, 2**19, DIM), untouched(1, 33, 2**19, DIM))
        cache = KVCache(*tensors, torch.tensor([BLOCK + 9], dtype=torch.int32))
    elif layout == "tokens":
        data = untouched(1, 2**19, 33, DIM), untouched(1, 2**19, 33, DIM)
        tensors = data[0].transpose(1, 2), data[1].transpose(1, 2)
        cache = KVCache(*tensors, torch.tensor([2**19 - 3], dtype=torch.int32))
    else:
        pages = OVER // (256 * DIM) + 2
        tensors = untouched(pages, 1, 256, DIM), untouched(pages, 1, 256, DIM)
        table = torch.tensor([[pages - 1, pages - 2]], dtype=torch.int32)
        cache = KVCache(*tensors, torch.tensor([256 + 9], dtype=torch.int32), table)
    assert cache.k.numel() > OVER
    return cache, int(cache.lengths)


@pytest.mark.skipif(not INTERPRET, reason="on a GPU, test_a_cache_over_2_to_31_elements fills one")
@pytest.mark.parametrize("layout", ["heads", "tokens", "pages"])
@pytest.mark.slow
def test_offsets_over_2_to_31(layout: str) -> None:
    """The last block of an all but untouched cache: written, summarised, scored, attended to."""
    cache, length = huge_cache(layout)
    heads, kept = cache.kv_heads, min(length, 2 * BLOCK)
    first = (length - kept) // BLOCK * BLOCK  # of the last two blocks
    tail = length - first
    new = random(2, 1, tail, heads, DIM, dtype=DTYPE, seed=0)
    summaries = Summaries(untouched(cache.k.shape[0], heads, cache.page_size // BLOCK, 2, DIM), "minmax", BLOCK)
    write_tokens(cache, new[0], new[1], summaries)

    keys, values = (x[0].transpose(0, 1).contiguous() for x in new)  # [Hkv, tail, D]
    q = random(1, heads, DIM, dtype=DTYPE, seed=1)
    lists = torch.tensor([[[first // BLOCK, first // BLOCK + 1]]], dtype=torch.int32)
    partials = poisoned_partials(heads, 1, DIM)
    sparse_decode(q, cache, lists, torch.full((1, 1), 2, dtype=torch.int32), partials, block_size=BLOCK)
    merge_partials(partials, out := torch.full_like(q, NAN))
    near = torch.tensor([[0, 1]])
    compare("sparse", out[0], sparse_reference(q[0], keys, values, tail, near, block_size=BLOCK), DTYPE)
    if layout == "tokens":  # the rest would go through half a million tokens
        return

    partials = poisoned_partials(heads, 1, DIM)
    dense_attention(q, cache, partials)
    merge_partials(partials, out.fill_(NAN))
    compare("dense", out[0], dense_reference(q, keys, values, tail), DTYPE)
    scores = torch.full((1, heads, cache.capacity // BLOCK), NAN)
    score_blocks(q, cache, summaries, scores, SparseConfig(BLOCK, local_blocks=0))
    blocks = -(-length // BLOCK)
    exact, bound = scores_reference(q[0], summaries_reference(keys, tail, BLOCK), SparseConfig(BLOCK, local_blocks=0))
    assert bool(((scores[0, :, :blocks] - exact).abs() <= bound).all())


@pytest.mark.skipif(not INTERPRET, reason="memory that is not touched is the CPU's")
def test_rows_of_scores_and_lists_over_2_to_31() -> None:
    """Three rows 2^30 elements apart: the last starts at 2^31."""
    tokens, rows = 300, 3
    config = SparseConfig(block_size=8, min_blocks=5, active_ratio=0.1)
    cache = make_cache([tokens], 1, 16, dtype=DTYPE)
    blocks, chosen = config.blocks(tokens), config.selected(tokens)

    def apart(width: int, dtype: torch.dtype) -> Tensor:
        storage = untouched((rows - 1) * 2**30 + width, dtype=dtype)
        return storage.as_strided((1, rows, width), (2**30, 2**30, 1))

    scores, lists = apart(blocks, torch.float32), apart(chosen, torch.int32)
    scores.copy_(random(1, rows, blocks, dtype=torch.float32, seed=2))
    select_blocks(scores, cache, lists, torch.zeros(1, rows, dtype=torch.int32), config)
    assert torch.equal(lists[0], selection_reference(scores[0], chosen))


def filled(lengths: list[int], layout: str, capacity: int = 64) -> KVCache:
    """A cache of finite tokens everywhere, and these lengths."""
    cache = make_cache([capacity] * len(lengths), 2, 64, dtype=DTYPES[0], layout=layout)
    cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
    return cache


def filled_step(batch: int) -> StepTensors:
    step = empty_step(AttentionShape(batch, 4, 2, 64), DTYPES[0])
    for seed, tensor in enumerate((step.q, step.k, step.v)):
        tensor.copy_(random(*tensor.shape, dtype=DTYPES[0], seed=seed))
    step.out.fill_(NAN)
    return step


SMALL = SparseConfig(block_size=8, min_blocks=2, active_ratio=0.3, window=2)


def bound(method: str, cache: KVCache) -> Layer:
    kind = get_method(method)
    shape = AttentionShape(cache.batch, 4, 2, 64)
    if reason := kind.unavailable(shape, DTYPES[0], DEVICE):
        pytest.skip(reason)
    config = SparseConfig(block_size=16, min_blocks=2, active_ratio=0.3) if method == "resa-fused" else SMALL
    return make_method(method, shape, config, DTYPES[0]).prepare(cache)


def run(layer: Layer, step: StepTensors) -> Tensor:
    for stage in layer.stages(step):
        stage.run()
    return layer.output(step)


ON_KERNELS = ("resa", "resa-fused", "sparse", "triton-dense", "quest", "retro", "retro-cached", "sink-window")
NO_ROOM = {"one": 65, "more": 1000, "int32": 2**31 - 1}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("layout", ["contiguous", "paged"])
@pytest.mark.parametrize("over", NO_ROOM.values(), ids=NO_ROOM)
@pytest.mark.parametrize("method", ON_KERNELS)
@pytest.mark.slow
def test_a_token_past_the_capacity_is_not_written(method: str, over: int, layout: str) -> None:
    """Other sequences are as they were and get the output they would; the one without room gets NaN."""
    import resa_bench.baselines  # noqa: F401  registers the rivals

    cache, step = filled([40, 63, 12], layout), filled_step(3)
    layer = bound(method, cache)
    cache.lengths.copy_(torch.tensor([41, over, 13], dtype=torch.int32))
    before = snapshot(cache)
    summaries = getattr(layer, "summaries", None)
    derived = None if summaries is None else summaries.data.clone()
    out = run(layer, step)
    assert bool(out[1].isnan().all()), "an output without its own token must not look like one"
    assert bool(out[0].isfinite().all() and out[2].isfinite().all())
    for old, new, token in zip(before, snapshot(cache), (step.k, step.v), strict=True):
        old[0, :, 40], old[2, :, 12] = token[0], token[2]
        assert torch.equal(old, new)
    if derived is not None and summaries is not None:
        changed = (derived != summaries.data).flatten(2).any(2)
        allowed = torch.zeros_like(changed)
        rows = cache.block_table[[0, 0, 2, 2]] if cache.block_table is not None else torch.tensor([[0], [2]])
        allowed[rows.long().flatten()] = True
        assert not bool((changed & ~allowed).any())

    alone = filled([41, 64, 13], layout)
    step.out.fill_(NAN)
    again = run(bound(method, alone), step)
    assert torch.equal(out[[0, 2]], again[[0, 2]])


@pytest.mark.parametrize("length", [0, -1, -50, -(2**31)])
@pytest.mark.parametrize("method", ON_KERNELS)
@pytest.mark.slow
def test_lengths_below_one(method: str, length: int) -> None:
    """Nothing to attend to and no place for the token: nothing is written, and the output is zero."""
    import resa_bench.baselines  # noqa: F401

    cache, step = filled([40, 0], "contiguous"), filled_step(2)
    layer = bound(method, cache)
    cache.lengths.copy_(torch.tensor([41, length], dtype=torch.int32))
    before = snapshot(cache)
    out = run(layer, step)
    assert bool((out[1] == 0).all())
    assert bool(out[0].isfinite().all())
    for old, new in zip(before, snapshot(cache), strict=True):
        assert torch.equal(old[1], new[1])


@pytest.mark.parametrize("tokens", [1, 4, 20])
@pytest.mark.parametrize("layout", ["contiguous", "token-major", "paged"])
@pytest.mark.slow
def test_several_tokens_of_which_some_have_room(tokens: int, layout: str) -> None:
    cache = filled([66, 30], layout)
    new = random(2, 2, tokens, 2, 64, dtype=DTYPES[0], seed=4)
    before = snapshot(cache)
    summaries = Summaries.allocate(cache, 8)
    build_summaries(cache, summaries)
    write_tokens(cache, new[0], new[1], summaries)
    for i, (old, held) in enumerate(zip(before, snapshot(cache), strict=True)):
        for b, length in enumerate((66, 30)):
            count = min(length, 64) - (length - tokens)
            if count > 0:
                old[b, :, length - tokens : length - tokens + count] = new[i, b, :count].transpose(0, 1)
        assert torch.equal(old, held)
    logical = summaries.logical(cache)
    assert torch.equal(logical[0], summaries_reference(cache.gather()[0][0], 64, 8))


@pytest.mark.parametrize("page", [-1, 4, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("method", ["resa", "resa-fused", "triton-dense", "retro"])
@pytest.mark.slow
def test_a_bad_page_is_not_written(method: str, page: int) -> None:
    """The table's entry for the newest token is no page of the cache."""
    import resa_bench.baselines  # noqa: F401

    cache, step = filled([40, 40], "paged"), filled_step(2)
    layer = bound(method, cache)
    before = snapshot(cache)
    assert cache.block_table is not None
    good = cache.block_table.clone()
    cache.block_table[1, 1] = page
    cache.lengths.fill_(41)
    out = run(layer, step)
    assert bool(out[0].isfinite().all())
    cache.block_table.copy_(good)
    for old, new, token in zip(before, snapshot(cache), (step.k, step.v), strict=True):
        old[0, :, 40] = token[0]
        assert torch.equal(old, new)


@pytest.mark.parametrize("method", ["resa", "resa-torch", "triton-dense", "torch-dense"])
def test_prepare_looks_at_values(method: str) -> None:
    cache = filled([40, 65], "contiguous")
    with pytest.raises(ValueError, match=r"^lengths: values span \[40, 65\], allowed \[0, 64\]"):
        bound(method, cache)
    if method in ("resa", "triton-dense"):
        paged = filled([40, 40], "paged")
        assert paged.block_table is not None
        paged.block_table[0, 1] = 4
        with pytest.raises(ValueError, match=r"^block_table: values span \[\d, 4\], allowed \[0, 3\]"):
            bound(method, paged)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="plain torch is the CPU's path")
@pytest.mark.parametrize("method", ["resa-torch", "torch-dense"])
@pytest.mark.parametrize("length", [65, 2**31 - 1, -1])
def test_plain_torch_names_the_sequence_without_room(method: str, length: int) -> None:
    cache, step = filled([40, 64], "contiguous"), filled_step(2)
    layer = bound(method, cache)
    before = snapshot(cache)
    cache.lengths[1] = length
    with pytest.raises(ValueError, match=rf"^lengths: sequence 1 has {length} tokens, allowed 0 to .* capacity of 64"):
        run(layer, step)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(cache), strict=True))


@pytest.mark.parametrize("method", ON_KERNELS)
@pytest.mark.slow
def test_nan_in_is_nan_out(method: str) -> None:
    """A row whose logits are NaN is no row that saw nothing: zeros would pass for an output."""
    import resa_bench.baselines  # noqa: F401

    cache, step = filled([40, 40], "contiguous"), filled_step(2)
    step.q[1] = NAN
    try:
        out = run(bound(method, cache), step)
    except Unsupported as error:
        pytest.skip(str(error))
    assert bool(out[0].isfinite().all())
    assert bool(out[1].isnan().all())


def test_a_window_past_the_capacity() -> None:
    import resa_bench.baselines  # noqa: F401

    cache = filled([40, 63], "contiguous")
    layer = bound("retro", cache)
    new = random(3, 2, 2, 4, 64, dtype=DTYPES[0], seed=3)
    out = torch.full_like(new[0], NAN)
    window = WindowTensors(new[0], new[1, :, :, :2].contiguous(), new[2, :, :, :2].contiguous(), out, cache.lengths - 9)
    cache.lengths.copy_(torch.tensor([41, 66], dtype=torch.int32))
    before = snapshot(cache)
    for stage in layer.window_stages(window):
        stage.run()
    assert bool(out[0].isfinite().all())
    assert bool(out[1].isnan().all())
    for old, held in zip(before, snapshot(cache), strict=True):
        assert torch.equal(old[1], held[1])


def test_capacity_that_indices_reach() -> None:
    k = torch.empty(1, 1, MAX_TOKENS + 1, 16, dtype=DTYPE, device="meta")
    lengths = torch.empty(1, dtype=torch.int32, device="meta")
    with pytest.raises(
        ValueError, match=rf"^cache: capacity in tokens: got {MAX_TOKENS + 1}, allowed 1 to {MAX_TOKENS}"
    ):
        KVCache(k, torch.empty_like(k), lengths)
    assert KVCache(k[:, :, 1:], torch.empty_like(k)[:, :, 1:], lengths).capacity == MAX_TOKENS


def test_grids_that_no_device_takes() -> None:
    def kernel() -> None: ...

    with pytest.raises(ValueError, match=r"^batch: kernel needs a grid of \(3, 65536\), at most 65535"):
        launch(kernel, (3, 65536))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["resa", "resa-fused", "triton-dense", "retro"])
@pytest.mark.parametrize("layout", ["contiguous", "token-major", "paged"])
def test_a_cache_over_2_to_31_elements(method: str, layout: str) -> None:
    """32 KV heads, 655,360 tokens, blocks of 32: the outputs of heads below, at and past the offset of 2^31."""
    import resa_bench.baselines  # noqa: F401

    tokens, heads, dtype = 655_360, 32, DTYPES[0]
    shape = (tokens // 64, heads, 64, DIM) if layout == "paged" else (1, heads, tokens, DIM)
    if layout == "token-major":
        shape = (1, tokens, heads, DIM)
    k, v = (torch.empty(shape, dtype=dtype, device=DEVICE).normal_() for _ in "kv")
    if layout == "token-major":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    table = torch.randperm(tokens // 64, device=DEVICE).int()[None] if layout == "paged" else None
    cache = KVCache(k, v, torch.tensor([tokens - 1], dtype=torch.int32, device=DEVICE), table)
    assert cache.k.numel() > OVER
    kind, wanted = get_method(method), AttentionShape(1, 2 * heads, heads, DIM)
    if reason := kind.unavailable(wanted, dtype, DEVICE):
        pytest.skip(reason)
    config = SparseConfig(block_size=32, active_ratio=0.01, gqa_policy="group-sum", window=2)
    layer = kind(wanted, config, dtype=dtype, device=DEVICE).prepare(cache)
    step = empty_step(wanted, dtype)
    for tensor in (step.q, step.k, step.v):
        tensor.normal_()
    cache.lengths.add_(1)
    out = run(layer, step)
    selection = layer.selection()
    for head in (0, 15, 23, 24, 25, 31):
        pages = (slice(None), head) if table is None else (table[0].long(), head)
        keys, values = (x[pages].reshape(1, tokens, DIM) for x in (cache.k, cache.v))
        assert torch.equal(keys[0, -1], step.k[0, head])
        q = step.q[0, 2 * head : 2 * head + 2]
        if selection is None:
            exact = dense_reference(q[None], keys, values, tokens)
            compare(f"head {head}", out[0, None, 2 * head : 2 * head + 2], exact, dtype)
            continue
        lists = selection.lists[0, head, None]
        exact = sparse_reference(q, keys, values, tokens, lists, block_size=32)
        compare(f"head {head}", out[0, 2 * head : 2 * head + 2], exact, dtype)
        summaries = summaries_reference(keys, tokens, 32)
        scores = scores_reference(q, summaries, config)[0]
        chosen = selection_reference(scores, config.selected(tokens))
        assert (chosen[0] != lists[0]).sum() <= 8, "but for ties that rounding breaks, the blocks of the exact scores"
