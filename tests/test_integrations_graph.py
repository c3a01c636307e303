"""The captured step, on a CPU: the same code with a capture that only runs, and under torch.compile's tracer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers_models import greedy, prompt, tiny

pytest.importorskip("transformers", minversion="5.20")

from resa_bench.integrations.transformers import SparseCache, attach, graph
from resa_bench.integrations.transformers.names import cache_name

EVERYTHING: dict[str, Any] = {"active_ratio": 1.0, "rectify_every": 8}


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Steps as on a GPU, but a replay runs the code again; the list says what was replayed."""
    log: list[str] = []

    def capture(run: Callable[[], None], restore: Callable[[], None], device: torch.device) -> Callable[[], None]:
        run()
        restore()

        def replay() -> None:
            log.append(run.__name__)
            run()

        return replay

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "is_graph_safe", lambda layer: True)
    monkeypatch.setattr("resa_bench.integrations.transformers.adapter.why_no_graph", lambda *a: None)
    return log


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_replayed_steps_are_dense_where_everything_is_read(family: str, batch: int, replays: list[str]) -> None:
    model, inputs = tiny(family), prompt(batch)
    dense = greedy(model, inputs)
    attach(model, "resa", **EVERYTHING)
    assert torch.equal(greedy(model, inputs), dense)
    assert replays.count("_step") == 27
    assert replays.count("_pass") == 3


def test_a_graph_ends_with_its_room(replays: list[str]) -> None:
    """A cache that grows drops its graph, and the next step captures another."""
    model, ids = tiny("llama"), prompt(1, tokens=150)["input_ids"]
    with torch.no_grad():
        dense = model(ids).logits[:, 119:]
        adapter = attach(model, "resa", **EVERYTHING)
        cache = SparseCache(adapter, 1)
        given = {cache_name(model): cache}
        parts, graphs = [model(ids[:, :120], **given).logits[:, -1:]], []
        for i in range(120, 150):
            parts.append(model(ids[:, i : i + 1], **given).logits)
            graphs.append(cache.graph)
    torch.testing.assert_close(torch.cat(parts, 1), dense, atol=1e-3, rtol=1e-3)
    assert cache.capacity > 128
    assert len({id(graph) for graph in graphs}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_torch_compile_traces_the_step_whole(family: str, replays: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph: what lies between attentions can be fused, and the cache's Python leaves no break."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, inputs = tiny(family), prompt(1)
    dense = greedy(model, inputs, tokens=12)
    attach(model, "resa", compile=True, **EVERYTHING)
    assert torch.equal(greedy(model, inputs, tokens=12), dense)
    assert replays.count("_step") == 11
    assert replays.count("_pass") == 1
