"""On a GPU: steps and rectifications as graphs, and what they must not do, allocate or synchronise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import NAN, random
from method_cases import make, run
from resa_bench.kernels import Unsupported, build_summaries, chunk_kernels
from resa_bench.suites.micro.checks import check_rectify, check_step, dense_exact

GRAPH_METHODS = ("resa", "resa-fused", "quest", "sink-window", "triton-dense")


@pytest.fixture
def stream() -> Iterator[torch.cuda.Stream]:
    """A side stream, as graph capture asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield side
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("page_size", [None, 64], ids=["contiguous", "paged"])
@pytest.mark.parametrize("name", GRAPH_METHODS)
def test_graph_replay_with_changed_lengths(name: str, page_size: int | None, dtype: torch.dtype, stream) -> None:
    """One captured step serves every length: replays equal eager steps bit by bit, and both meet the budget."""
    top = 1000
    layer, inputs = make(name, dtype, (top, top), page_size=page_size)
    run(layer, inputs.step)  # compiles
    graph = torch.cuda.CUDAGraph()
    stages = layer.stages(inputs.step)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for stage in stages:
            stage.run()
    for lengths in ((top, top), (top, 1), (17, 640), (33, 100), (0, 999), (top, top)):
        inputs.cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        if getattr(layer, "summaries", None) is not None:  # the lengths jump, where decoding would have stepped
            build_summaries(inputs.cache, layer.summaries)
        inputs.step.q.copy_(random(*inputs.step.q.shape, dtype=dtype, seed=sum(lengths)))
        inputs.step.out.fill_(NAN)
        graph.replay()
        replayed = inputs.step.out.clone()
        assert torch.equal(replayed, run(layer, inputs.step)), f"replay at lengths {lengths} differs from eager"
        if min(lengths):
            check_step(layer, inputs, dense_exact(inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [name for name, kernel in chunk_kernels().items() if kernel.graph_safe])
def test_graph_replay_of_rectification(kernel: str, dtype: torch.dtype, stream) -> None:
    try:
        layer, inputs = make("resa", dtype, (1000, 1000), chunk_kernel=kernel)
    except Unsupported as error:
        pytest.skip(str(error))
    stages = layer.rectify_stages(inputs.chunk)
    try:
        for stage in stages:
            stage.run()
    except RuntimeError as error:
        if "left out of this build" not in str(error):
            raise
        pytest.skip(str(error))
    graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for stage in stages:
            stage.run()
    captured = layer.rectified(inputs.chunk)
    for lengths in ((1000, 1000), (17, 640), (3, 100)):
        inputs.cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        inputs.chunk.out.fill_(NAN)
        graph.replay()
        replayed = captured.clone()
        check_rectify(layer, inputs.chunk)
        assert torch.equal(replayed, layer.rectified(inputs.chunk))


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRAPH_METHODS)
def test_steps_allocate_nothing(name: str, dtype: torch.dtype) -> None:
    """In steady state: not one allocation over several steps and, for ReSA, rectifications on our chunk kernel."""
    layer, inputs = make(name, dtype, (1000, 600), chunk_kernel="triton")
    stages = (*layer.stages(inputs.step), *layer.rectify_stages(inputs.chunk))

    def all_stages() -> None:
        for stage in stages:
            stage.run()

    all_stages()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(5):
        inputs.cache.lengths.sub_(1)
        all_stages()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_steps_do_not_synchronise(dtype: torch.dtype) -> None:
    layer, inputs = make("resa", dtype, (1000, 600))
    run(layer, inputs.step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(layer, inputs.step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
