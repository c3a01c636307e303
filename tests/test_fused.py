"""The step as one CUDA kernel: compiled anywhere, checked on a GPU by the gate that every method passes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from kernel_cases import DEVICE, NAN, dtype_name, random
from method_cases import CONFIG, make, run, written
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, build_summaries, get_method
from resa_bench.kernels.cuda import nvrtc
from resa_bench.kernels.fused import compiler
from resa_bench.kernels.fused.layout import Plan, arrangement, constants, lay_out
from resa_bench.kernels.fused.served import unsupported
from resa_bench.kernels.fused.step import bind
from resa_bench.profiling.resources import read_cubin
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import check_step, dense_exact
from resa_bench.suites.micro.inputs import make_inputs

QWEN = AttentionShape(1, 28, 4, 128)
H100_CLUSTERS = {1: 132, 2: 66, 3: 39, 4: 30, 6: 17, 8: 15, 16: 7}  # of CTAs, that run at once; asked of one
SHARED_LIMIT = 227 * 1024


def layout(
    config: SparseConfig, cluster: int, head_dim: int = 128, group: int = 7, tokens: int = 262144, resident: int = 1
) -> Plan:
    return lay_out(config, head_dim, group, tokens, 2, cluster, resident)


COMPILED = [
    (256, 16, 16, "minmax", "fp8", True),
    (64, 9, 8, "meanstd", "fp8", True),
    (128, 7, 128, "minmax", None, False),
    (128, 7, 32, "minmax", None, False),
    (128, 7, 8, "minmax", None, False),
    (128, 16, 16, "minmax", None, False),
    (64, 7, 8, "meanstd", "fp8", True),
    (256, 8, 16, "minmax", None, False),
    *product((64, 128), (7,), (16, 64), ("minmax", "meanstd"), (None, "fp8"), (False, True)),
]


@pytest.mark.thinned(5)
@pytest.mark.parametrize(("head_dim", "group", "block", "kind", "dtype", "paged"), COMPILED)
@pytest.mark.slow
def test_compiles_without_spills(
    head_dim: int, group: int, block: int, kind: str, dtype: str | None, paged: bool
) -> None:
    """For compute capability 9.0, at 256K tokens; the source checks that both sides lay out shared memory alike."""
    if nvrtc.unavailable():
        pytest.skip(str(nvrtc.unavailable()))
    config = SparseConfig(
        block, summary_kind=kind, summary_dtype=dtype, gqa_policy="group-sum" if paged else "group-mean"
    )
    for cluster, resident in ((1, 2), (1, 1), (6, 1), (16, 1)) if block == 16 else ((1, 2), (16, 1)):
        plan = layout(config, cluster, head_dim, group, resident=resident)
        cache = KVCache.allocate(
            1, 1, 64, head_dim, dtype=torch.bfloat16, device="cpu", page_size=256 if paged else None
        )
        cubin = compiler.compile_step(constants(cache, group, config, plan))
        cubin_facts = read_cubin(compiler.KERNEL, cubin, plan.shared_bytes, 8)
        assert cubin_facts.spill_bytes <= (96 if resident == 2 else 0)  # half the registers: a few words a thread
        assert cubin_facts.registers * 256 * resident <= 65536
        assert plan.shared_bytes <= SHARED_LIMIT or cluster == 1


def test_compiler_says_what_is_wrong() -> None:
    if nvrtc.unavailable():
        pytest.skip(str(nvrtc.unavailable()))
    with pytest.raises(RuntimeError, match='identifier "y" is undefined'):
        nvrtc.compile_cubin(b"int x = y;", {})


@pytest.mark.parametrize(
    ("rows", "cluster"), [(1, 16), (4, 16), (8, 8), (16, 6), (17, 6), (18, 4), (32, 3), (66, 2), (132, 1), (133, 0)]
)
def test_cluster_size(rows: int, cluster: int) -> None:
    """As large as all rows fit at once, where rows are short."""
    assert arrangement(rows, 1000, 16, lambda size: H100_CLUSTERS.get(size, 0)) == (cluster, 1)


@pytest.mark.parametrize(
    ("rows", "blocks", "chip", "expected"),
    [
        pytest.param(4, 512, {}, (16, 1), id="8K"),
        pytest.param(4, 2048, {}, (16, 1), id="32K"),
        pytest.param(4, 8192, {}, (8, 3), id="128K"),
        pytest.param(4, 16384, {}, (8, 3), id="256K"),
        pytest.param(4, 16384, {8: 11, 16: 3}, (4, 7), id="256K-smaller-groups"),
        pytest.param(16, 8192, {}, (6, 1), id="four-sequences"),
        pytest.param(1, 8192, {}, (16, 7), id="one-KV-head"),
    ],
)
def test_rows_are_shared_where_it_pays(rows: int, blocks: int, chip: dict[int, int], expected: tuple[int, int]) -> None:
    """As an H200 measured it, blocks of 16, 10 % of them read; a chip of smaller groups takes smaller clusters."""
    at_once = H100_CLUSTERS | chip
    row_bytes = blocks * 512 + blocks // 10 * 8192
    assert arrangement(rows, row_bytes, blocks, lambda size: at_once.get(size, 0)) == expected


def test_layout_shares_the_blocks() -> None:
    """16384 blocks in tiles of 16, 1024 tiles over 6 CTAs: 171 at most; fp8 tiles hold 32 blocks."""
    assert layout(SparseConfig(), 6).keys == 171 * 16
    assert layout(SparseConfig(summary_dtype="fp8"), 16).keys == 32 * 32
    assert layout(SparseConfig(), 16, tokens=1).keys == 16
    assert layout(SparseConfig(), 6).shared_bytes > layout(SparseConfig(), 6).fixed_bytes


@pytest.mark.parametrize(
    ("shape", "changes", "dtype", "reason"),
    [
        (AttentionShape(1, 4, 4, 32), {}, torch.bfloat16, "head_dim: .* 64, 128, 256, got 32"),
        (QWEN, {"gqa_policy": "per-head"}, torch.bfloat16, "gqa_policy: .* got per-head"),
        (QWEN, {}, torch.float32, "dtype: .* got torch.float32"),
        (AttentionShape(1, 17, 1, 128), {}, torch.bfloat16, "q_heads: .* at most 16 .* got 17"),
        (QWEN, {"local_blocks": 0}, torch.bfloat16, "local_blocks: .* needs 1"),
    ],
)
def test_unsupported_settings_are_named(shape: AttentionShape, changes: dict, dtype: torch.dtype, reason: str) -> None:
    why = unsupported(shape, SparseConfig(**changes), dtype)
    assert why is not None
    assert re.search(reason, why)
    assert unsupported(QWEN, SparseConfig(), torch.float16) is None


def test_unavailable_without_a_gpu() -> None:
    assert "CUDA device" in str(get_method("resa-fused").unavailable(QWEN, torch.bfloat16, torch.device("cpu")))


LENGTHS = [(1, 17, 16), (101, 38), (1000, 999, 3), (4097,), (70001, 5), (16, 32, 48, 64, 80)]
SETTINGS = [
    {},
    {"active_ratio": 1.0},
    {"min_blocks": 1, "active_ratio": 0.01},
    {"block_size": 8},
    {"block_size": 32},
    {"block_size": 64, "gqa_policy": "group-sum"},
    {"block_size": 128},
    {"summary_kind": "meanstd", "spread_weight": 0.5},
    {"summary_dtype": "fp8"},
    {"summary_dtype": "fp8", "summary_kind": "meanstd"},
    {"pinned_blocks": 2, "local_blocks": 1},
    {"budget_tokens": 256},
]
HEADS = [
    ModelShape(7, 1, 128), ModelShape(6, 2, 64), ModelShape(32, 4, 128), ModelShape(3, 3, 64), ModelShape(9, 1, 64),
    ModelShape(32, 2, 128), ModelShape(4, 2, 256), ModelShape(16, 1, 256),
]  # fmt: skip


def named(changes: dict) -> str:
    return "-".join(f"{k.split('_')[0]}{v}" for k, v in changes.items()) or "default"


def gate(lengths: Sequence[int], dtype: torch.dtype, **more: object) -> None:
    layer, inputs = make("resa-fused", dtype, lengths, **more)
    check_step(layer, inputs, dense_exact(inputs))
    first, scores = inputs.step.out.clone(), layer.work.scores.clone()
    run(layer, inputs.step)
    assert torch.equal(first, inputs.step.out), "a step gives the same every time"
    assert torch.equal(scores, layer.work.scores) or bool(scores.isnan().any())


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [None, 128], ids=["contiguous", "paged"])
@pytest.mark.parametrize("changes", SETTINGS, ids=named)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda x: "-".join(map(str, x)))
@pytest.mark.slow
def test_step(lengths: Sequence[int], changes: dict, page_size: int | None, dtype: torch.dtype) -> None:
    gate(lengths, dtype, heads=HEADS[0], page_size=page_size, **changes)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("page_size", [None, 128], ids=["contiguous", "paged"])
@pytest.mark.parametrize("changes", SETTINGS, ids=named)
@pytest.mark.parametrize("heads", [ModelShape(7, 1, 128), ModelShape(32, 2, 128), ModelShape(8, 4, 256)], ids=str)
def test_keys_and_values_in_fp8(heads: ModelShape, changes: dict, page_size: int | None, dtype: torch.dtype) -> None:
    gate((5000, 999, 16, 1), dtype, heads=heads, page_size=page_size, kv_dtype="fp8", **changes)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", [None, "fp8"])
@pytest.mark.parametrize("page_size", [None, 128], ids=["contiguous", "paged"])
@pytest.mark.parametrize("heads", [ModelShape(7, 1, 128), ModelShape(32, 2, 128), ModelShape(8, 4, 256)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda x: "-".join(map(str, x)))
def test_dense(
    lengths: Sequence[int], heads: ModelShape, page_size: int | None, kv_dtype: str | None, dtype: torch.dtype
) -> None:
    layer, inputs = make("cuda-dense", dtype, lengths, heads=heads, page_size=page_size, kv_dtype=kv_dtype)
    check_step(layer, inputs, written(layer, inputs))


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.parametrize("page_size", [None, 128], ids=["contiguous", "paged"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"summary_dtype": "fp8"}, {"summary_kind": "meanstd"}], ids=named)
def test_step_of_other_shapes(heads: ModelShape, changes: dict, page_size: int | None, dtype: torch.dtype) -> None:
    gate((1000, 17), dtype, heads=heads, page_size=page_size, **changes)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [3, 9, 33])
def test_step_of_many_rows(batch: int, dtype: torch.dtype) -> None:
    """Clusters from large to single CTAs."""
    gate(tuple(777 + 16 * i for i in range(batch)), dtype, heads=ModelShape(28, 4, 128))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [524288, 1048576])
def test_the_longest_rows(tokens: int, dtype: torch.dtype) -> None:
    gate((tokens,), dtype, heads=ModelShape(7, 1, 128), active_ratio=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [40, 64, 150])
def test_more_rows_than_run_at_once(batch: int, dtype: torch.dtype) -> None:
    """Single CTAs, two to a multiprocessor, in waves."""
    gate(tuple(300 + 7 * i for i in range(batch)), dtype, heads=ModelShape(28, 4, 128))


def spread(kind: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Keys whose blocks' scores tie, or lie far apart."""
    keys = random(*shape, dtype=torch.float32, seed=5)
    if kind == "equal":
        keys = torch.ones_like(keys)
    elif kind == "two values":
        keys = torch.ones_like(keys)
        keys[:, :, shape[2] // 3 : shape[2] // 2] = 2.0
    elif kind == "few values":
        keys = keys.sign() * (torch.arange(shape[2], device=DEVICE) // 64 % 5)[:, None]
    elif kind == "negative":
        keys = -keys.abs() - 1
    elif kind == "orders of magnitude":
        keys = keys * 10.0 ** torch.linspace(-4, 3, shape[2], device=DEVICE)[:, None]
    elif kind == "zeros":
        keys = torch.zeros_like(keys)
    return keys.to(dtype)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.parametrize("ratio", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["equal", "two values", "few values", "negative", "orders of magnitude", "zeros"])
@pytest.mark.slow
def test_ties_and_spreads(kind: str, ratio: float, dtype: torch.dtype) -> None:
    """The search ends at any bit, ties are cut across CTAs, the lower block first; positive queries give order."""
    layer, inputs = make("resa-fused", dtype, (5000, 4990), heads=ModelShape(7, 1, 128), active_ratio=ratio)
    inputs.cache.k.copy_(spread(kind, inputs.cache.k.shape, dtype))
    inputs.step.k.copy_(spread(kind, (2, 1, 1, 128), dtype)[:, :, 0])
    inputs.step.q.abs_()
    build_summaries(inputs.cache, layer.summaries)
    check_step(layer, inputs, dense_exact(inputs))


@pytest.mark.gpu
def test_a_step_ends_on_nan(dtype: torch.dtype) -> None:
    """Nothing good can come of it, but the device must not hang: NaN scores are selected first."""
    layer, inputs = make("resa-fused", dtype, (40, 1000), heads=ModelShape(7, 1, 128), summary_kind="meanstd")
    inputs.step.q.fill_(NAN)
    run(layer, inputs.step)
    torch.cuda.synchronize()
    assert layer.work.lists[0, 0, :3].tolist() == [0, 1, 2]
    assert bool((layer.work.lists[1, 0, : layer.config.selected(1000)] >= 0).all())


@pytest.mark.gpu
def test_arguments_are_checked(dtype: torch.dtype) -> None:
    layer, inputs = make("resa-fused", dtype, (100, 50))
    step, cache, summaries, work = inputs.step, layer.cache, layer.summaries, layer.work
    assert summaries is not None
    wide = replace(work, lists=work.lists.new_empty(2, 2, work.lists.shape[2] + 1))
    for wrong in (
        (replace(step, q=step.q.float()), cache, summaries, work, layer.config),
        (step, cache, replace(summaries, kind="meanstd"), work, layer.config),
        (step, cache, summaries, wide, layer.config),
        (step, cache, summaries, work, replace(layer.config, block_size=8)),
    ):
        with pytest.raises((TypeError, ValueError)):
            bind(*wrong)


@pytest.mark.gpu
def test_sequences_without_a_token(dtype: torch.dtype) -> None:
    layer, inputs = make("resa-fused", dtype, (50, 0, 33))
    out = run(layer, inputs.step)
    assert bool((out[1] == 0).all())
    assert bool((layer.work.lists[1] == -1).all())
    assert layer.work.counts[1].tolist() == [0, 0]
    assert bool(out[0].isfinite().all() and out[2].isfinite().all())


@pytest.mark.gpu
def test_token_major_cache(dtype: torch.dtype) -> None:
    case = Case("tiny", ModelShape(6, 2, 64), 2, 1000, dtype_name(dtype), "clustered")
    inputs = make_inputs(case, DEVICE, 4)
    keys, values = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (inputs.cache.k, inputs.cache.v))
    inputs = replace(inputs, cache=KVCache(keys, values, inputs.cache.lengths))
    method = get_method("resa-fused")
    if reason := method.unavailable(QWEN, dtype, DEVICE):
        pytest.skip(reason)
    layer = method(AttentionShape(2, 6, 2, 64), CONFIG, dtype=dtype, device=DEVICE).prepare(inputs.cache)
    check_step(layer, inputs, dense_exact(inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [None, 64], ids=["contiguous", "paged"])
def test_leaves_what_the_other_kernels_leave(page_size: int | None, dtype: torch.dtype) -> None:
    """Over 40 steps, across blocks: keys, values and summaries bit by bit, and the same lists."""
    layers = [make(name, dtype, (120, 75), page_size=page_size) for name in ("resa-fused", "resa-chain")]
    for _, inputs in layers:
        inputs.cache.lengths.sub_(41)
    for i in range(40):
        for layer, inputs in layers:
            inputs.cache.lengths.add_(1)
            for seed, tensor in enumerate((inputs.step.q, inputs.step.k, inputs.step.v)):
                tensor.copy_(random(*tensor.shape, dtype=dtype, seed=10 * i + seed))
            run(layer, inputs.step)
        (fused, fused_inputs), (chain, chain_inputs) = layers
        lengths = fused_inputs.cache.lengths.tolist()
        for a, b in zip(fused_inputs.cache.gather(), chain_inputs.cache.gather(), strict=True):
            assert all(torch.equal(a[j, :, :n], b[j, :, :n]) for j, n in enumerate(lengths))
        summaries = [layer.summaries.logical(layer.cache) for layer in (fused, chain)]
        blocks = [fused.config.blocks(n) for n in lengths]
        assert all(torch.equal(summaries[0][j, :, :n], summaries[1][j, :, :n]) for j, n in enumerate(blocks))
        assert torch.equal(fused.work.lists, chain.work.lists)
        assert torch.equal(fused.work.counts, chain.work.counts)
        check_step(fused, fused_inputs, dense_exact(fused_inputs))


@pytest.mark.gpu
def test_output_is_written_everywhere(dtype: torch.dtype) -> None:
    layer, inputs = make("resa-fused", dtype, (1000, 1), heads=ModelShape(32, 4, 128))
    inputs.step.out.fill_(NAN)
    assert bool(run(layer, inputs.step).isfinite().all())
