"""The interpreter that tests run kernels in: quicker than Triton's own, and otherwise the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import DEVICE
from resa_bench.kernels.launch import INTERPRET

pytestmark = pytest.mark.skipif(not INTERPRET, reason="kernels are compiled here")
CALLS = 20


@triton.jit
def _more(x, by):
    return x + by


@triton.jit
def _count_kernel(out, CALLS: tl.constexpr):
    x = tl.full([8], 0, tl.int32)
    for _ in range(CALLS):
        x = _more(x, 2**30)
    tl.store(out + tl.arange(0, 8), x + tl.sum(tl.arange(0, 8), axis=0))


@triton.jit
def _failing_kernel(out):
    tl.store(out + tl.arange(0, 8), _more(tl.arange(0, 8), tl.arange(0, 4)))


def launched() -> list[int]:
    out = torch.full((8,), -1, dtype=torch.int32, device=DEVICE)
    _count_kernel[(1,)](out, CALLS)
    return out.tolist()


def test_the_language_is_named_again_once_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each module of it that functions see, not for each call."""
    import triton.runtime.interpreter as interpreter

    named, replace = [], interpreter._patch_builtin

    def counting(package: Any, *rest: Any) -> None:
        named.append(package)
        replace(package, *rest)

    monkeypatch.setattr(interpreter, "_patch_builtin", counting)
    wrapped = [(CALLS * 2**30 + 28 + 2**31) % 2**32 - 2**31] * 8  # sums wrap around, as compiled ones do
    for _ in range(2):
        named.clear()
        assert launched() == wrapped
        assert 0 < len(named) < CALLS


def test_the_language_is_its_own_again_after_a_launch() -> None:
    before = dict(vars(tl))
    launched()
    with pytest.raises(Exception, match="Cannot make_shape_compatible"):
        _failing_kernel[(1,)](torch.zeros(8, dtype=torch.int32, device=DEVICE))
    assert dict(vars(tl)) == before
    assert launched()[0] == (CALLS * 2**30 + 28 + 2**31) % 2**32 - 2**31
