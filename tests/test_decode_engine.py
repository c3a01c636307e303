"""Decoding a small random model: greedy tokens, rectification's invariant, graphs, prompts, sampling."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_files import matrix
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.kernels.attention.summaries import summaries_reference
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.kernels.selectors import Following
from resa_bench.kernels.workspace import BlockSparseLayer
from resa_bench.profiling.replay import Replay
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.engine.checks import check_attention, check_linears, check_rectified, check_replay
from resa_bench.suites.engine.engine import Engine, State, bind_layers, distinct, generate
from resa_bench.suites.engine.prompt import english_text, fill_synthetic, prefill
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.model.decoder import Decoder
from tiny_model import TINY, tiny_decoder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
DENSE, RESA = ("triton-dense", "resa") if CUDA else ("torch-dense", "resa-torch")
SPARSE = SparseConfig(active_ratio=0.1, min_blocks=2, rectify_every=8)
PROMPT, CAPACITY, BATCH = 300, 512, 2


pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder(dtype=DTYPE, device=DEVICE)


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return torch.randint(0, TINY.vocab, (BATCH, PROMPT), generator=torch.Generator().manual_seed(3)).to(DEVICE)


def start(decoder: Decoder, prompt: torch.Tensor) -> State:
    state = State.allocate(decoder, len(prompt), CAPACITY, 128)
    fill_synthetic(state)  # what lies beyond the prompt must not matter
    logits = prefill(decoder, state, prompt, chunk_tokens=128)
    state.start(prompt.shape[1], logits.argmax(-1))
    return state


def bind(decoder: Decoder, state: State, name: str, config: SparseConfig = SPARSE, dense_layers: int = 0) -> Engine:
    shape = decoder.config.attention(state.batch)
    method = get_method(name)(shape, config, dtype=DTYPE, device=DEVICE)
    dense = get_method(DENSE)(shape, config, dtype=DTYPE, device=DEVICE) if dense_layers else None
    every = config.rectify_every if "rectify_every" in get_method(name).uses else None
    return Engine(decoder, state, bind_layers(state, method, dense, dense_layers), rectify_every=every)


def run(engine: Engine, tokens: int) -> torch.Tensor:
    """Tokens fed, `[tokens, B]`."""
    rectify = engine.rectify if engine.rectify_every else None
    generate(engine.step, rectify, engine.rectify_every or tokens, tokens)
    return engine.state.history[:tokens].clone()


def test_prefill_in_chunks_equals_prefill_at_once(decoder: Decoder, prompt: torch.Tensor) -> None:
    states = [State.allocate(decoder, BATCH, CAPACITY, 1) for _ in range(2)]
    logits = [prefill(decoder, s, prompt, chunk_tokens=n) for s, n in zip(states, (64, PROMPT), strict=True)]
    torch.testing.assert_close(*logits, **close())
    for a, b in zip(states[0].caches, states[1].caches, strict=True):
        torch.testing.assert_close(a.k[:, :, :PROMPT], b.k[:, :, :PROMPT], **close())
        torch.testing.assert_close(a.v[:, :, :PROMPT], b.v[:, :, :PROMPT], **close())


def test_layers_share_lists_by_turns(decoder: Decoder) -> None:
    """After the dense layers every second one follows; with one cache for all layers two are bound, not one each."""
    config = replace(SPARSE, selector="shared2")
    for shared, dense, kinds in ((False, 0, "cfc"), (False, 1, "dcf"), (True, 0, "cfc"), (True, 1, "dcf")):
        state = State.allocate(decoder, 1, CAPACITY, 8, shared_kv=shared)
        state.start(PROMPT, torch.zeros(1, dtype=torch.int64))
        layers = bind(decoder, state, RESA, config, dense).layers
        follow = [isinstance(layer, BlockSparseLayer) and isinstance(layer.selector, Following) for layer in layers]
        sparse = [isinstance(layer, BlockSparseLayer) for layer in layers]
        assert "".join("f" if f else "c" if s else "d" for f, s in zip(follow, sparse, strict=True)) == kinds
        assert len(distinct(layers)) == (2 if shared and not dense else 3)


def close() -> dict[str, Any]:
    """Two orders of the same sums: some ulps of values of order 1 in fp32; bf16 rounds after each operation."""
    return {"atol": 0.15, "rtol": 0.05} if CUDA else {"atol": 2e-4, "rtol": 1e-4}


def test_prefill_refuses_a_prompt_over_the_capacity(decoder: Decoder, prompt: torch.Tensor) -> None:
    state = State.allocate(decoder, BATCH, 256, 1)
    with pytest.raises(ValueError, match="300 tokens do not fit the capacity of 256"):
        prefill(decoder, state, prompt)


@pytest.mark.skipif(CUDA, reason="token for token in fp32")
def test_dense_decoding_equals_prefill_of_its_own_text(decoder: Decoder, prompt: torch.Tensor) -> None:
    """Step by step with a cache, or everything at once: the same greedy tokens."""
    engine = bind(decoder, start(decoder, prompt), DENSE)
    fed = run(engine, 24)
    whole = torch.cat((prompt, fed.t()), dim=1)
    state = State.allocate(decoder, BATCH, CAPACITY, 1)
    for n in (0, 1, 23):
        logits = prefill(decoder, state, whole[:, : PROMPT + n])
        assert torch.equal(logits.argmax(-1), fed[n])


@pytest.mark.skipif(CUDA, reason="token for token in fp32")
def test_everything_selected_is_dense(decoder: Decoder, prompt: torch.Tensor) -> None:
    every = SparseConfig(active_ratio=1.0, rectify_every=8)
    dense = run(bind(decoder, start(decoder, prompt), DENSE), 40)
    sparse = run(bind(decoder, start(decoder, prompt), RESA, every), 40)
    assert torch.equal(sparse, dense)


def test_rectified_keys_and_values_are_those_of_dense_decoding(decoder: Decoder, prompt: torch.Tensor) -> None:
    """After a rectification K and V are those of dense decoding; before it they are not."""
    state = start(decoder, prompt)
    engine = bind(decoder, state, RESA)
    for _ in range(SPARSE.rectify_every):
        engine.step()
    fed, pending = state.history[: SPARSE.rectify_every].clone(), state.pending.clone()
    drifted = [cache.k.clone() for cache in state.caches]

    reference = start(decoder, prompt)
    dense = bind(decoder, reference, DENSE)
    for tokens in fed:  # dense decoding of the same tokens
        reference.pending.copy_(tokens)
        dense.step()
    touched = slice(PROMPT, PROMPT + SPARSE.rectify_every)
    last = len(state.caches) - 1

    def off(cache: torch.Tensor, exact: torch.Tensor) -> float:
        return float((cache[:, :, touched].float() - exact[:, :, touched].float()).abs().max())

    before = off(drifted[last], reference.caches[last].k)
    engine.rectify()
    for cache, exact in zip(state.caches, reference.caches, strict=True):
        torch.testing.assert_close(cache.k[:, :, touched], exact.k[:, :, touched], **close())
        torch.testing.assert_close(cache.v[:, :, touched], exact.v[:, :, touched], **close())
        assert torch.equal(cache.lengths, exact.lengths)
    after = off(state.caches[last].k, reference.caches[last].k)
    assert before > 5 * after, "the sparse steps did not drift: the test shows nothing"
    assert torch.equal(state.pending, pending), "rectification leaves the pending token"
    for layer in engine.layers:  # summaries of touched blocks, from the rectified keys
        blocks = SPARSE.blocks(PROMPT + SPARSE.rectify_every)
        for b in range(BATCH):
            wanted = summaries_reference(layer.cache.k[b], PROMPT + SPARSE.rectify_every, SPARSE.block_size)
            assert torch.equal(layer.summaries.logical(layer.cache)[b, :, :blocks], wanted)  # type: ignore[attr-defined]


def test_ragged_batch_decodes_as_each_sequence_alone(decoder: Decoder, prompt: torch.Tensor) -> None:
    lengths = torch.tensor([PROMPT, 177], dtype=torch.int32)
    state = start(decoder, prompt)
    state.start(lengths, torch.tensor([5, 9], device=DEVICE))
    engine = bind(decoder, state, RESA)
    engine.step()
    together = engine.logits.clone()
    for b, length in enumerate(lengths.tolist()):
        alone = start(decoder, prompt[b : b + 1])
        alone.start(length, torch.tensor([5, 9], device=DEVICE)[b : b + 1])
        single = bind(decoder, alone, RESA)
        single.step()
        torch.testing.assert_close(together[b], single.logits[0], **close())


@pytest.mark.slow
def test_first_layers_stay_dense(decoder: Decoder, prompt: torch.Tensor) -> None:
    engine = bind(decoder, start(decoder, prompt), "quest", dense_layers=2)
    assert [layer.selection() is None for layer in engine.layers] == [True, True, False]
    check_attention(engine, range(TINY.layers))


def test_gate_sees_a_wrong_output(decoder: Decoder, prompt: torch.Tensor) -> None:
    engine = bind(decoder, start(decoder, prompt), RESA)
    assert check_attention(engine, (0, 2)).budget_used <= 1
    layer = engine.layers[0]
    original = layer.output
    vars(layer)["output"] = lambda cells: original(cells) * 1.05
    with pytest.raises(CheckFailed, match="attention of layer 0, sequence 0 over its blocks"):
        check_attention(engine, (0, 2))


def test_gate_of_linears(decoder: Decoder) -> None:
    check_linears(decoder, (1, 3, 40))
    wrong = decoder.layers[0].o
    object.__setattr__(decoder.layers[0], "o", DenseWeight(matrix(wrong) * float("nan"), wrong.bias))
    with pytest.raises(CheckFailed, match="linear layer"):
        check_linears(decoder, (1,))
    object.__setattr__(decoder.layers[0], "o", wrong)


def test_gate_of_replays_and_rectifications(decoder: Decoder, prompt: torch.Tensor) -> None:
    """Stand-ins for graphs: eager calls pass, calls that skip something do not."""
    state = start(decoder, prompt)
    engine = bind(decoder, state, RESA)
    assert 0 < check_replay(engine, engine.step).budget_used <= 1
    with pytest.raises(CheckFailed, match="unwritten or not finite"):
        check_replay(engine, lambda: None)
    for _ in range(SPARSE.rectify_every):
        engine.step()
    check_rectified(engine, engine.rectify)
    with pytest.raises(CheckFailed, match="the graph's rectification writes keys or values"):
        check_rectified(engine, lambda: None)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton-dense", "resa", "quest"])
def test_graphs_decode_as_eager_steps(decoder: Decoder, prompt: torch.Tensor, name: str) -> None:
    state = start(decoder, prompt)
    pending = state.pending.clone()
    engine = bind(decoder, state, name)
    eager = run(engine, 32)
    state.start(PROMPT, pending)
    step = engine.capture(engine.step)
    rectify = None
    if engine.rectify_every:
        state.start(PROMPT, pending)
        state.count.fill_(SPARSE.rectify_every)
        rectify = engine.capture(engine.rectify)
    prefill(decoder, state, prompt, chunk_tokens=128)
    state.start(PROMPT, pending)
    bind(decoder, state, name)  # summaries of the prompt alone again
    for layer in engine.layers:
        if getattr(layer, "summaries", None) is not None:
            from resa_bench.kernels import build_summaries

            build_summaries(layer.cache, layer.summaries)  # type: ignore[attr-defined]
    generate(step, rectify, engine.rectify_every or 32, 32)
    assert torch.equal(state.history[:32], eager)


def test_shared_cache_is_one(decoder: Decoder) -> None:
    state = State.allocate(decoder, 1, 64, 8, shared_kv=True)
    assert len({id(cache) for cache in state.caches}) == 1
    apart = State.allocate(decoder, 1, 64, 8)
    assert len({cache.k.data_ptr() for cache in apart.caches}) == TINY.layers
    assert all(cache.lengths is apart.lengths for cache in apart.caches)


def test_synthetic_context_is_never_constant_and_repeats(decoder: Decoder) -> None:
    a, b = (State.allocate(decoder, 2, 256, 1) for _ in range(2))
    fill_synthetic(a, seed=4)
    fill_synthetic(b, seed=4)
    for cache_a, cache_b in zip(a.caches, b.caches, strict=True):
        assert torch.equal(cache_a.k, cache_b.k)
        assert torch.equal(cache_a.v, cache_b.v)
        assert float(cache_a.k.float().std()) == pytest.approx(1.0, abs=0.1)
        blocks = cache_a.k.float().unflatten(2, (-1, 64)).mean(3)  # [B, H, blocks, D]
        assert float(blocks.std(2).mean()) > 0.4, "blocks differ: selection has something to choose"
    assert not torch.equal(a.caches[0].k, a.caches[1].k)


def test_english_text_is_long_plain_english() -> None:
    text = english_text()
    assert len(text) > 300_000
    assert sum(c.isalpha() or c.isspace() for c in text) > 0.8 * len(text)
    assert text.count(" the ") > 3000


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_greedy_takes_the_largest() -> None:
    logits = torch.tensor([[0.1, 3.0, -1.0], [2.0, 1.0, 0.0]])
    assert Sampling()(logits).tolist() == [1, 0]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = Sampling(1.0, 0.7).probabilities(logits)[0]
    torch.testing.assert_close(kept, torch.tensor([0.625, 0.375, 0.0, 0.0]))
    shuffled = Sampling(1.0, 0.7).probabilities(logits[:, [2, 0, 3, 1]])[0]
    torch.testing.assert_close(shuffled, torch.tensor([0.0, 0.625, 0.0, 0.375]))


def test_samples_follow_the_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    for temperature in (1.0, 0.6):
        sampling = Sampling(temperature)
        counts = sampling(logits).bincount(minlength=3).double()
        expected = sampling.probabilities(logits[:1])[0].double() * len(logits)
        assert float(((counts - expected) ** 2 / expected).sum()) < 13.8  # chi-squared, 2 degrees, 0.1 %


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (0.0, 0.5, "top_p: got 0.5 beside temperature 0"),
        (-1.0, 1.0, "temperature: got -1.0"),
        (1.0, 0.0, "top_p: got 0.0"),
        (1.0, 1.5, "top_p: got 1.5"),
    ],
)
def test_wrong_sampling(temperature: float, top_p: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(temperature, top_p)


def test_a_replay_keeps_what_its_graph_reads(decoder: Decoder, prompt: torch.Tensor) -> None:
    """A graph holds addresses: whoever keeps the replay alone must not lose the tensors of the engine."""
    engine = bind(decoder, start(decoder, prompt), DENSE)
    ran: list[str] = []

    class Graph:
        def replay(self) -> None:
            ran.append("again")

    replay = Replay(Graph(), (engine, engine.step))
    kept = weakref.ref(engine)
    del engine
    gc.collect()
    replay()
    assert ran == ["again"]
    assert kept() is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "are not finite; weights hold NaN"), (0.0, "the same for every token")],
    ids=["nan", "zero"],
)
def test_the_gate_looks_at_the_logits(prompt: torch.Tensor, value: float, message: str) -> None:
    """Attention agrees with fp64 where both come from broken weights: what the user gets does not."""
    broken = tiny_decoder(dtype=DTYPE, device=DEVICE)
    state = start(broken, prompt)
    engine = bind(broken, state, RESA)
    assert isinstance(broken.head, DenseWeight)
    broken.head.weight.fill_(value)
    with pytest.raises(CheckFailed, match=message):
        check_attention(engine, {0})


@pytest.mark.parametrize("name", ["triton-dense", "resa-chain"])
def test_steps_and_rectification_on_caches_in_fp8(decoder: Decoder, name: str) -> None:
    """The prompt's first chunk chooses the scales; each layer's attention is that of what its cache holds."""
    few = torch.randint(0, TINY.vocab, (1, 40), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    state = State.allocate(decoder, 1, 64, 32, kv_dtype="fp8")
    logits = prefill(decoder, state, few, chunk_tokens=32)
    scales = [cache.scales_or_any.clone() for cache in state.caches]
    assert all(bool((scale < 1).all()) for scale in scales)
    exact = State.allocate(decoder, 1, 64, 32)
    near = prefill(decoder, exact, few, chunk_tokens=32)
    assert 0 < float((logits - near).norm() / near.norm()) < 0.2
    state.start(40, logits.argmax(-1))
    engine = bind(decoder, state, name, replace(SPARSE, rectify_every=4, chunk_kernel="triton"))
    check_attention(engine, {0, len(engine.layers) - 1})
    if engine.rectify_every:
        for _ in range(3):  # to a period's end
            engine.step()
        check_rectified(engine, engine.rectify)
    assert all(torch.equal(cache.scales_or_any, scale) for cache, scale in zip(state.caches, scales, strict=True))
