"""SnapKV and R-KV: what is kept, that a step is dense attention over it, going back, compressing again, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES
from resa_bench.baselines import compact, rkv
from resa_bench.baselines.compact import CompactLayer, attention_of, best_places
from resa_bench.baselines.rkv import redundancy
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, StepTensors, Unsupported, get_method
from resa_bench.kernels.attention.dense import dense_reference
from resa_bench.suites.core.spec import make_spec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.engine.bind import Place, bind
from resa_bench.suites.engine.costs import largest_batch, plan_costs
from resa_bench.suites.engine.engine import OBSERVED_QUERIES, State
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.model.config import MODELS
from resa_bench.suites.tasks.prompt import prefill_rows
from tiny_model import TINY, tiny_decoder

CPU = torch.device("cpu")
SHAPE = AttentionShape(2, 4, 2, 16)
CONFIG = SparseConfig(active_ratio=0.1, min_blocks=3)  # 48 of 300 tokens
LENGTHS = (300, 280)


def cache_and_step(
    seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> tuple[KVCache, StepTensors]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    k, v = drawn(2, 2, 2, 512, 16)
    queries = drawn(2, OBSERVED_QUERIES, 4, 16)
    cache = KVCache(k, v, torch.tensor(LENGTHS, dtype=torch.int32, device=device), queries=queries)
    q, out = drawn(2, 2, 4, 16)
    new = drawn(2, 2, 2, 16)
    return cache, StepTensors(q, new[0], new[1], out)


def layer_of(name: str, cache: KVCache, config: SparseConfig = CONFIG) -> CompactLayer:
    layer = get_method(name)(SHAPE, config, dtype=cache.dtype, device=cache.device).prepare(cache)
    assert isinstance(layer, CompactLayer)
    return layer


def do(layer: CompactLayer, step: StepTensors) -> torch.Tensor:
    layer.whole.lengths.add_(1)
    for stage in layer.stages(step):
        stage.run()
    return layer.output(step).clone()


def test_places_are_the_best_and_the_newest() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 0.0, 3.0, 0.0], [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]])
    assert best_places(scores, 4, 2).tolist() == [[0, 2, 4, 5], [2, 3, 4, 5]]
    assert best_places(scores, 2, 5).tolist() == [[4, 5], [4, 5]]


def test_attention_is_causal_and_sums_to_its_queries() -> None:
    cache, _ = cache_and_step()
    assert cache.queries is not None
    queries = cache.queries[0, -4:]
    mass = attention_of(queries, cache.k[0], 300)
    assert mass.shape == (2, 300)
    logits = torch.einsum("whd,hsd->hws", queries[:, ::2], cache.k[0, :, :300]) / 4  # the first head of each group
    later = torch.arange(300) > torch.arange(296, 300)[:, None]
    own = logits.masked_fill(later, -torch.inf).softmax(-1)
    other = torch.einsum("whd,hsd->hws", queries[:, 1::2], cache.k[0, :, :300]) / 4
    exact = (own + other.masked_fill(later, -torch.inf).softmax(-1)).sum(1)
    inner = slice(3, 297)
    pooled = exact.unfold(1, 7, 1).mean(2)
    torch.testing.assert_close(mass[:, inner], pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernels", [False, True], ids=["portable", "kernels"])
@pytest.mark.parametrize("name", ["snapkv", "r-kv"])
def test_a_step_is_dense_attention_over_what_is_kept(name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "on_kernels", lambda device: kernels)
    cache, step = cache_and_step(dtype=DTYPES[-1], device=DEVICE) if kernels else cache_and_step()
    layer = layer_of(name, cache)
    assert layer.cache.lengths.tolist() == [48, 48]
    out = do(layer, step)
    assert layer.cache.lengths.tolist() == [49, 49]
    for b, length in enumerate(LENGTHS):
        held = layer.cache.k[b, :, :49]
        assert torch.equal(held[:, -1], step.k[b])
        for head in range(2):  # every key is one of the head's own, each once
            same = (held[head, :-1, None] == cache.k[b, head, None, :length]).all(-1)
            assert same.sum(1).tolist() == [1] * 48
            assert same[-8:, length - 8 :].diagonal().all()  # the newest stay
        exact = dense_reference(step.q[b][None], layer.cache.k[b], layer.cache.v[b], 49)
        allowed = 1e-5 if cache.dtype == torch.float32 else 4e-3
        torch.testing.assert_close(out[b].double(), exact.out[0], atol=allowed, rtol=allowed)
        assert torch.equal(cache.k[b, :, length], step.k[b])  # the whole cache goes on as well


def test_snapkv_keeps_what_the_last_queries_look_at() -> None:
    cache, _ = cache_and_step()
    assert cache.queries is not None
    cache.k[0, 1, 77] = 4 * cache.queries[0, :, 2].mean(0) / cache.queries[0, :, 2].mean(0).norm() * 4
    cache.queries[0, :, 2] += cache.k[0, 1, 77]
    layer = layer_of("snapkv", cache)
    assert bool((layer.cache.k[0, 1, :48] == cache.k[0, 1, 77]).all(-1).any())
    assert bool((layer.cache.k[0, 1, :48] == cache.k[0, 1, 78]).all(-1).any())  # and its neighbours


def test_redundant_keys_score_higher() -> None:
    keys = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0))
    keys[0, 10:20] = keys[0, 10]
    scores = redundancy(keys)[0]
    assert scores[10:20].min() > scores[torch.cat((torch.arange(10), torch.arange(20, 50)))].mean()
    assert float(scores.sum()) == pytest.approx(1)


def test_r_kv_compresses_again_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkv, "BUFFER", buffer := 10)
    cache, step = cache_and_step()
    layer = layer_of("r-kv", cache)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(3, 2, 4, 16, generator=generator) for _ in range(buffer + 9)]

    def run(first: int, count: int) -> list[torch.Tensor]:
        cache.lengths.copy_(torch.tensor(LENGTHS, dtype=torch.int32) + first)
        outs = []
        for q, k, v in tokens[first : first + count]:
            outs.append(do(layer, StepTensors(q, k[:, :2].contiguous(), v[:, :2].contiguous(), step.out)))
        return outs

    whole = run(0, buffer + 9)
    assert layer.cache.lengths.tolist() == [48 + 9, 48 + 9]
    again = run(buffer - 3, 12)
    for a, b in zip(again, whole[buffer - 3 :], strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(run(0, 5), whole, strict=False):
        torch.testing.assert_close(a, b)


def test_what_cannot_be_evicted_from_is_told() -> None:
    cache, _ = cache_and_step()
    bare = KVCache(cache.k, cache.v, cache.lengths)
    with pytest.raises(Unsupported, match="the prompt's last queries, which this cache does not hold"):
        layer_of("snapkv", bare)
    with pytest.raises(ValueError, match="queries"):
        KVCache(cache.k, cache.v, cache.lengths, queries=torch.zeros(2, 3, 4, 8))


@pytest.mark.parametrize("name", ["snapkv", "r-kv"])
def test_a_model_decodes_and_keeping_everything_is_dense(name: str) -> None:
    decoder = tiny_decoder()
    tokens = torch.randint(0, TINY.vocab, (2, 200), generator=torch.Generator().manual_seed(0))
    logits: dict[Any, torch.Tensor] = {}
    with torch.inference_mode():
        for key, active in ((name, 1.0), ("fewer", 0.1), ("torch-dense", None)):
            state = State.allocate(decoder, 2, 256, 8)
            prefill(decoder, state, tokens)
            spec = make_spec(name, active_ratio=active, min_blocks=2) if active else make_spec("torch-dense")
            bound = bind(decoder, Place(state, 200, torch.tensor([1, 2]), ahead=True), spec)
            state.start(200, torch.tensor([1, 2]))
            for _ in range(4):
                bound.step()
            logits[key] = bound.engine.logits.clone()
    torch.testing.assert_close(logits[name], logits["torch-dense"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits["fewer"], logits["torch-dense"], atol=1e-3)


def test_prefilling_leaves_the_last_queries() -> None:
    decoder = tiny_decoder()
    tokens = torch.randint(0, TINY.vocab, (2, 90), generator=torch.Generator().manual_seed(0))
    tokens[1, :80] = tokens[0, :80]
    with torch.inference_mode():
        states = [State.allocate(decoder, 2, 128, 1) for _ in range(3)]
        prefill(decoder, states[0], tokens)
        prefill(decoder, states[1], tokens, chunk_tokens=7)
        prefill_rows(decoder, states[2], tokens)
    for caches in zip(*(state.caches for state in states), strict=True):
        first, *others = (cache.queries for cache in caches)
        assert first is not None
        assert bool((first != 0).any())
        for other in others:
            assert other is not None
            torch.testing.assert_close(first, other, atol=1e-4, rtol=1e-4)


def test_memory_holds_more_sequences_of_what_is_evicted() -> None:
    case = DecodeCase("qwen2.5-7b", MODELS["qwen2.5-7b"], 1, 131072, "bf16")
    total = 80 * 10**9
    batches = {name: largest_batch(case, make_spec(name), total) for name in ("triton-dense", "resa", "snapkv")}
    assert batches["triton-dense"] == 8
    assert batches["resa"] < batches["triton-dense"]  # summaries come on top
    assert 9 * batches["triton-dense"] < batches["snapkv"] < 11 * batches["triton-dense"]
    assert largest_batch(case, make_spec("resa"), 10**9) == 0
    dense, evicting, sparse = (plan_costs(case, make_spec(n)).step.bytes for n in ("triton-dense", "snapkv", "sparse"))
    assert evicting < sparse < dense
