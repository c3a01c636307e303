"""Lossless decoding: the texts of dense decoding, what a round leaves behind, and the rule of acceptance."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from lossless_cases import CAPACITY, CPU, FP32, TOKENS, lossless, sparse
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.kernels.attention.summaries import summaries_reference
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.loader import prompt_ids
from resa_bench.suites.engine.prompt import fill_synthetic, prefill
from resa_bench.suites.engine.rounds import Acceptances, LosslessEngine
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.load import load_decoder
from resa_bench.suites.model.smollm import ModelNotHere
from resa_bench.suites.model.weights import random_decoder
from tiny_model import TINY, tiny_decoder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETED
LENGTHS = (203, 117, 160)  # in and at the end of a block
pytestmark = pytest.mark.usefixtures("one_thread", "inference")
CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 1e-4}  # two orders of the same sums: some ulps of values of order 1


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def start(decoder: Decoder, lengths: tuple[int, ...] = LENGTHS, history: int = TOKENS) -> State:
    """Sequences of these lengths, prefilled, noise beyond them; the pending token is the prompt's next."""
    longest = max(lengths)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(0, decoder.config.vocab, (len(lengths), longest + 1), generator=generator)
    state = State.allocate(decoder, len(lengths), CAPACITY, history)
    prefill(decoder, state, prompt[:, :-1], chunk_tokens=128)
    ends = torch.tensor(lengths)
    noise = State.allocate(decoder, len(lengths), CAPACITY, 1)
    fill_synthetic(noise)
    for cache, noisy in zip(state.caches, noise.caches, strict=True):
        for b, end in enumerate(lengths):
            cache.k[b, :, end:], cache.v[b, :, end:] = 9 * noisy.k[b, :, end:], noisy.v[b, :, end:]
    state.start(ends, prompt.gather(1, ends[:, None])[:, 0])
    return state


def dense_engine(decoder: Decoder, state: State) -> Engine:
    method = get_method("torch-dense")(decoder.config.attention(state.batch), SparseConfig(), dtype=FP32, device=CPU)
    return Engine(decoder, state, bind_layers(state, method, None, 0))


@pytest.fixture(scope="module")
def dense(decoder: Decoder) -> State:
    """Where dense greedy decoding of `TOKENS` tokens ends."""
    state = start(decoder)
    generate(dense_engine(decoder, state).step, None, TOKENS, TOKENS)
    return state


def check_left_behind(engine: LosslessEngine, dense: State, lengths: list[int]) -> None:
    """K, V below the lengths are those of dense decoding; summaries, where they are kept, are those of valid keys."""
    for layer, expected in zip(engine.engine.layers, dense.caches, strict=True):
        cache, summaries = layer.cache, layer.summaries  # type: ignore[attr-defined]
        for b, length in enumerate(lengths):
            torch.testing.assert_close(cache.k[b, :, :length], expected.k[b, :, :length], **CLOSE)
            torch.testing.assert_close(cache.v[b, :, :length], expected.v[b, :, :length], **CLOSE)
            if summaries is None:
                continue
            wanted = summaries_reference(cache.k[b], length, summaries.block_size)
            assert torch.equal(summaries.logical(cache)[b, :, : wanted.shape[1]], wanted)


@pytest.mark.thinned(2)  # each number of drafts and each configuration remain
@pytest.mark.parametrize("drafts", [1, 3, 7])
@pytest.mark.parametrize(
    "config",
    [sparse(8), sparse(16), sparse(32), sparse(8, 0.01, 1), sparse(16, 0.01, 1)],
    ids=["b8", "b16", "b32", "b8-newest", "b16-newest"],
)
@pytest.mark.slow
def test_text_is_that_of_dense_greedy_decoding(
    decoder: Decoder, dense: State, config: SparseConfig, drafts: int
) -> None:
    """A ragged batch, several blocks on; most drafts are wrong where sparse steps see the newest block alone."""
    state = start(decoder)
    engine = lossless(decoder, state, config, drafts)
    fed = engine.generate(TOKENS)
    assert torch.equal(fed, dense.history.t())
    assert torch.equal(state.pending, dense.pending)
    assert torch.equal(state.lengths, dense.lengths)
    assert int(state.count) == 0
    accepted = engine.acceptances()
    assert 0 < accepted.accepted < accepted.rounds * (len(accepted.histogram) - 1), "some stand, some do not"
    print(f"m {drafts}, b {config.block_size}, at least {config.min_blocks}: {accepted.mean:.2f}, {accepted.histogram}")
    check_left_behind(engine, dense, state.lengths.tolist())


def test_text_is_that_of_dense_decoding_by_the_same_rows(decoder: Decoder) -> None:
    """Against dense passes of as many rows through the same kernel, of which the first alone counts."""
    rows, state = 4, start(decoder)
    layers = lossless(decoder, state, sparse(), rows - 1).engine.layers
    dense = Engine(decoder, state, layers, rectify_every=rows)
    texts = torch.zeros(2, len(LENGTHS), TOKENS, dtype=torch.int64)
    for n in range(TOKENS):
        texts[0, :, n] = state.pending
        state.lengths.add_(rows)
        logits = dense.verify(state.pending[:, None].expand(-1, rows))
        state.lengths.sub_(rows - 1)
        state.pending.copy_(logits[:, 0].argmax(-1))
    texts[1] = lossless(decoder, start(decoder), sparse(), rows - 1).generate(TOKENS)
    assert torch.equal(*texts)


def test_every_round_leaves_exact_keys_values_and_summaries(decoder: Decoder, dense: State) -> None:
    """Between rounds, too, where sequences stand at different places; some rounds roll back into another block."""
    state = start(decoder)
    engine = lossless(decoder, state, sparse(8, 0.01, 1), 7)
    engine.start(TOKENS)
    crossed = 0
    for _ in range(12):
        engine.round()
        counts = engine.counts.tolist()
        for b, (before, count) in enumerate(zip(LENGTHS, counts, strict=True)):
            assert int(state.lengths[b]) == before + count
            assert torch.equal(engine.tokens[b, :count], dense.history[:count, b])
            assert int(state.pending[b]) == int(dense.history[count, b])
            crossed += (before + count - 1) // 8 < (before + count - 1 + 7) // 8
        check_left_behind(engine, dense, state.lengths.tolist())
    assert crossed, "no draft lay in a block beyond those that stand"
    assert len(set(counts)) > 1, "sequences advance by different numbers"


def test_everything_selected_accepts_everything(decoder: Decoder, dense: State) -> None:
    engine = lossless(decoder, start(decoder), sparse(active_ratio=1.0), 3)
    assert torch.equal(engine.generate(TOKENS), dense.history.t())
    assert engine.acceptances() == Acceptances((0, 0, 0, len(LENGTHS) * TOKENS // 4))


@pytest.mark.parametrize("active_ratio", [1.0, 0.05])
@pytest.mark.parametrize("parts", [(1, 1, 58), (23, 37)], ids=str)
@pytest.mark.slow
def test_decoding_goes_on_where_it_stopped(
    decoder: Decoder, dense: State, parts: tuple[int, ...], active_ratio: float
) -> None:
    """The limit cuts rounds short: the accepted draft after the last token is the pending one."""
    engine = lossless(decoder, start(decoder), sparse(16, active_ratio, 1), 7)
    assert torch.equal(torch.cat([engine.generate(n) for n in parts], dim=1), dense.history.t())
    assert torch.equal(engine.state.lengths, dense.lengths)


def test_rounds_before_the_start_change_nothing_that_stands(decoder: Decoder, dense: State) -> None:
    """So a round can be captured where decoding begins."""
    state = start(decoder)
    pending = state.pending.clone()
    engine = lossless(decoder, state, sparse(), 3)
    engine.round()
    assert state.lengths.tolist() == list(LENGTHS)
    assert torch.equal(state.pending, pending)
    assert engine.acceptances().rounds == 0
    assert torch.equal(engine.generate(TOKENS), dense.history.t())


@pytest.mark.slow
@pytest.mark.parametrize("selector", [None, "pairs-shared2"])
def test_text_through_the_kernels(selector: str | None) -> None:
    """The kernels' path, interpreted on a CPU, where rollback has a kernel of its own."""
    if CUDA:
        pytest.skip("token for token in fp32, which the kernels take under the interpreter alone")
    lengths, tokens = (29, 22), 4
    decoder = tiny_decoder(replace(TINY, layers=2))
    reference = start(decoder, lengths)
    generate(dense_engine(decoder, reference).step, None, tokens, tokens)
    state = start(decoder, lengths)
    engine = lossless(decoder, state, replace(sparse(8, 0.01, 1), selector=selector), 2, name="resa")
    assert torch.equal(engine.generate(tokens), reference.history[:tokens].t())
    accepted = engine.acceptances()
    assert accepted.accepted < accepted.rounds * (len(accepted.histogram) - 1)
    check_left_behind(engine, reference, state.lengths.tolist())


@pytest.mark.gpu
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 0.9)], ids=["greedy", "sampled"])
def test_captured_rounds_are_eager_ones(sampling: Sampling) -> None:
    """A round as one graph, captured before the start: the same text (sampled: drawn from another stretch of noise)."""
    device, length = torch.device("cuda"), 203
    decoder = random_decoder(TINY, dtype=torch.bfloat16, device=device, seed=1)
    prompt = torch.randint(0, TINY.vocab, (2, length + 1), generator=torch.Generator().manual_seed(3)).to(device)
    texts = []
    for captured in (False, True):
        state = State.allocate(decoder, 2, CAPACITY, 8)
        prefill(decoder, state, prompt[:, :-1])
        state.start(length, prompt[:, -1])
        method = get_method("resa")(TINY.attention(2), sparse(16, 0.01, 1), dtype=torch.bfloat16, device=device)
        layers = bind_layers(state, method, None, 0)
        engine = LosslessEngine(decoder, state, layers, drafts=3, room=TOKENS, sampling=sampling)
        assert engine.engine.graph_safe
        texts.append(engine.generate(TOKENS, engine.engine.capture(engine.round) if captured else None))
        assert state.lengths.tolist() == [length + TOKENS] * 2
        assert engine.acceptances().rounds >= 2 * TOKENS // 4
    if sampling.temperature == 0:
        assert torch.equal(*texts)


@pytest.mark.slow
def test_smollm_text_is_that_of_dense_decoding() -> None:
    """A real model, two prompts."""
    try:
        loaded = load_decoder("smollm2-135m", dtype=FP32, device=CPU)
    except ModelNotHere as error:
        pytest.skip(str(error))
    decoder, tokens, length = loaded.decoder, 24, 201
    ids = prompt_ids(loaded, 1000)
    prompts = torch.stack((ids[: length + 1], ids[700 : 701 + length]))
    texts = []
    for drafts in (0, 5):
        state = State.allocate(decoder, 2, CAPACITY, tokens)
        prefill(decoder, state, prompts[:, :length])
        state.start(length, prompts[:, length])
        if not drafts:
            generate(dense_engine(decoder, state).step, None, tokens, tokens)
            texts.append(state.history.t())
            continue
        engine = lossless(decoder, state, sparse(16, 0.1, 4), drafts)
        texts.append(engine.generate(tokens))
    accepted = engine.acceptances()
    print(f"SmolLM2: {accepted.mean:.2f} of {drafts}, {accepted.histogram}")
    assert torch.equal(*texts)
    assert 0 < accepted.accepted < accepted.rounds * (len(accepted.histogram) - 1)
    assert len(set(texts[0].flatten().tolist())) > 20, "the model says something"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "drafts"), [(60, 25), (81, 4), (1, 84)])
def test_too_little_room_is_told_before_anything_is_written(decoder: Decoder, tokens: int, drafts: int) -> None:
    state = start(decoder, history=128)
    engine = lossless(decoder, state, sparse(), drafts, room=100)
    before = [x.clone() for x in (state.lengths, state.pending, state.history, *(c.k for c in state.caches))]
    with pytest.raises(ValueError, match=rf"203 in the cache, {tokens} to come and {drafts + 1} rows .* of 288"):
        engine.generate(tokens)
    after = (state.lengths, state.pending, state.history, *(c.k for c in state.caches))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
def test_all_the_room_there_is(decoder: Decoder, dense: State) -> None:
    state = start(decoder, history=128)
    lossless(decoder, state, sparse(), CAPACITY - max(LENGTHS) - 61).generate(60)
    assert torch.equal(state.lengths, dense.lengths)
    assert torch.equal(state.pending, dense.pending)


def test_wrong_arguments(decoder: Decoder) -> None:
    state = start(decoder)
    with pytest.raises(ValueError, match="drafts, room: got 0, 60"):
        lossless(decoder, state, sparse(), 0)
    with pytest.raises(ValueError, match="drafts, room: got 1, 0"):
        lossless(decoder, state, sparse(), 1, room=0)
    with pytest.raises(ValueError, match="history: 60 rows, 61 drafts"):
        lossless(decoder, state, sparse(), 61)
    with pytest.raises(ValueError, match="needs a method that rectifies"):
        lossless(decoder, state, sparse(), 3, name="torch-dense")
    for tokens in (0, 61):
        with pytest.raises(ValueError, match=f"tokens: got {tokens}, allowed are 1 to the room of 60"):
            lossless(decoder, state, sparse(), 3).generate(tokens)
