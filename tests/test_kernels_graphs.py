"""On a GPU: steps and rectifications as graphs, and what they must not do, allocate or synchronise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import NAN, make_method, random
from method_cases import make, run
from resa_bench.kernels import Unsupported, build_summaries, chunk_kernels
from resa_bench.suites.engine.gate import check_attended
from resa_bench.suites.micro.checks import check_rectify, check_step, dense_exact
from resa_bench.suites.micro.rotation import make_rotation

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


@pytest.mark.gpu
@pytest.mark.parametrize("selector", ["shared2", "pairs-shared2"])
def test_graph_replay_of_layers_that_share_lists(selector: str, dtype: torch.dtype, stream) -> None:
    """Two layers in one graph, the second by the lists of the first: as eagerly, at every length, and within budget."""
    layer, inputs = make("resa-chain", dtype, (1000, 1000), selector=selector)
    rotation = make_rotation(inputs, 2)
    method = make_method("resa-chain", layer.shape, layer.config, dtype)
    layers = [method.prepare(each.cache) for each in rotation]
    steps = [inputs.step, replace(inputs.step, out=torch.empty_like(inputs.step.out))]

    def both() -> None:
        for bound, step in zip(layers, steps, strict=True):
            for stage in bound.stages(step):
                stage.run()

    both()  # compiles
    graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        both()
    for lengths in ((1000, 1000), (1000, 1), (17, 640), (33, 100), (0, 999)):
        for bound in layers:
            bound.cache.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
            if bound.summaries is not None:  # the lengths jump, where decoding would have stepped
                build_summaries(bound.cache, bound.summaries)
        for i, x in enumerate((inputs.step.q, inputs.step.k, inputs.step.v)):
            x.copy_(random(*x.shape, dtype=dtype, seed=sum(lengths) + i))
        outs = []
        for run_both in (graph.replay, both):
            for step in steps:
                step.out.fill_(NAN)
            for b, length in enumerate(lengths):  # which both are to write
                layers[1].cache.k[b, :, max(length - 1, 0) : length] = 0.0
            run_both()
            outs.append([step.out.clone() for step in steps])
        for replayed, eager in zip(*outs, strict=True):
            assert torch.equal(replayed, eager), f"replay at lengths {lengths} differs from eager"
        assert torch.equal(*(bound.cache.k.nan_to_num() for bound in layers))
        check_attended(layers[1], steps[1])
