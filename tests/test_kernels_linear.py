"""Linear layers and rope: kernels against fp64 within their rounding errors, 4-bit packing, argument checks."""

from __future__ import annotations

from typing import Any

import pytest
import resa_bench.kernels.linear.int4 as int4_module
import resa_bench.kernels.linear.int4_rows as int4_rows
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import DEVICE, DTYPES, NAN, U32, random, same
from linear_cases import check_linear, make_linear
from resa_bench.kernels.exact import UNIT_ROUNDOFF
from resa_bench.kernels.linear.dispatch import linear, linear_reference
from resa_bench.kernels.linear.int4 import Int4Weight, dequantise, pack, quantise, unpack
from resa_bench.kernels.linear.int4_linear import int4_small_linear
from resa_bench.kernels.linear.int4_rows import dequantise_kernel, int4_linear
from resa_bench.kernels.linear.rope import rope_kernel, rope_reference, rope_split
from resa_bench.kernels.linear.small_linear import small_linear
from resa_bench.kernels.linear.weights import DenseWeight, Norm

FUSED = ("", "bias", "residual", "norm", "swiglu", "norm+bias+swiglu+residual")
dtypes = st.sampled_from(DTYPES)


@pytest.mark.sanitizer
@pytest.mark.parametrize("fused", FUSED, ids=lambda f: f or "plain")
@pytest.mark.parametrize(("rows", "total", "depth"), [(1, 64, 512), (3, 50, 200), (8, 32, 1032), (16, 90, 75)])
def test_small_linear(rows: int, total: int, depth: int, fused: str, dtype: torch.dtype) -> None:
    case = make_linear(rows, total, depth, dtype, fused=fused)
    out = case.poisoned()
    assert small_linear(case.x, case.weight, **case.fused, out=out) is out
    check_linear(case, out)


@pytest.mark.sanitizer
@pytest.mark.parametrize("fused", FUSED, ids=lambda f: f or "plain")
@pytest.mark.parametrize(
    ("rows", "total", "depth", "group"),
    [(1, 64, 1024, 128), (3, 50, 320, 32), (8, 32, 192, 64), (16, 90, 384, 128), (5, 20, 768, 256)],
)
@pytest.mark.slow
def test_int4_small_linear(rows: int, total: int, depth: int, group: int, fused: str, dtype: torch.dtype) -> None:
    case = make_linear(rows, total, depth, dtype, group=group, fused=fused)
    out = case.poisoned()
    assert int4_small_linear(case.x, case.weight, **case.fused, out=out) is out
    check_linear(case, out)


ROUTES = {
    "few": ((17, 32), {}),
    "scratch": ((40, 130), {}),
    "narrow": ((40, 70), dict(SCRATCH_BYTES=0)),
    "wide": ((17, 70, 128), dict(SCRATCH_BYTES=0, NARROW=0)),
}


@pytest.mark.sanitizer
@pytest.mark.parametrize("fused", ["", "bias"], ids=lambda f: f or "plain")
@pytest.mark.parametrize(("total", "depth", "group"), [(64, 512, 128), (50, 320, 32), (130, 192, 64)])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.slow
def test_int4_linear(
    route: str, total: int, depth: int, group: int, fused: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way that `int4_linear` goes by row count and size, at any size."""
    counts, constants = ROUTES[route]
    for name, value in constants.items():
        monkeypatch.setattr(int4_rows, name, value)
    for rows in counts:
        case = make_linear(rows, total, depth, dtype, group=group, fused=fused)
        out = case.poisoned()
        assert int4_linear(case.x, case.weight, out=out) is out
        check_linear(case, out, rounds_weights=True)


@given(st.integers(1, 16), st.integers(1, 40), st.integers(1, 300), st.sampled_from(FUSED), dtypes, st.integers(0, 99))
def test_small_linear_of_any_shape(rows: int, half: int, depth: int, fused: str, dtype: torch.dtype, seed: int) -> None:
    case = make_linear(rows, 2 * half, depth, dtype, fused=fused, seed=seed)
    check_linear(case, small_linear(case.x, case.weight, **case.fused, out=case.poisoned()))


@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 9), st.sampled_from((32, 64, 128)), st.sampled_from(FUSED),
    dtypes, st.integers(0, 99),
)  # fmt: skip
def test_int4_of_any_shape(
    rows: int, half: int, groups: int, group: int, fused: str, dtype: torch.dtype, seed: int
) -> None:
    small = rows <= 16
    fused = fused if small or fused == "bias" else ""
    case = make_linear(rows, 2 * half, group * groups, dtype, group=group, fused=fused, seed=seed)
    if small:
        check_linear(case, int4_small_linear(case.x, case.weight, **case.fused, out=case.poisoned()))
    else:
        check_linear(case, int4_linear(case.x, case.weight, out=case.poisoned()), rounds_weights=True)


def test_large_activations(dtype: torch.dtype) -> None:
    """One channel a thousand times the others, as language models have them: the norm's squares must not overflow."""
    case = make_linear(4, 48, 512, dtype, fused="norm")
    case.x[:, 7] = 3000.0
    check_linear(case, small_linear(case.x, case.weight, norm=case.norm, out=case.poisoned()))


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_packing(group: int) -> None:
    q = torch.randint(0, 16, (3, 3 * group), generator=torch.Generator().manual_seed(group)).to(DEVICE, torch.int32)
    words = pack(q, group)
    assert words.shape == (3, group)
    assert torch.equal(unpack(words, 3 * group, group), q)
    assert torch.equal((words[:, 5].to(torch.int32) >> 8) & 15, q[:, 2 * group + 5])


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.float16], ids=str)
def test_quantise_rounds_to_the_nearest(
    group: int, source: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a step, and what rounding scale and zero to the dtype moves the ends of the range by. Chunks agree."""
    weight = random(20, 384, dtype=source, seed=3) * 0.02 + 0.01
    weight[3, :group] = 0.25
    packed = quantise(weight, group=group, dtype=dtype)
    back = dequantise(packed, torch.float64)
    scale, zero = packed.scales.double()[: 384 // group].repeat_interleave(group, dim=0).permute(2, 1, 0)
    u = UNIT_ROUNDOFF[dtype]
    floor = 2.0**-25 if dtype == torch.float16 else 0.0
    bound = 0.5 * scale + 16 * (u * scale + floor) + 2 * u * zero.abs() + 64 * U32 * (zero.abs() + scale)
    assert bool(((weight.double() - back).abs() <= bound).all())
    assert float(back[3, 0]) == 0.25
    monkeypatch.setattr(int4_module, "CHUNK_ELEMENTS", 3 * 384)
    pieces = quantise(weight, group=group, dtype=dtype)
    assert torch.equal(pieces.words, packed.words)
    assert torch.equal(pieces.scales, packed.scales)
    assert torch.equal(dequantise(pieces, torch.float64), back)


@pytest.mark.parametrize(("depth", "group"), [(384, 32), (320, 64), (256, 128), (256, 256)])
def test_dequantise_kernel(depth: int, group: int, dtype: torch.dtype) -> None:
    """Each weight is rounded once."""
    packed = quantise(random(37, depth, dtype=torch.float32, seed=1), group=group, dtype=dtype)
    exact = dequantise(packed, torch.float64)
    out = torch.full((37, depth), NAN, dtype=dtype, device=DEVICE)
    assert dequantise_kernel(packed, out) is out
    floor = 2.0**-25 if dtype == torch.float16 else 0.0
    rounded = UNIT_ROUNDOFF[dtype] * exact.abs() + floor + (8 * U32 if dtype == torch.float32 else 0.0)
    assert bool(((out.double() - exact).abs() <= rounded).all())


def test_sizes() -> None:
    """What a multiplication reads: half a byte a weight, four bytes a group, and the bias."""
    weight = torch.zeros(64, 1024, dtype=torch.float16)
    packed = quantise(weight, torch.zeros(64, dtype=torch.float16))
    assert packed.shape == DenseWeight(weight).shape == (64, 1024)
    assert packed.bytes == 64 * 1024 // 2 + 64 * 8 * 4 + 64 * 2
    assert DenseWeight(weight).bytes == 64 * 1024 * 2


@pytest.mark.parametrize("group", [0, 64], ids=["dense", "int4"])
def test_linear_on_a_cpu_is_the_reference(group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 128, generator=generator), torch.randn(24, 128, generator=generator)
    packed = quantise(weight, group=group) if group else DenseWeight(weight)
    norm, residual = Norm(torch.ones(128), 1e-6), torch.randn(2, 12, generator=generator)
    result = linear(x, packed, norm=norm, residual=residual, swiglu=True)
    plain = DenseWeight(dequantise(packed)) if isinstance(packed, Int4Weight) else packed
    assert torch.equal(result, linear_reference(x, plain, norm=norm, residual=residual, swiglu=True))


@pytest.mark.gpu
@pytest.mark.parametrize("group", [0, 64], ids=["dense", "int4"])
def test_linear_on_a_gpu(group: int, dtype: torch.dtype) -> None:
    """Few rows by the fused kernel, many 4-bit rows by their own, between torch's norm and addition."""
    few = make_linear(16, 48, 256, dtype, group=group, fused="norm+bias+swiglu+residual")
    small = int4_small_linear if group else small_linear
    assert torch.equal(linear(few.x, few.weight, **few.fused), small(few.x, few.weight, **few.fused))
    many = make_linear(40, 48, 256, dtype, group=group, fused="bias+residual")
    result = linear(many.x, many.weight, residual=many.residual)
    if group:
        assert torch.equal(result, many.residual + int4_linear(many.x, many.weight))
    else:
        assert torch.equal(result, linear_reference(many.x, many.weight, residual=many.residual))


@pytest.mark.sanitizer
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("rows", "q_heads", "kv_heads", "dim"), [(1, 4, 4, 64), (3, 6, 2, 128), (5, 7, 1, 80)])
def test_rope(rows: int, q_heads: int, kv_heads: int, dim: int, normed: bool, dtype: torch.dtype) -> None:
    """Values are copied; a rotation is two products and a sum in fp32, a norm dim + 8 roundings, and one rounding."""
    qkv = random(rows, (q_heads + 2 * kv_heads) * dim + 16, dtype=dtype, seed=5)[:, :-16]
    angle = random(rows, dim // 2, dtype=torch.float32, seed=6)
    cos, sin = angle.cos(), angle.sin()
    norms: dict[str, Any] = {}
    if normed:
        norms = {n: Norm(1 + 0.2 * random(dim, dtype=dtype, seed=i), 1e-6) for i, n in enumerate(("q_norm", "k_norm"))}

    def outputs(kind: torch.dtype) -> list[torch.Tensor]:
        heads = (q_heads, kv_heads, kv_heads)
        return [torch.full((rows, h, dim), NAN, dtype=kind, device=DEVICE) for h in heads]

    rotated, exact = outputs(dtype), outputs(torch.float64)
    rope_kernel(qkv, cos, sin, *rotated, **norms)
    wide = {name: Norm(norm.weight.double(), norm.eps) for name, norm in norms.items()}
    exact_rope(qkv.double(), cos.double(), sin.double(), *exact, **wide)
    for actual, expected in zip(rotated[:2], exact[:2], strict=True):
        size = expected.unflatten(-1, (2, -1)).square().sum(-2, keepdim=True).sqrt().expand(-1, -1, 2, -1).flatten(2)
        floor = 2.0**-25 if dtype == torch.float16 else 0.0
        budget = UNIT_ROUNDOFF[dtype] * expected.abs() + (dim + 16 if normed else 8) * U32 * size + floor
        assert bool(((actual.double() - expected).abs() <= budget).all())
    assert torch.equal(rotated[2].double(), exact[2])


def exact_rope(qkv, cos, sin, q, k, v, *, q_norm=None, k_norm=None) -> None:  # type: ignore[no-untyped-def]
    """`rope_reference` without its step to fp32."""
    parts = qkv.unflatten(-1, (-1, q.shape[-1])).split((q.shape[1], k.shape[1], k.shape[1]), dim=1)
    v.copy_(parts[2])
    for part, norm, out in ((parts[0], q_norm, q), (parts[1], k_norm, k)):
        if norm is not None:
            part = part * (part.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
        a, b = part.chunk(2, dim=-1)
        out.copy_(torch.cat((a * cos[:, None] - b * sin[:, None], b * cos[:, None] + a * sin[:, None]), dim=-1))


def test_rope_reference_and_split_agree(dtype: torch.dtype) -> None:
    """`rope_split` takes the reference on a CPU, the kernel on a GPU; the two differ by two roundings at the most."""
    qkv, angle = random(2, 6 * 64, dtype=dtype, seed=1), random(2, 32, dtype=torch.float32, seed=2)
    first, second = ([torch.empty(2, h, 64, dtype=dtype, device=DEVICE) for h in (4, 1, 1)] for _ in range(2))
    rope_split(qkv, angle.cos(), angle.sin(), *first)
    rope_reference(qkv, angle.cos(), angle.sin(), *second)
    for a, b in zip(first, second, strict=True):
        assert same(a, b) or bool(((a - b).abs() <= 4 * UNIT_ROUNDOFF[dtype] * b.abs() + 16 * U32).all())


def bad_calls() -> dict[str, tuple[type[Exception], str, dict[str, Any]]]:
    half = DTYPES[0]
    ones = lambda *shape, dtype=half: torch.ones(*shape, dtype=dtype, device=DEVICE)  # noqa: E731
    return {
        "rows": (ValueError, "17 rows", dict(x=ones(17, 64))),
        "no rows": (ValueError, "0 rows", dict(x=ones(0, 64))),
        "depth": (ValueError, "x: got shape", dict(x=ones(2, 32))),
        "dtype": (TypeError, "x: got dtype float64", dict(x=ones(2, 64, dtype=torch.float64))),
        "other dtype": (TypeError, "weight", dict(x=ones(2, 64, dtype=DTYPES[1]))),
        "norm": (ValueError, "norm.weight", dict(norm=Norm(ones(63), 1e-6))),
        "residual": (ValueError, "residual", dict(residual=ones(2, 14))),
        "residual dtype": (TypeError, "residual", dict(residual=ones(2, 15, dtype=torch.float64))),
        "swiglu": (ValueError, "even", dict(swiglu=True)),
        "out": (ValueError, "out", dict(out=ones(3, 15))),
        "strided out": (ValueError, "out: must be contiguous", dict(out=ones(2, 30)[:, :15])),
        "x strides": (ValueError, "x: stride", dict(x=ones(64, 2).T)),
    }


@pytest.mark.parametrize("name", bad_calls())
@pytest.mark.parametrize("group", [0, 32], ids=["dense", "int4"])
def test_bad_arguments_are_named(name: str, group: int) -> None:
    error, message, changed = bad_calls()[name]
    weight = torch.ones(15, 64, dtype=DTYPES[0], device=DEVICE)
    if name == "dtype":
        weight = weight.double() if not group else weight
    packed = quantise(weight, group=group) if group else DenseWeight(weight)
    arguments = dict(x=torch.ones(2, 64, dtype=DTYPES[0], device=DEVICE), weight=packed) | changed
    if name == "dtype" and group:
        message = "weight.scales"
    with pytest.raises(error, match=message):
        (int4_small_linear if group else small_linear)(**arguments)


def test_bad_weights_are_named() -> None:
    weight = torch.ones(16, 96, device=DEVICE)
    with pytest.raises(ValueError, match="group: got 48, allowed are 32, 64, 128, 256"):
        quantise(weight, group=48)
    with pytest.raises(ValueError, match="must divide K = 96"):
        quantise(weight, group=64)
    with pytest.raises(TypeError, match="floating"):
        quantise(weight.int())
    packed = quantise(weight, group=32)
    with pytest.raises(ValueError, match="words"):
        Int4Weight(packed.words[:, 1:], packed.scales, 96, 32)
    with pytest.raises(TypeError, match="Int4Weight"):
        int4_linear(weight.to(DTYPES[0]), DenseWeight(weight))  # type: ignore[arg-type]


def test_bad_rope_arguments_are_named(dtype: torch.dtype) -> None:
    good = dict(
        qkv=torch.ones(2, 6 * 64, dtype=dtype, device=DEVICE),
        cos=torch.ones(2, 32, device=DEVICE),
        sin=torch.ones(2, 32, device=DEVICE),
        q=torch.empty(2, 4, 64, dtype=dtype, device=DEVICE),
        k=torch.empty(2, 1, 64, dtype=dtype, device=DEVICE),
        v=torch.empty(2, 1, 64, dtype=dtype, device=DEVICE),
    )
    bad = dict(
        qkv=torch.ones(2, 5 * 64, dtype=dtype, device=DEVICE),
        cos=torch.ones(2, 64, device=DEVICE),
        sin=torch.ones(3, 32, device=DEVICE),
        k=torch.empty(2, 2, 64, dtype=dtype, device=DEVICE)[:, :1],
        v=torch.empty(2, 2, 64, dtype=dtype, device=DEVICE),
        q_norm=Norm(torch.ones(32, dtype=dtype, device=DEVICE), 1e-6),
    )
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            rope_kernel(**(dict[str, Any](good) | {name: value}))
