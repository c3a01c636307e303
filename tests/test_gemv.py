"""The CUDA product of few rows: its source on a CPU, compiled for a GPU that need not be there, and on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import fused_host
import gemv_host
import pytest
import torch
from kernel_cases import DEVICE
from linear_cases import Linear, check_linear, empty_int4, make_linear
from resa_bench.kernels.cuda import nvrtc
from resa_bench.kernels.linear.cuda import gemv
from resa_bench.kernels.linear.cuda.layout import Layout, lay_out
from resa_bench.kernels.linear.dispatch import linear
from resa_bench.kernels.linear.int4_linear import int4_small_linear
from resa_bench.kernels.linear.product import products
from resa_bench.kernels.linear.weights import Norm
from resa_bench.profiling.resources import read_cubin

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = {  # K, N (with SwiGLU: pairs)
    "qkv": (3584, 4608, False),
    "o": (3584, 3584, False),
    "gate_up": (3584, 18944, True),
    "down": (18944, 3584, False),
    "head": (3584, 152064, False),
}
LLAMA = {"llama-gate_up": (4096, 14336, True), "llama-head": (4096, 128256, False)}  # 16 rows: clusters of two


CTA_BYTES, MULTIPROCESSOR_BYTES = 227 * 1024, 228 * 1024  # of shared memory
CLUSTERS = {1: 132, 2: 66, 4: 30, 5: 22, 6: 17, 7: 15, 8: 15}  # at once on an H200


def laid_out(depth: int, columns: int, swiglu: bool, group: int = 128, rows: int = 1) -> Layout:
    """On an H200."""
    layout = lay_out(rows, depth, group, columns, swiglu, lambda cluster: CLUSTERS.get(cluster, 0), CTA_BYTES)
    assert layout is not None
    return layout


def laid_out_on_a_cpu(case: Linear, **changes: int) -> Layout:
    """On a chip of three multiprocessors."""
    total, depth = case.weight.shape
    columns = total // (2 if case.swiglu else 1)
    rows, group = case.x.shape[0], case.weight.group
    layout = lay_out(rows, depth, group, columns, case.swiglu, lambda cluster: max(3 // cluster, 1), CTA_BYTES)
    assert layout is not None
    return replace(layout, **changes)


HOST = [  # of one source each: rows (then one less), weight rows, K, group, dtype; what is fused; changes to the layout
    pytest.param((2, 72, 2176, 128, BF16), ("norm+bias", ""), {}, id="bf16-K-ends-in-a-block"),
    pytest.param((8, 100, 4096, 128, FP16), ("residual", "norm+bias+residual"), {}, id="fp16-N-ends-in-a-tile"),
    pytest.param((3, 104, 1344, 64, BF16), ("norm+bias+swiglu", "swiglu"), {}, id="swiglu-group64"),
    pytest.param((8, 84, 1632, 32, FP16), ("norm+residual",), {}, id="group32-a-unit-ends"),
    pytest.param((5, 40, 2816, 256, BF16), ("bias",), {"slots": 3}, id="group256-three-slots"),
    pytest.param((2, 24, 640, 128, BF16), ("norm",), {}, id="one-chunk"),
    pytest.param((7, 148, 5376, 128, FP16), ("norm+bias+residual", ""), {}, id="cluster"),
    pytest.param(
        (8, 88, 4096, 128, BF16),
        ("norm+bias+swiglu+residual",),
        {"cluster": 3, "clusters": 2, "warps": 4},
        id="cluster-swiglu",
    ),
    pytest.param((10, 100, 2176, 128, FP16), ("norm+bias+residual", ""), {}, id="10-and-9-rows"),
    pytest.param((13, 104, 1344, 64, BF16), ("norm+bias+swiglu",), {}, id="13-rows-swiglu-group64"),
    pytest.param((16, 84, 1632, 32, BF16), ("norm+residual",), {}, id="16-rows-group32"),
    pytest.param((11, 88, 3584, 256, BF16), ("norm+bias+swiglu+residual",), {}, id="11-rows-cluster-swiglu-group256"),
    pytest.param(
        (16, 280, 2176, 128, FP16),
        ("norm+bias+residual",),
        {"cluster": 2, "clusters": 1, "warps": 3},
        id="16-rows-cluster-more-values-than-a-thread-finishes-together",
    ),
]


@pytest.mark.slow
@pytest.mark.skipif(fused_host.unavailable() is not None, reason=str(fused_host.unavailable()))
@pytest.mark.parametrize(("shape", "fused", "changes"), HOST)
def test_on_a_cpu(
    shape: tuple[int, int, int, int, torch.dtype], fused: tuple[str, ...], changes: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The kernel's own source in an emulator that runs threads and copies in any order."""
    monkeypatch.setattr(gemv, "kernel", gemv_host.kernel)
    rows, total, depth, group, dtype = shape
    for number, names in enumerate(fused):
        case = make_linear(rows - number, total, depth, dtype, group=group, fused=names, seed=number)
        out = case.poisoned().cpu()
        gemv.enqueue(laid_out_on_a_cpu(case, **changes), case.x, case.weight, case.norm, case.residual, out)
        check_linear(case, out)


MINOR_SPILLS = 96  # bytes, of other groups than models have, and of fp16
COMPILED = [  # o and Qwen's head have the constants of qkv
    pytest.param(rows, depth, columns, swiglu, group, fp16, id=f"{name}-{rows}-g{group}-{'fp16' if fp16 else 'bf16'}")
    for name, (depth, columns, swiglu) in (SHAPES | LLAMA).items()
    for group, fp16 in ((128, False), (128, True), (32, False), (64, True), (256, False))
    if (group == 128 and name not in ("o", "head")) or name == "gate_up" or (name == "down" and group != 32)
    for rows in (8, 16)
]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "depth", "columns", "swiglu", "group", "fp16"), COMPILED)
def test_compiles_without_spills(rows: int, depth: int, columns: int, swiglu: bool, group: int, fp16: bool) -> None:
    """For compute capability 9.0; the source checks that both sides lay out shared memory alike."""
    if nvrtc.unavailable():
        pytest.skip(str(nvrtc.unavailable()))
    layout = laid_out(depth, columns, swiglu, group, rows)
    facts = read_cubin(gemv.KERNEL, gemv.compiled(layout.constants(fp16)), layout.shared_bytes, layout.warps)
    assert facts.spill_bytes <= (0 if group == 128 and not fp16 else MINOR_SPILLS)
    assert facts.registers * layout.threads <= 65536


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("name", SHAPES | LLAMA)
def test_every_unit_has_a_warp_and_every_cta_a_multiprocessor(name: str, rows: int) -> None:
    layout = laid_out(*(SHAPES | LLAMA)[name], rows=rows)
    assert layout.units <= layout.warps * layout.cluster
    assert layout.clusters <= CLUSTERS[layout.cluster]
    assert 2 * (layout.launch_bytes + 1024) > MULTIPROCESSOR_BYTES
    assert layout.launch_bytes <= CTA_BYTES


@pytest.mark.parametrize(("name", "ctas"), [("qkv", 96), ("o", 112), ("gate_up", 132), ("down", 110), ("head", 132)])
def test_no_more_ctas_than_whole_tiles(name: str, ctas: int) -> None:
    assert laid_out(*SHAPES[name]).ctas == ctas


def test_a_layout_takes_the_shared_memory_that_there_is() -> None:
    layout = lay_out(8, 3584, 128, 18944, True, lambda cluster: 170, 99 * 1024)
    assert layout is not None
    assert layout.launch_bytes <= 99 * 1024
    assert lay_out(8, 3584, 128, 18944, True, lambda cluster: 170, 64 * 1024) is None


@pytest.mark.parametrize(
    ("depth", "columns"), [(3584, 4602), (3584, 0), (60000, 128)], ids=["odd-columns", "no-columns", "K-too-large"]
)
def test_what_has_no_layout(depth: int, columns: int) -> None:
    assert lay_out(1, depth // 32 * 32, 32, columns, False, lambda cluster: 132 // cluster, CTA_BYTES) is None


def test_not_served_on_a_cpu() -> None:
    case = make_linear(2, 64, 512, FP16, group=128)
    if DEVICE.type == "cpu":
        assert not gemv.serves(case.x, case.weight, None, False)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not served by the CUDA kernel"):
            gemv.int4_gemv(case.x, case.weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="17 rows"):
        gemv.int4_gemv(torch.ones(17, 512, dtype=FP16, device=DEVICE), case.weight)  # type: ignore[arg-type]


def test_the_triton_kernel_stays_a_product() -> None:
    case = make_linear(2, 64, 512, FP16, group=128)
    out = products()["ours-triton"].bind(case.x, case.weight, FP16)()
    assert torch.equal(out, int4_small_linear(case.x, case.weight))  # type: ignore[arg-type]


# --- on a GPU ---------------------------------------------------------------------------------------------------------

SERVED = [
    (1, 72, 1024, 128), (3, 1000, 2816, 256), (8, 2088, 3584, 128), (5, 264, 18944, 64), (4, 40, 1632, 32),
    (9, 1000, 3584, 128), (12, 264, 4096, 128), (16, 264, 18944, 64), (16, 40, 1632, 32),
]  # fmt: skip
FUSED = ("", "bias", "residual", "norm", "swiglu", "norm+bias+swiglu+residual")


@pytest.mark.gpu
@pytest.mark.parametrize("fused", FUSED, ids=lambda f: f or "plain")
@pytest.mark.parametrize(("rows", "total", "depth", "group"), SERVED)
def test_on_a_gpu(rows: int, total: int, depth: int, group: int, fused: str, dtype: torch.dtype) -> None:
    case = make_linear(rows, total, depth, dtype, group=group, fused=fused)
    out = case.poisoned()
    assert gemv.serves(case.x, case.weight, case.norm, case.swiglu)  # type: ignore[arg-type]
    gemv.int4_gemv(case.x, case.weight, **case.fused, out=out)  # type: ignore[arg-type]
    check_linear(case, out)
    assert torch.equal(out, linear(case.x, case.weight, **case.fused))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [8, 16])
def test_layers_in_a_graph(rows: int) -> None:
    """Launches that overlap give what launches one by one give: each reads what the one before it wrote."""
    x = torch.randn(rows, 3584, device=DEVICE).to(BF16)
    norm = Norm(torch.ones(3584, dtype=BF16, device=DEVICE), 1e-6)
    weights = []
    for total, depth in ((3584, 3584), (37888, 3584), (3584, 18944)):
        weight = empty_int4(total, depth, 128, DEVICE)
        weight.words.random_(-(2**15), 2**15)
        weight.scales.copy_(torch.rand(weight.scales.shape, device=DEVICE) / depth**0.5 / 4)
        weight.scales[..., 1].sub_(weight.scales[..., 1].mean())
        weights.append(weight)

    def layers(between: Callable[[], None]) -> torch.Tensor:
        y = x
        for _ in range(6):
            y = linear(y, weights[0], residual=y)
            between()
            inner = linear(y, weights[1], norm=norm, swiglu=True)
            between()
            y = linear(inner, weights[2], residual=y)
            between()
        return y

    expected = layers(torch.cuda.synchronize)
    assert bool(expected.isfinite().all())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layers(lambda: None)
    for _ in range(20):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.gpu
def test_the_first_launch_may_be_captured() -> None:
    """A kernel that nothing has loaded yet."""
    case = make_linear(2, 64, 512, FP16, group=128)
    out = case.poisoned()
    torch.cuda.synchronize()
    gemv.kernel.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gemv.int4_gemv(case.x, case.weight, out=out)  # type: ignore[arg-type]
    graph.replay()
    check_linear(case, out)
