"""The drift meter against what it stands for: dense decoding of the same tokens, and the cache before and after."""

from __future__ import annotations

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.suites.engine.drift import Drift, DriftMeter
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.model.decoder import Decoder
from tiny_model import TINY, tiny_decoder

CPU = torch.device("cpu")
PROMPT, BATCH, PERIOD = 300, 2, 8


@pytest.fixture(scope="module", autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def engine(decoder: Decoder, ratio: float, name: str = "resa-torch", batch: int = BATCH) -> Engine:
    config = SparseConfig(active_ratio=ratio, min_blocks=2, rectify_every=PERIOD)
    state = State.allocate(decoder, batch, 512, 64)
    prompt = torch.randint(0, TINY.vocab, (batch, PROMPT), generator=torch.Generator().manual_seed(3))
    state_logits = prefill(decoder, state, prompt)
    state.start(PROMPT, state_logits.argmax(-1))
    method = get_method(name)(TINY.attention(batch), config, dtype=torch.float32, device=CPU)
    every = PERIOD if "rectify_every" in get_method(name).uses else None
    return Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=every)


def metered(engine_in_hand: Engine, periods: int) -> DriftMeter:
    meter = DriftMeter(engine_in_hand)
    for _ in range(periods):
        for _ in range(PERIOD):
            meter.step()
        meter.rectify()
    return meter


def test_readings_are_those_of_dense_decoding(decoder: Decoder) -> None:
    """First period: KL and agreement by running dense decoding on the tokens that the sparse steps fed."""
    sparse = engine(decoder, 0.1)
    sparse_logp = []
    meter = DriftMeter(sparse)
    for _ in range(PERIOD):
        meter.step()
        sparse_logp.append(sparse.logits.log_softmax(-1))
    written = [cache.k[:, :, PROMPT : PROMPT + PERIOD].clone() for cache in sparse.state.caches]
    values = [cache.v[:, :, PROMPT : PROMPT + PERIOD].clone() for cache in sparse.state.caches]
    fed = sparse.state.history[:PERIOD].clone()
    meter.rectify()
    dense = engine(decoder, 0.1, "torch-dense")
    kl, same = [], []
    for t in range(PERIOD):
        dense.state.pending.copy_(fed[t])
        dense.step()
        exact = dense.logits.log_softmax(-1)
        kl.append(torch.nn.functional.kl_div(sparse_logp[t], exact, log_target=True, reduction="none").sum(-1))
        same.append((exact.argmax(-1) == sparse_logp[t].argmax(-1)).float())
    (reading,) = meter.readings
    assert reading.tokens == PERIOD
    assert reading.kl == pytest.approx(float(torch.stack(kl).mean()), rel=1e-3, abs=1e-6)
    assert reading.kl > 1e-4
    assert reading.same_top == pytest.approx(float(torch.stack(same).mean()))
    for i, cache in enumerate(dense.state.caches):
        exact_k, exact_v = (x[:, :, PROMPT : PROMPT + PERIOD] for x in (cache.k, cache.v))
        off = torch.cat([(written[i] - exact_k).flatten(), (values[i] - exact_v).flatten()]).norm()
        size = torch.cat([exact_k.flatten(), exact_v.flatten()]).norm()
        assert reading.change[i] == pytest.approx(float(off / size), rel=1e-2, abs=1e-5)


def test_it_leaves_what_a_rectification_leaves(decoder: Decoder) -> None:
    plain, watched = engine(decoder, 0.1), engine(decoder, 0.1)
    for _ in range(2):
        for _ in range(PERIOD):
            plain.step()
        plain.rectify()
    metered(watched, 2)
    assert torch.equal(plain.state.history[: 2 * PERIOD], watched.state.history[: 2 * PERIOD])
    assert torch.equal(plain.state.lengths, watched.state.lengths)
    for a, b in zip(plain.state.caches, watched.state.caches, strict=True):
        length = PROMPT + 2 * PERIOD
        torch.testing.assert_close(a.k[:, :, :length], b.k[:, :, :length], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.v[:, :, :length], b.v[:, :, :length], atol=1e-5, rtol=1e-5)


def test_reading_everything_does_not_drift(decoder: Decoder) -> None:
    for reading in metered(engine(decoder, 1.0), 2).readings:
        assert reading.kl == pytest.approx(0, abs=1e-6)
        assert reading.same_top == 1
        assert max(reading.change) < 1e-4


def test_the_live_line_and_errors(decoder: Decoder) -> None:
    lines: list[str] = []
    meter = DriftMeter(engine(decoder, 0.1), lambda drift: lines.append(str(drift)))
    meter.step()
    with pytest.raises(ValueError, match="1 steps since the last one, a period has 8"):
        meter.rectify()
    assert str(Drift(64, 0.0123, 0.75, (0.0, 0.5))) == (
        "after 64 tokens: KL 0.0123 nats, same top token 75%, K and V off by 25.00%, most in layer 1 (50.00%)"
    )
    with pytest.raises(ValueError, match="does not rectify"):
        DriftMeter(engine(decoder, 0.1, "torch-dense"))
