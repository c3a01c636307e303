"""The fused step's source on a CPU, under the gate that every method passes; only its speed needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import fused_host
import pytest
import torch
from kernel_cases import DEVICE
from method_cases import make
from resa_bench.kernels import build_summaries, get_method
from resa_bench.kernels.fused import compiler
from resa_bench.kernels.fused import step as fused_step
from resa_bench.suites.micro.cases import ModelShape
from resa_bench.suites.micro.checks import check_step, dense_exact
from test_fused import HEADS, SETTINGS, gate, named, spread

pytestmark = [
    pytest.mark.skipif(DEVICE.type == "cuda", reason="tests/test_fused.py runs the kernel itself"),
    pytest.mark.skipif(fused_host.unavailable() is not None, reason=str(fused_host.unavailable())),
]


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """`resa-fused` on CPU tensors, by the emulator."""
    monkeypatch.setattr(compiler, "kernel", fused_host.kernel)
    monkeypatch.setattr(compiler, "clusters_at_once", lambda device, size: fused_host.CLUSTERS_AT_ONCE.get(size, 0))
    monkeypatch.setattr(fused_step, "shared_memory", lambda: 227 * 1024)
    monkeypatch.setattr(get_method("resa-fused"), "unavailable", classmethod(lambda *_: None))


@pytest.mark.parametrize("changes", SETTINGS, ids=named)
def test_step(changes: dict) -> None:
    gate((1000, 17), torch.float16, heads=HEADS[0], **changes)
