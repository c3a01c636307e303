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


def test_types_of_a_shape_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, check = [], tl.core.validate_block_shape

    def counting(shape: Any) -> int:
        made.append(shape)
        return int(check(shape))

    launched()
    monkeypatch.setattr(tl.core, "validate_block_shape", counting)
    launched()
    assert len(made) < CALLS


def test_types_are_told_apart_and_refused_as_before() -> None:
    import triton.runtime.interpreter as interpreter

    elements = [tl.float32, tl.int1, tl.bfloat16, tl.pointer_type(tl.int1), tl.pointer_type(tl.float32)]
    blocks = [tl.block_type(element, [8, 4]) for element in elements for _ in range(2)]
    assert [str(block.element_ty) for block in blocks[::2]] == [
        "fp32",
        "int1",
        "bf16",
        "pointer<int1>",
        "pointer<fp32>",
    ]
    assert blocks[::2] == blocks[1::2]
    assert all(block != other for block in blocks[::2] for other in blocks[::2] if block is not other)
    names = [interpreter._get_np_dtype(block).name for block in blocks[::2]]
    assert names == ["float32", "bool", "uint16", "uint64", "uint64"]
    assert (tl.block_type(tl.float32, [4, 8]).numel, blocks[0].numel) == (32, 32)
    assert tl.block_type(tl.float32, [4, 8]) != blocks[0]
    for _ in range(2):
        with pytest.raises(ValueError, match="power of 2"):
            tl.block_type(tl.float32, [12])
        with pytest.raises(TypeError, match="0d"):
            tl.block_type(tl.float32, [])
        with pytest.raises(TypeError, match="must have type"):
            tl.block_type(tl.float32, [4.0])
