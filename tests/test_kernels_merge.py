"""The merge of split results against fp64, within the budget of each precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    DEVICE,
    DTYPES,
    NAN,
    U32,
    poisoned_partials,
    random,
)
from resa_bench.kernels import merge_partials
from resa_bench.kernels.attention.merge import merge_reference
from torch import Tensor

INF = float("inf")


def check_merge(parts: Tensor, lse: Tensor, dtype: torch.dtype) -> None:
    """Merge into a poisoned output; parts of empty splits are poisoned too.

    Weights 2^(lse - top): the difference is rounded (relatively u = 2^-24, and t 2^-t < 1), the exponential is off by
    a few u, n weights and n products are summed and divided: (2 n + 16) u sum w|x| / sum w; and u_d |out| of rounding.
    """
    rows, splits, dim = parts.shape
    partials = poisoned_partials(rows, splits, dim)
    seen = lse > -INF
    partials.out.copy_(parts.masked_fill(~seen[..., None], NAN))
    partials.lse.copy_(lse)
    out = torch.full((rows, dim), NAN, dtype=dtype, device=DEVICE)
    merge_partials(partials, out)
    wanted, size = merge_reference(partials.out, lse), merge_reference(parts.abs(), lse)
    unit = torch.finfo(dtype).eps / 2
    floor = 2.0**-25 if dtype == torch.float16 else 0.0
    assert bool(out.isfinite().all())
    bound = (2 * splits + 16) * U32 * size + unit * wanted.abs() + floor
    assert bool(((out.double() - wanted).abs() <= bound).all())
    assert not out[~seen.any(1)].any(), "a row that saw no key at all must be zero"


@pytest.mark.sanitizer
@pytest.mark.parametrize("splits", [1, 2, 3, 8, 33, 128])
@pytest.mark.parametrize("dim", [64, 128])
def test_merge(splits: int, dim: int, dtype: torch.dtype) -> None:
    parts = random(6, splits, dim, dtype=torch.float32, seed=splits)
    lse = 5 * random(6, splits, dtype=torch.float32, seed=splits + 1)
    lse[0] = -INF  # nothing seen
    lse[1, 1:] = -INF  # one split
    lse[2, ::2] = -INF
    lse[3] *= 1000  # far apart
    lse[4] = 7.0  # equal weights
    check_merge(parts, lse, dtype)


@pytest.mark.sanitizer
@pytest.mark.slow
def test_merge_many_rows() -> None:
    parts, lse = random(513, 3, 16, dtype=torch.float32, seed=1), random(513, 3, dtype=torch.float32, seed=2)
    check_merge(parts, lse, DTYPES[0])


def test_merge_all_rows_empty(dtype: torch.dtype) -> None:
    check_merge(torch.ones(4, 3, 64, device=DEVICE), torch.full((4, 3), -INF, device=DEVICE), dtype)


def test_merge_takes_any_leading_shape(dtype: torch.dtype) -> None:
    partials = poisoned_partials(6, 1, 16)
    partials.out.copy_(random(6, 1, 16, dtype=torch.float32, seed=1))
    partials.lse.zero_()
    out = torch.full((2, 3, 16), NAN, dtype=dtype, device=DEVICE)
    merge_partials(partials, out)
    assert torch.equal(out.view(6, 16), partials.out[:, 0].to(dtype))


@given(
    rows=st.integers(1, 4),
    splits=st.integers(1, 9),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_merge_anything(rows: int, splits: int, spread: float, share: float, seed: int) -> None:
    parts = random(rows, splits, 16, dtype=torch.float32, seed=seed)
    lse = spread * random(rows, splits, dtype=torch.float32, seed=seed + 1)
    empty = torch.rand(rows, splits, generator=torch.Generator().manual_seed(seed)) < share
    check_merge(parts, lse.masked_fill(empty.to(DEVICE), -INF), DTYPES[0])


def test_merge_reference_is_attention_over_the_union() -> None:
    """Attention over two halves, merged, is attention over both."""
    q, k, v = (random(n, 16, dtype=torch.float32, seed=n).double() for n in (3, 20, 21))
    k, v = k[:20], v[:20]
    logits = q @ k.T
    halves = [slice(0, 7), slice(7, 20)]
    out = torch.stack([torch.softmax(logits[:, h], 1) @ v[h] for h in halves], 1)
    lse = torch.stack([torch.logsumexp(logits[:, h], 1) for h in halves], 1) / torch.log(torch.tensor(2.0))
    assert torch.allclose(merge_reference(out, lse), torch.softmax(logits, 1) @ v)
