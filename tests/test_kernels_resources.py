"""Registers and spills of every kernel: cross-compiled for sm_90 anywhere, and of the loaded kernels on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_cases
import pytest
import torch
from kernel_cases import DEVICE, VARIANTS, kernel_modules, kernel_names, run_variants
from kernel_offsets import Definitions

SPILLS = {"_int4_small_kernel": 16}  # bytes, Triton 3.6: the gate and up product of 16 rows, tuned with them
SHARED_LIMIT = 227 * 1024  # bytes a program may use on sm_90


def test_every_kernel_is_known() -> None:
    assert kernel_names() == {
        "_update_blocks_kernel",
        "_score_kernel",
        "_select_kernel",
        "_tally_kernel",
        "_write_long_kernel",
        "_sparse_decode_kernel",
        "_window_decode_kernel",
        "_window_merge_kernel",
        "_dense_kernel",
        "_merge_kernel",
        "_sink_window_kernel",
        "_pack_pairs_kernel",
        "_score_pairs_kernel",
        "_pool_kernel",
        "_small_linear_kernel",
        "_int4_small_kernel",
        "_int4_rows_kernel",
        "_dequantise_kernel",
        "_fp8_linear_kernel",
        "_widen_kernel",
        "_finish_kernel",
        "_rope_kernel",
    }


in_one_process = pytest.mark.xdist_group("cross-compiled")  # else each of pytest's processes compiles them all


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """By a process of its own: under the interpreter's setting a kernel cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(kernel_cases.__file__)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@in_one_process
@pytest.mark.slow
def test_cross_compiled_kernels_do_not_spill(compiled: dict[str, Any]) -> None:
    """Qwen2.5-7B's heads at 256K tokens: block sizes, policies, head dims and paging as in `VARIANTS`."""
    cross_compiled = compiled["resources"]
    assert {record["kernel"] for record in cross_compiled} == kernel_names()
    assert len(cross_compiled) >= 20
    spilling = [record for record in cross_compiled if record["spill_bytes"] != 0]
    assert spilling == []
    for record in cross_compiled:
        assert 0 < record["registers"] <= 255, record
        assert record["registers"] * 32 * record["num_warps"] <= 65536, record
        assert record["shared_bytes"] <= SHARED_LIMIT, record


@in_one_process
@pytest.mark.slow
def test_addresses_are_computed_in_64_bits(compiled: dict[str, Any]) -> None:
    """No product of an attention kernel wraps at 2^31 before it becomes an address."""
    products = compiled["products"]
    assert {name for name, _, _ in products} == {
        name
        for module in kernel_modules()
        for name in vars(module)
        if module.__name__.startswith("resa_bench.kernels.attention.") and name in kernel_names()
    }
    assert [product for *product, narrow in products if narrow] == []


NARROW = """
    %batch = tt.get_program_id y : i32
    %row = tt.load %lists : tensor<64x!tt.ptr<i32>>
    %stride = tt.splat %k_stride : i32 -> tensor<64xi32>
    %block = arith.muli %row, %cst : tensor<64xi32>
    %cst = arith.constant dense<16> : tensor<64xi32>
    {product}
    %wide = arith.extsi %offset : tensor<64xi32> to tensor<64xi64>
    %at = tt.addptr %k, %wide : tensor<64x!tt.ptr<f16>>, tensor<64xi64>
"""


@pytest.mark.parametrize(
    ("product", "narrow"),
    [
        ("%offset = arith.muli %row, %stride : tensor<64xi32>", [True]),
        ("%offset = arith.muli %cst, %stride : tensor<64xi32>", [True]),
        ("%offset = arith.muli %row, %batch : tensor<64xi32>", [True]),
        ("%offset = arith.muli %row, %stride : tensor<64xi64>", [False]),
        ("%offset = arith.addi %block, %row : tensor<64xi32>", [False]),
        ("%offset = arith.divsi %row, %stride : tensor<64xi32>", []),
    ],
)
def test_narrow_products_are_found(product: str, narrow: list[bool]) -> None:
    assert [is_narrow for _, is_narrow in Definitions(NARROW.format(product=product)).products()] == narrow


@pytest.mark.gpu
def test_loaded_kernels_do_not_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures, of the kernels that this GPU runs."""
    loaded: dict[str, list[Any]] = {}

    def keeping(launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> Any:
            compiled = launch(kernel, grid, **arguments)
            loaded.setdefault(kernel.__name__, []).append(compiled)
            return compiled

        return run

    for module in kernel_modules():
        if hasattr(module, "launch") and callable(module.launch):
            monkeypatch.setattr(module, "launch", keeping(module.launch))
    run_variants(VARIANTS, 8192, DEVICE)
    torch.cuda.synchronize()
    assert set(loaded) == kernel_names()
    for name, kernels in loaded.items():
        for kernel in kernels:
            assert kernel.n_spills <= SPILLS.get(name, 0), f"{name} spills {kernel.n_spills}: {kernel.src.constants}"
            assert 0 < kernel.n_regs <= 255
            assert kernel.metadata.shared <= SHARED_LIMIT
