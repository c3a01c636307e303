"""Ranges: what listeners hear, as NVTX with payloads, and which tool is attached."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from resa_bench.kernels import AttentionShape, KVCache, ResaTorch, SparseConfig, StepTensors
from resa_bench.profiling import nvtx_ranges
from resa_bench.profiling.attached import attached
from resa_bench.profiling.ranges import heard, listening, mark, span
from resa_bench.suites.micro.run import run_all


class FakeDomain:
    """What NVTX would be told: names with the payload at the time of the push, `None` at a pop."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.built: list[str] = []

    def get_event_attributes(self, message: str, category: str, color: Any) -> SimpleNamespace:
        self.built.append(message)
        return SimpleNamespace(message=message, payload=None)

    def push_range(self, attributes: SimpleNamespace) -> None:
        self.log.append((attributes.message, attributes.payload))

    def pop_range(self) -> None:
        self.log.append(None)


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    nvtx = pytest.importorskip("nvtx")
    fake = FakeDomain()
    monkeypatch.setattr(nvtx, "get_domain", lambda name: fake)
    return fake


def test_nvtx_ranges_carry_context_layer_and_blocks(domain: FakeDomain) -> None:
    listener = nvtx_ranges.NvtxRanges()
    with listening(listener):
        for context in (4096, 4097):
            with span("step", context), span("layer", 3), mark("select", lambda tokens: tokens // 16):
                pass
        with mark("select", lambda tokens: tokens), mark("merge"):
            pass
    pushed = [entry for entry in domain.log if entry]
    assert pushed == [
        ("step", 4096), ("layer", 3), ("select", 256),
        ("step", 4097), ("layer", 3), ("select", 256),
        ("select", 4097), ("merge", None),
    ]  # fmt: skip
    assert domain.log.count(None) == len(pushed)
    assert sorted(domain.built) == sorted(set(domain.built))  # each annotation is built once


def test_without_a_tool_nvtx_ranges_do_nothing() -> None:
    pytest.importorskip("nvtx")
    with listening(nvtx_ranges.NvtxRanges()), span("step", 5), mark("attend", lambda tokens: tokens):
        assert heard()
    assert not heard()


@pytest.mark.parametrize(
    ("environment", "tool"),
    [
        ({}, None),
        ({"NVTX_INJECTION64_PATH": "x"}, None),
        ({"NSYS_PROFILING_SESSION_ID": "10523"}, "nsys"),
        ({"NV_COMPUTE_PROFILER_PERFWORKS_DIR": "x", "NV_NSIGHT_INJECTION_PORT_BASE": "1"}, "ncu"),
        ({"NV_SANITIZER_INJECTION_PORT_BASE": "49152"}, "compute-sanitizer"),
    ],
)
def test_attached(environment: dict[str, str], tool: str | None) -> None:
    assert attached(environment) == tool


def test_a_step_of_the_micro_suite_is_heard_stage_by_stage(domain: FakeDomain) -> None:
    shape = AttentionShape(1, 4, 2, 64)
    cache = KVCache.allocate(1, 2, 1024, 64, dtype=torch.float32, device=torch.device("cpu"))
    cache.store(torch.randn(1, 2, 1000, 64), torch.randn(1, 2, 1000, 64))
    cache.lengths.fill_(1000)
    layer = ResaTorch(shape, SparseConfig(min_blocks=4), dtype=torch.float32, device=cache.device).prepare(cache)
    step = StepTensors(torch.randn(1, 4, 64), torch.randn(1, 2, 64), torch.randn(1, 2, 64), torch.empty(1, 4, 64))
    run = run_all(layer.stages(step))
    run()
    assert domain.log == []
    with listening(nvtx_ranges.NvtxRanges()), span("step", 1000):
        run()
    pushed = [entry for entry in domain.log if entry]
    assert pushed == [("step", 1000), ("append", None), ("score", None), ("select", 7), ("attend", 7)]
