"""Random valid settings equal an independent fp64 reference: the portable path, and the kernels.

RESA_BENCH_FUZZ_KERNELS=10000 pytest tests/test_fuzz_settings.py -k kernels     on a GPU
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

import pytest
import resa_bench.baselines  # noqa: F401  (registers the rivals)
import torch
from fuzz_seeds import seeds
from fuzz_settings import Family, Mismatch, Setting, check
from kernel_cases import DEVICE, DTYPES
from resa_bench.kernels import Unsupported
from resa_bench.kernels.launch import INTERPRET
from torch.nn.functional import scaled_dot_product_attention

SHARDS = 16
FUSED = (3, 6)  # shards that a GPU runs as one kernel a step
CPU = torch.device("cpu")
PORTABLE = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def draw_and_check(drawn: Iterable[int], dtypes: tuple[torch.dtype, ...]) -> None:
    """A setting of the portable path a seed. Raises Mismatch."""
    for seed in drawn:
        rng = random.Random(seed)
        check(Setting.draw(rng, Family.draw(rng, "portable", dtypes), seed), CPU)


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods that have both paths take the portable one, as on a machine without kernels."""
    monkeypatch.setattr("resa_bench.kernels.pipeline.can_run_on", lambda device: "in plain torch here")


def test_portable_settings(portable: None) -> None:
    draw_and_check(seeds("portable", 50), PORTABLE)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_settings_of_the_kernels(shard: int) -> None:
    """On a GPU a shard's settings share the compiled kernels of one family; interpreted, each has its own."""
    for seed in seeds("kernels", SHARDS // 2)[shard::SHARDS]:
        family = Family.draw(random.Random(seed if INTERPRET else f"family {shard}"), "kernels", DTYPES)
        if not INTERPRET and shard in FUSED:
            family = replace(family, method="resa-fused", block_size=32, page_size=None, capacity=700)
            family = replace(family, choice={"local_blocks": 1})
        try:
            check(Setting.draw(random.Random(seed), family, seed), DEVICE)
        except Unsupported as reason:
            pytest.skip(str(reason))


@pytest.mark.parametrize("fault", ["selection", "output", "cache", "rectification"])
def test_the_reference_finds_faults(fault: str, portable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block too far, a value rounded, a token in the wrong place: each is found within a few settings."""
    from resa_bench.kernels.attention import chunk
    from resa_bench.kernels.portable import layer as path
    from resa_bench.kernels.portable import select_torch, write_tokens_torch

    if fault == "selection":
        monkeypatch.setattr(path, "select_torch", lambda scores, n: select_torch(-scores, n))
    elif fault == "output":
        attend = scaled_dot_product_attention
        monkeypatch.setattr(path, "scaled_dot_product_attention", lambda *a, **k: attend(*a, **k) * 1.01)
    elif fault == "cache":
        monkeypatch.setattr(path, "write_tokens_torch", lambda cache, k, v, *a: write_tokens_torch(cache, v, k, *a))
    else:
        monkeypatch.setattr(chunk, "dense_chunk_torch", lambda cache, tensors: tensors.out.zero_())
    with pytest.raises(Mismatch):
        draw_and_check(range(20), PORTABLE[:1])
