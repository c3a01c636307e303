"""The fused step's source on a CPU, under the gate that every method passes; only its speed needs a GPU."""

from __future__ import annotations

import fused_host
import pytest
import torch
from kernel_cases import DEVICE, NAN, random
from method_cases import make, run, written
from resa_bench.kernels import build_summaries, get_method, pipeline
from resa_bench.kernels.cuda import occupancy
from resa_bench.kernels.fused import compiler
from resa_bench.kernels.fused import dense as fused_dense
from resa_bench.kernels.fused import layout as fused_layout
from resa_bench.suites.micro.cases import ModelShape
from resa_bench.suites.micro.checks import check_step, dense_exact
from test_fused import HEADS, SETTINGS, gate, named, spread

pytestmark = [
    pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/test_fused.py runs the kernel itself"),
    pytest.mark.skipif(fused_host.unavailable() is not None, reason=str(fused_host.unavailable())),
]
FP16 = torch.float16


@pytest.fixture(params=[3], ids=lambda largest: f"cluster{largest}")
def largest(request: pytest.FixtureRequest) -> int:
    """CTAs of the largest cluster that the chip is said to have room for."""
    return int(request.param)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """`resa-fused` on CPU tensors, by the emulator."""
    at_once = {size: n for size, n in fused_host.CLUSTERS_AT_ONCE.items() if size <= largest}
    monkeypatch.setattr(compiler, "kernel", fused_host.kernel)
    monkeypatch.setattr(occupancy, "clusters_at_once", lambda device, size: at_once.get(size, 0))
    monkeypatch.setattr(fused_layout, "shared_memory", lambda: 227 * 1024)
    for name in ("resa-fused", "cuda-dense"):
        monkeypatch.setattr(get_method(name), "unavailable", classmethod(lambda *_: None))


@pytest.mark.slow
@pytest.mark.parametrize("changes", SETTINGS, ids=named)
def test_step(changes: dict) -> None:
    gate((1000, 17), FP16, heads=HEADS[0], **changes)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [2], indirect=True)
@pytest.mark.parametrize(("page_size", "kind"), [(None, "minmax"), (64, "meanstd")])
def test_blocks_that_share_a_unit(page_size: int | None, kind: str) -> None:
    """Blocks of 8, two to a tile of the matrix units: one token, a full block, one that is not, odd numbers of them."""
    heads = ModelShape(7, 1, 64)
    gate((1, 7, 8, 9, 24, 203), FP16, heads=heads, page_size=page_size, block_size=8, summary_kind=kind)


@pytest.mark.parametrize("largest", [0, 1, 2, 6, 16], indirect=True)
@pytest.mark.slow
def test_clusters(largest: int) -> None:
    """From single CTAs, two to a multiprocessor, to the largest clusters."""
    gate((777, 48), FP16, heads=ModelShape(7, 1, 128))


ARRANGED = [
    pytest.param((2, 3), (777, 48, 1), ModelShape(7, 1, 128), {}, id="2x3"),
    pytest.param((4, 2), (203, 1030), ModelShape(6, 2, 64), {"page_size": 128}, id="4x2-paged"),
    pytest.param((1, 5), (900,), ModelShape(16, 1, 64), {"block_size": 8, "summary_kind": "meanstd"}, id="1x5-b8"),
    pytest.param((3, 2), (530, 16), ModelShape(7, 1, 256), {"summary_dtype": "fp8", "pinned_blocks": 2}, id="3x2-fp8"),
    pytest.param((2, 2), (640,), ModelShape(7, 1, 64), {"active_ratio": 1.0}, id="2x2-all"),
    pytest.param((2, 1), (300, 17, 1), ModelShape(7, 1, 128), {"kv_dtype": "fp8"}, id="kv-fp8"),
    pytest.param(
        (2, 2), (410, 90), ModelShape(6, 2, 128),
        {"kv_dtype": "fp8", "page_size": 128, "summary_kind": "meanstd"}, id="kv-fp8-2x2-paged",
    ),
    pytest.param(
        (1, 1), (203, 64), ModelShape(16, 1, 256),
        {"kv_dtype": "fp8", "block_size": 8, "summary_dtype": "fp8"}, id="kv-fp8-b8",
    ),
    pytest.param(
        (3, 1), (330,), ModelShape(9, 1, 128),
        {"kv_dtype": "fp8", "block_size": 64, "gqa_policy": "group-sum"}, id="kv-fp8-b64",
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("arranged", "lengths", "heads", "changes"), ARRANGED)
def test_arrangements(
    arranged: tuple[int, int], lengths: tuple, heads: ModelShape, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CTAs of a cluster and clusters of a row, which tell each other scores and results through global memory.

    Some have no block, or nothing to attend to. In e4m3 the new token is written over the scales, its block is
    summarised as it is read back, and attention is that of both.
    """
    monkeypatch.setattr(fused_layout, "arrangement", lambda *_: arranged)
    gate(lengths, FP16, heads=heads, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_a_new_token_in_fp8_is_written_as_the_chain_writes_it(kind: str) -> None:
    """Keys of any size, values larger than their scale allows."""
    made = []
    for name in ("resa-chain", "resa-fused"):
        layer, inputs = make(
            name, FP16, (70, 1), heads=ModelShape(2, 1, 128), kv_dtype="fp8", summary_kind=kind, block_size=8
        )
        inputs.step.k.copy_(random(2, 1, 128, dtype=FP16, seed=3))
        inputs.step.v.copy_(random(2, 1, 128, dtype=FP16, seed=4) * 1000)
        run(layer, inputs.step)
        summaries = layer.summaries.data.float()
        made.append((*inputs.cache.gather(), summaries[0, :, :9], summaries[1, :, :1], layer.work.lists))
    for chain, fused in zip(*made, strict=True):
        assert torch.allclose(chain.float(), fused.float(), rtol=1e-3, atol=1e-5)


DENSE = [
    ((2, 1), (300, 17, 1), ModelShape(7, 1, 128), {}),
    ((1, 3), (410, 90), ModelShape(6, 2, 64), {"page_size": 128}),
    ((1, 2), (203, 64), ModelShape(16, 1, 256), {"kv_dtype": "fp8"}),
    ((3, 1), (330,), ModelShape(9, 1, 128), {"page_size": 32, "kv_dtype": "fp8"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arranged", "lengths", "heads", "cache"),
    DENSE,
    ids=[f"{heads.q_heads}x{heads.head_dim}" for _, _, heads, _ in DENSE],
)
def test_dense(
    arranged: tuple[int, int], lengths: tuple, heads: ModelShape, cache: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks, nothing scored: one token, partial blocks, CTAs with nothing to read."""
    monkeypatch.setattr(fused_dense, "arrangement", lambda *_: arranged)
    layer, inputs = make("cuda-dense", FP16, lengths, heads=heads, **cache)
    check_step(layer, inputs, written(layer, inputs))


def test_dense_writes_the_new_token_first() -> None:
    layer, inputs = make("cuda-dense", FP16, (50, 0, 33))
    inputs.step.k.normal_()
    out = run(layer, inputs.step)
    assert bool((out[1] == 0).all())
    assert torch.equal(inputs.cache.gather()[0][0, :, 49], inputs.step.k[0])
    check_step(layer, inputs, written(layer, inputs))


def test_what_clusters_published_before_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound step that runs again, on other queries, gives what a newly bound one gives."""
    monkeypatch.setattr(fused_layout, "arrangement", lambda *_: (1, 3))
    layer, inputs = make("resa-fused", FP16, (200,), heads=ModelShape(2, 1, 64))
    (stage,) = layer.stages(inputs.step)
    for _ in range(3):
        inputs.step.q.normal_()
        stage.run()
        out, lists = inputs.step.out.clone(), layer.work.lists.clone()
        assert torch.equal(out, run(layer, inputs.step))
        assert torch.equal(lists, layer.work.lists)


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize("largest", [2], indirect=True)
@pytest.mark.parametrize("heads", HEADS[1:], ids=str)
def test_shapes(heads: ModelShape) -> None:
    gate((300, 17), FP16, heads=heads, page_size=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (1, {"block_size": 128}),
        (7, {"summary_dtype": "fp8"}),
        (9, {"block_size": 8, "summary_kind": "meanstd"}),
        (16, {"block_size": 32, "gqa_policy": "group-sum"}),
    ],
    ids=lambda x: named(x) if isinstance(x, dict) else f"group{x}",
)
def test_teams(group: int, changes: dict) -> None:
    """Head dim 256: two warps share the tokens, and a summary in 16 bits takes two loads."""
    gate((1, 130, 255), FP16, heads=ModelShape(group, 1, 256), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0], indirect=True)
@pytest.mark.parametrize("head_dim", [128, 256])
def test_teams_of_ctas_that_share_a_multiprocessor(head_dim: int) -> None:
    """Half the registers: twice the warps share the dims of 16 heads."""
    gate((40, 77), FP16, heads=ModelShape(16, 1, head_dim))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "policy"), [(1, "group-mean"), (7, "group-sum"), (9, "group-mean"), (16, "group-sum")]
)
def test_groups(group: int, policy: str) -> None:
    """Heads of one operand of the matrix units, and of two."""
    gate((1, 90), FP16, heads=ModelShape(group, 1, 64), block_size=8, gqa_policy=policy)


@pytest.mark.thinned(2)
@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1])
@pytest.mark.parametrize("kind", ["equal", "two values", "few values", "negative", "orders of magnitude", "zeros"])
def test_ties_and_spreads(kind: str, ratio: float) -> None:
    """The search ends at any bit, and ties are cut across CTAs, the lower block first."""
    layer, inputs = make("resa-fused", FP16, (1990,), heads=ModelShape(3, 1, 64), active_ratio=ratio)
    inputs.cache.k.copy_(spread(kind, inputs.cache.k.shape, FP16))
    inputs.step.k.copy_(spread(kind, (1, 1, 1, 64), FP16)[:, :, 0])
    inputs.step.q.abs_()
    build_summaries(inputs.cache, layer.summaries)
    check_step(layer, inputs, dense_exact(inputs))


def test_sequences_without_a_token() -> None:
    layer, inputs = make("resa-fused", FP16, (50, 0, 33))
    out = run(layer, inputs.step)
    assert bool((out[1] == 0).all())
    assert bool((layer.work.lists[1] == -1).all())
    assert bool(out[0].isfinite().all() and out[2].isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("largest", [16], indirect=True)
def test_rows_of_more_blocks_than_16_bits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of NaN, which make all scores alike: 65536 blocks in one bin of the search, the first ones selected."""
    monkeypatch.setattr(pipeline, "build_summaries", lambda cache, summaries: summaries.data.zero_())
    layer, inputs = make(
        "resa-fused", FP16, (65536 * 8,), heads=ModelShape(1, 1, 64), block_size=8, active_ratio=0.001,
        summary_kind="meanstd", summary_dtype="fp8",
    )  # fmt: skip
    inputs.step.q.fill_(NAN)
    run(layer, inputs.step)
    assert layer.work.lists[0, 0].tolist() == list(range(66))
