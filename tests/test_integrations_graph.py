"""The captured step, on a CPU: the same code with a capture that only runs, and under torch.compile's tracer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers_models import greedy, prompt, tiny

pytest.importorskip("transformers", minversion="5.20")

from resa_bench.integrations.transformers import SparseCache, attach, graph, products
from resa_bench.integrations.transformers.names import cache_name
from resa_bench.integrations.transformers.products import Products, as_they_lie

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


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_products_that_share_their_input_are_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits from four products a layer and the head's; parameters keep their values, and are held once."""
    model, inputs = tiny(family), prompt(2)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    called: list[int] = []
    product = products.linear_op

    def counted(*given: Any) -> torch.Tensor:
        called.append(1)
        return product(*given)

    monkeypatch.setattr(products, "linear_op", counted)
    with torch.no_grad():
        plain = model(**inputs).logits
        replaced = Products(model)
        with replaced.in_use():
            torch.testing.assert_close(model(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(**inputs).logits, plain)
    assert len(called) == 4 * len(model.model.layers) + 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    attention = model.model.layers[0].self_attn
    if family != "phi3":
        assert as_they_lie([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]) is not None
    assert all("forward" not in layer.__dict__ for layer in model.modules())


def test_another_input_gets_a_product_of_its_own() -> None:
    """As in attention over another sequence, whose keys have another source than its queries."""
    module = torch.nn.Module()
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(module, name, torch.nn.Linear(8, 4))
    x, y = torch.randn(2, 3, 8)
    layers: Any = module
    with torch.no_grad():
        wanted = layers.v_proj(y), layers.q_proj(x), layers.k_proj(y), layers.v_proj(x)
        with Products(module).in_use():
            given = layers.v_proj(y), layers.q_proj(x), layers.k_proj(y), layers.v_proj(x)
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b)


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
