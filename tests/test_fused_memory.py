"""What clusters exchange through device memory is planned for: as much as a bound step allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, Summaries, get_method
from resa_bench.kernels.cuda import occupancy
from resa_bench.kernels.fused import compiler
from resa_bench.kernels.fused import layout as fused_layout
from resa_bench.kernels.fused import memory as fused_memory
from resa_bench.kernels.fused import step as fused_step
from resa_bench.kernels.fused.dense import CudaDenseLayer
from resa_bench.kernels.method import StepTensors
from resa_bench.kernels.workspace import Workspace
from test_fused import H100_CLUSTERS
from torch.utils._python_dispatch import TorchDispatchMode

DTYPE = torch.bfloat16
K, M = 1024, 1024 * 1024


class Allocated(TorchDispatchMode):
    """Counts the bytes of tensors that are made, views aside."""

    total_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.zeros, torch.ops.aten.empty, torch.ops.aten.full):
            self.total_bytes += result.nbytes
        return result


@pytest.fixture(autouse=True)
def chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip that has room for clusters everywhere; nothing is compiled for it."""
    monkeypatch.setattr(compiler, "kernel", lambda *_: None)
    monkeypatch.setattr(occupancy, "clusters_at_once", lambda _, size: fused_memory.EXPECTED_MULTIPROCESSORS // size)
    monkeypatch.setattr(fused_layout, "shared_memory", lambda: 227 * K)


def allocated_bytes(cache: KVCache, shape: AttentionShape, config: SparseConfig | None) -> int:
    """What binding a step allocates: a sparse one, or without settings a dense one."""
    q, out = (torch.empty(shape.batch, shape.q_heads, shape.head_dim, dtype=DTYPE) for _ in range(2))
    k, v = (torch.empty(shape.batch, shape.kv_heads, shape.head_dim, dtype=DTYPE) for _ in range(2))
    step = StepTensors(q, k, v, out)
    if config is None:
        layer = CudaDenseLayer(cache, shape)
        with Allocated() as allocated:
            layer.stages(step)
        return allocated.total_bytes
    summaries = Summaries.allocate(cache, config.block_size, config.summary_kind, config.summary_dtype)
    work = Workspace.allocate(config, shape.kv_heads, cache)
    with Allocated() as allocated:
        fused_step.bind(step, cache, summaries, work, config)
    return allocated.total_bytes


@pytest.mark.parametrize(
    ("name", "shape", "tokens", "settings", "in_fp8"),
    [
        ("resa-fused", AttentionShape(1, 7, 1, 64), 64 * K, {"block_size": 8}, False),
        ("resa", AttentionShape(1, 16, 1, 128), 100_000, {}, True),
        ("resa", AttentionShape(2, 4, 2, 64), 64 * K, {"summary_dtype": "fp8", "active_ratio": 0.5}, False),
        ("cuda-dense", AttentionShape(1, 9, 1, 64), 9000, None, False),
        ("cuda-dense", AttentionShape(1, 14, 2, 128), 30_000, None, True),
    ],
    ids=["b8", "kv-fp8", "fp8", "dense", "dense-kv-fp8"],
)
def test_what_a_bound_step_allocates(
    name: str, shape: AttentionShape, tokens: int, settings: dict[str, Any] | None, in_fp8: bool
) -> None:
    cache = KVCache.allocate(
        shape.batch, shape.kv_heads, tokens, shape.head_dim,
        dtype=DTYPE, device="cpu", kv_dtype="fp8" if in_fp8 else None,
    )  # fmt: skip
    config = None if settings is None else SparseConfig(**settings)
    planned = get_method(name).step_bytes(shape, config or SparseConfig(), DTYPE, tokens, in_fp8)
    assert allocated_bytes(cache, shape, config) == planned > 0


def test_rows_that_no_clusters_share_allocate_nothing() -> None:
    shape, config = AttentionShape(2, 4, 2, 64), SparseConfig()
    cache = KVCache.allocate(2, 2, 320, 64, dtype=DTYPE, device="cpu")
    assert allocated_bytes(cache, shape, config) == 0
    assert get_method("resa").step_bytes(shape, config, DTYPE, 320) == 0


@pytest.mark.parametrize("tokens", [256 * K, M])
def test_the_plan_on_a_known_chip(tokens: int) -> None:
    """On an H100 fewer clusters run at once than planned for; what they exchange is about the same."""
    shape, config = AttentionShape(1, 28, 4, 128), SparseConfig()
    read, blocks = fused_layout.row_bytes(config, 128, tokens, 2, 2), config.blocks(tokens)
    size, clusters = fused_layout.arrangement(4, read, blocks, lambda n: H100_CLUSTERS.get(n, 0))
    layout = fused_layout.lay_out(config, 128, 7, tokens, 2, size, clusters=clusters)
    words, members = fused_layout.exchanged(layout, 7, 128)
    planned = get_method("resa").step_bytes(shape, config, torch.bfloat16, tokens)
    assert planned == pytest.approx(4 * (8 * words + 4 * members), rel=0.15)
    assert planned >= 4 * 8 * blocks, "a word for each block of a row"


@pytest.mark.parametrize("changes", [{"gqa_policy": "per-head"}, {"local_blocks": 0}])
def test_settings_that_the_chain_serves_take_nothing(changes: dict[str, Any]) -> None:
    shape = AttentionShape(1, 28, 4, 128)
    assert get_method("resa").step_bytes(shape, SparseConfig(**changes), torch.bfloat16, M) == 0
    assert get_method("resa-chain").step_bytes(shape, SparseConfig(), torch.bfloat16, M) == 0
