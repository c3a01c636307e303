"""What the layers of a model share in a dense method: FlashInfer's plan (its library faked), our split results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, make_cache, make_method
from resa_bench.baselines import flashinfer
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, StepTensors
from resa_bench.kernels.triton_dense import TritonDenseLayer
from torch import Tensor

SHAPE = AttentionShape(2, 4, 2, 64)


class FakeWrapper:
    """Records what FlashInfer's wrapper is asked."""

    made: list[FakeWrapper]

    def __init__(self, workspace: Tensor, layout: str, **buffers: Any) -> None:
        self.workspace, self.buffers = workspace, buffers
        self.runs: list[Any] = []
        FakeWrapper.made.append(self)

    def plan(self, indptr: Tensor, indices: Tensor, last: Tensor, *rest: Any, **options: Any) -> None:
        self.planned = indptr.tolist(), indices.tolist(), last.tolist()

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        self.runs.append(cache[0].data_ptr())
        return out


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> flashinfer.FlashInfer:
    FakeWrapper.made = []
    library = SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=FakeWrapper)
    monkeypatch.setattr(flashinfer, "load", lambda name: library)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 64)
    return flashinfer.FlashInfer(SHAPE, SparseConfig(), dtype=DTYPES[0], device=DEVICE)


def cache_of(*lengths: int, capacity: int = 64, layout: str = "contiguous", seed: int = 0) -> KVCache:
    return make_cache(lengths, dtype=DTYPES[0], capacity=capacity, layout=layout, page_size=16, seed=seed)


def test_layers_share_one_plan(method: flashinfer.FlashInfer) -> None:
    caches = [cache_of(40, 17, seed=seed) for seed in range(3)]
    layers = [method.prepare(cache) for cache in caches]
    (wrapper,) = FakeWrapper.made
    assert wrapper.planned == ([0, 3, 5], [0, 1, 2, 8, 9], [8, 1])  # pages of the first head; two heads of 4 pages
    q = torch.empty(2, 4, 64, dtype=DTYPES[0], device=DEVICE)
    step = StepTensors(q, q[:, :2].contiguous(), q[:, :2].contiguous(), torch.empty_like(q))
    for layer in layers:
        layer.stages(step)[1].run()
    assert wrapper.runs == [cache.k.data_ptr() for cache in caches], "each layer reads its own cache"


@pytest.mark.parametrize(
    "other",
    [{"lengths": (41, 17)}, {"lengths": (40, 17), "capacity": 128}, {"lengths": (40, 17), "layout": "paged"}],
    ids=["other-lengths", "other-capacity", "paged"],
)
def test_another_layout_is_planned_anew(method: flashinfer.FlashInfer, other: dict[str, Any]) -> None:
    """With scratch of the first plan, which bound layers keep."""
    method.prepare(cache_of(40, 17))
    method.prepare(cache_of(*other.pop("lengths"), **other))
    first, second = FakeWrapper.made
    assert first.planned != second.planned
    assert first.workspace is second.workspace


def test_the_lengths_bound_at_count_not_the_tensor(method: flashinfer.FlashInfer) -> None:
    """Lengths that changed in place since are planned anew."""
    cache = cache_of(40, 17)
    method.prepare(cache)
    cache.lengths.add_(1)
    method.prepare(cache)
    assert [wrapper.planned[2] for wrapper in FakeWrapper.made] == [[8, 1], [9, 2]]


def test_layers_of_our_dense_method_share_split_results() -> None:
    method = make_method("triton-dense", SHAPE, SparseConfig(), DTYPES[0])
    layers = [method.prepare(cache_of(40, 17, seed=seed)) for seed in range(2)]
    assert isinstance(layers[0], TritonDenseLayer)
    assert isinstance(layers[1], TritonDenseLayer)
    assert layers[0].partials is layers[1].partials
