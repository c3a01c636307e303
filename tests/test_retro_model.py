"""RetroAttention in whole models: against a slow reference, under the gates, in the suites' rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benches import make_bench
from kernel_cases import DEVICE, make_method
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.baselines import retro
from resa_bench.baselines.retro import RepairingLayer, Retro
from resa_bench.kernels import (
    SparseConfig,
    WindowTensors,
    get_method,
)
from resa_bench.kernels.portable import TorchSparseMethod
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.metrics import step_metrics
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.decode.run import run_case as decode_case_rows
from resa_bench.suites.engine.checks import check_attention
from resa_bench.suites.engine.costs import plan_costs
from resa_bench.suites.engine.engine import Engine, State, bind_layers
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import check_window, dense_exact
from resa_bench.suites.micro.inputs import make_inputs, make_window
from resa_bench.suites.micro.run import prepare as prepare_micro
from resa_bench.suites.model.decoder import Cells, Decoder
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.run import run_case as quality_rows
from resa_bench.suites.quality.table import case_table
from retro_cases import prepare, settings
from rich.console import Console
from tiny_model import TINY, Letters, tiny_decoder
from torch import Tensor

CPU = torch.device("cpu")


def slow_decoding(decoder: Decoder, state: State, config: SparseConfig, ids: Tensor, cached: bool) -> Iterator[Tensor]:
    """RetroAttention as its text has it: a set of blocks, an output and a log-sum-exp for every query of every layer.

    Keys and values are those of `state`, which it overwrites; ids `[B, T]` are fed one by one. Yields logits.
    """
    model, size, w = decoder.config, config.block_size, config.window
    group, batch = model.q_heads // model.kv_heads, ids.shape[0]
    start = state.lengths.tolist()
    memory: dict[tuple[int, int, int, int], dict[str, Any]] = {}  # by layer, sequence, head, position

    def attend(i: int, cells: Cells) -> Tensor:
        cache, out, n = state.caches[i], torch.zeros_like(cells.q), cells.q.shape[1]
        for b in range(batch):
            end = start[b] + fed
            positions = list(range(end - n, end))
            for row, t in enumerate(positions):
                cache.k[b, :, t], cache.v[b, :, t] = cells.k[b, row], cells.v[b, row]
            for head in range(model.kv_heads):
                keys, values = cache.k[b, head, :end].double(), cache.v[b, head, :end].double()
                heads = slice(head * group, (head + 1) * group)
                newest = cells.q[b, -1, heads].double()
                scores = []
                for block in keys.split(size):
                    low, high = block.amin(0), block.amax(0)
                    scores.append(float(torch.maximum(newest * low, newest * high).sum()))
                scores[-1] = float("inf")
                order = sorted(range(len(scores)), key=lambda p: (-scores[p], p))
                chosen = set(order[: config.selected(end)])
                for row, t in enumerate(positions):
                    query = cells.q[b, row, heads].double()
                    entry = memory.setdefault(
                        (i, b, head, t), {"seen": set(), "query": query, "sum": 0.0, "weighted": 0.0}
                    )
                    if cached:
                        query = entry["query"]
                    tokens = [p for block in sorted(chosen - entry["seen"]) for p in range(block * size, end)
                              if p < (block + 1) * size and p <= t]  # fmt: skip
                    entry["seen"] |= chosen
                    weights = (query @ keys[tokens].T * model.head_dim**-0.5).exp()
                    entry["sum"] = entry["sum"] + weights.sum(-1, keepdim=True)
                    entry["weighted"] = entry["weighted"] + weights @ values[tokens]
                    out[b, row, heads] = (entry["weighted"] / entry["sum"]).to(out.dtype)
        return out

    for fed in range(1, ids.shape[1] + 1):
        n = min(w, fed)
        q = torch.empty(batch, n, model.q_heads, model.head_dim)
        k = torch.empty(batch, n, model.kv_heads, model.head_dim)
        cells = WindowTensors(q, k, torch.empty_like(k), torch.empty_like(q), state.lengths)
        positions = torch.tensor(start)[:, None] + torch.arange(fed - n, fed)
        x = decoder.hidden(ids[:, fed - n : fed].reshape(-1), positions.reshape(-1), cells, attend)
        yield decoder.logits(x.view(batch, n, -1)[:, -1])


def filled_state(decoder: Decoder, batch: int = 2) -> State:
    """Caches with noise for a prompt; what decoding writes is NaN before."""
    state = State.allocate(decoder, batch, 128, 32)
    for i, cache in enumerate(state.caches):
        generator = torch.Generator().manual_seed(i)
        for data in (cache.k, cache.v):
            data.normal_(generator=generator)
            data[:, :, PROMPT:] = float("nan")
    return state


PROMPT, FED = 93, 7
IDS = torch.randint(0, TINY.vocab, (2, FED), generator=torch.Generator().manual_seed(3))


def decode(engine: Engine, steps: int = FED, ids: Tensor = IDS, step: Callable[[], object] | None = None) -> Tensor:
    """Logits `[T, B, vocab]` of feeding the ids, eagerly or by a replay."""
    engine.state.start(PROMPT, ids[:, 0])
    logits = []
    for t in range(steps):
        engine.state.pending.copy_(ids[:, t])
        (step or engine.step)()
        logits.append(engine.logits.clone())
    return torch.stack(logits)


def engine_of(decoder: Decoder, name: str, w: int, path: str = "torch") -> Engine:
    state = filled_state(decoder)
    state.start(PROMPT, IDS[:, 0])
    method = make_method(name, TINY.attention(2), settings(w), torch.float32, CPU)
    layers = [prepare(method, cache, path) for cache in state.caches]
    return Engine(decoder, state, layers)


@pytest.mark.parametrize(
    ("name", "w", "path", "steps"),
    [
        pytest.param("retro", 2, "kernels", 2, id="w2-kernels"),
        pytest.param("retro", 2, "torch", FED, id="w2-torch"),
        pytest.param("retro", 4, "torch", FED, id="w4-torch"),
        pytest.param("retro-cached", 4, "torch", FED, id="w4-cached-torch"),
    ],
)
@pytest.mark.slow
def test_a_model_against_the_slow_reference(name: str, w: int, path: str, steps: int) -> None:
    """Logits of every step; at the end K and V of every layer, which deeper layers had overwritten w - 1 times."""
    decoder = tiny_decoder()
    engine = engine_of(decoder, name, w, path)
    with torch.inference_mode():
        logits = decode(engine, steps)
        state = filled_state(decoder)
        state.start(PROMPT, IDS[:, 0])
        fed = IDS[:, :steps]
        slow = torch.stack(list(slow_decoding(decoder, state, settings(w), fed, name == "retro-cached")))
    torch.testing.assert_close(logits, slow, atol=2e-4, rtol=1e-4)
    for ours, slow_cache in zip(engine.state.caches, state.caches, strict=True):
        for a, b in ((ours.k, slow_cache.k), (ours.v, slow_cache.v)):
            assert torch.equal(a[:, :, :PROMPT], b[:, :, :PROMPT])  # the prompt is as it was
            decoded = slice(PROMPT, PROMPT + steps)
            torch.testing.assert_close(a[:, :, decoded], b[:, :, decoded], atol=1e-4, rtol=1e-4)
            assert a[:, :, decoded.stop :].isnan().all()


def test_deeper_layers_overwrite_what_they_had() -> None:
    """A step later a token's K and V are other ones in every layer but the first, which depends on the token alone."""
    engine = engine_of(tiny_decoder(), "retro", 2)
    state = engine.state
    state.start(PROMPT, IDS[:, 0])
    with torch.inference_mode():
        engine.step()
        before = [cache.k[:, :, PROMPT].clone() for cache in state.caches]
        engine.step()
    changes = [float((cache.k[:, :, PROMPT] - k).abs().max()) for cache, k in zip(state.caches, before, strict=True)]
    assert changes[0] < 1e-6
    assert min(changes[1:]) > 1e-3


def test_a_sequence_may_start_anew_at_any_time() -> None:
    engine = engine_of(tiny_decoder(), "retro", 4)
    with torch.inference_mode():
        once = decode(engine)
        engine.step()
        again = decode(engine)
    assert torch.equal(once, again)


@pytest.mark.gpu
def test_a_captured_step_is_the_eager_one() -> None:
    """A graph follows the lengths, the history and the clock: logits of replays are those of eager steps."""
    decoder = tiny_decoder(dtype=torch.bfloat16, device=DEVICE)
    state = State.allocate(decoder, 2, 128, 32)
    for cache in state.caches:
        cache.k.normal_(), cache.v.normal_()
    ids = IDS.to(DEVICE)
    state.start(PROMPT, ids[:, 0])
    method = make_method("retro", TINY.attention(2), settings(4), torch.bfloat16)
    engine = Engine(decoder, state, [method.prepare(cache) for cache in state.caches])
    assert engine.graph_safe
    with torch.inference_mode():
        eager = decode(engine, ids=ids)
        state.start(PROMPT, ids[:, 0])
        replay = engine.capture(engine.step)
        assert torch.equal(decode(engine, ids=ids, step=replay), eager)


def test_a_window_takes_no_dense_layers() -> None:
    decoder = tiny_decoder()
    state = State.allocate(decoder, 2, 128, 8)
    shape = TINY.attention(2)
    methods = [make_method(n, shape, settings(2), torch.float32, CPU) for n in ("retro", "torch-dense")]
    with pytest.raises(ValueError, match="dense layers"):
        Engine(decoder, state, bind_layers(state, methods[0], methods[1], 1))


SHORT = Case("custom-4-2-64", ModelShape(4, 2, 64), 2, 200, "fp32")


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable path, though the interpreter could run the kernels."""
    monkeypatch.setattr(Retro, "prepare", lambda method, cache: TorchSparseMethod.prepare(method, cache))


@pytest.mark.parametrize("w", [2, 8])
@pytest.mark.slow
def test_the_micro_gate_takes_every_row(portable: None, w: int) -> None:
    spec = MethodSpec("retro", settings(w))
    inputs = make_inputs(SHORT, CPU, 1)
    repairing = prepare_micro(spec, SHORT, inputs, dense_exact(inputs), CPU)
    assert 0 < repairing.check.budget_used <= 1
    assert [s.name for s in repairing.stages] == ["append", "score", "select", "attend"]
    quest = prepare_micro(MethodSpec("quest", settings(w)), SHORT, inputs, dense_exact(inputs), CPU)
    assert repairing.traffic["total"].bytes > quest.traffic["total"].bytes
    assert repairing.traffic["attend"].flops == w * quest.traffic["attend"].flops
    assert inputs.cache.lengths.tolist() == [200, 200]


@pytest.mark.parametrize("spoil", ["never repaired", "newer tokens", "blocks seen twice"])
def test_the_micro_gate_finds_a_wrong_repair(portable: None, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    layer = get_method("retro")(SHORT.shape, settings(2), dtype=torch.float32, device=CPU).prepare(
        make_inputs(SHORT, CPU, 1).cache
    )
    assert isinstance(layer, RepairingLayer)
    window = make_window(make_inputs(SHORT, CPU, 1), 2)
    check_window(layer, window)
    if spoil == "never repaired":
        monkeypatch.setattr(retro, "_merge", lambda out, lse, other, other_lse: (other, other_lse))
    elif spoil == "newer tokens":
        real = retro._attend
        monkeypatch.setattr(retro, "_attend", lambda q, k, v, visible: real(q, k, v, torch.ones_like(visible)))
    else:
        repair = layer.repair  # type: ignore[attr-defined]
        monkeypatch.setattr(layer, "repair", lambda window: (repair(window), layer.ring.loaded.zero_()))
    with pytest.raises(CheckFailed):
        check_window(layer, window)


def test_the_decode_gate_takes_repaired_rows_and_finds_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny_decoder(), "retro", 4)
    with torch.inference_mode():
        assert check_attention(engine, {0, 2}).budget_used <= 1
        engine.state.start(PROMPT, IDS[:, 0])
        monkeypatch.setattr(retro, "_merge", lambda out, lse, other, other_lse: (out, lse))
        with pytest.raises(CheckFailed, match="before the newest"):
            check_attention(engine, {0, 2})


@pytest.mark.slow
def test_rows_of_the_suites(monkeypatch: pytest.MonkeyPatch, portable: None) -> None:
    """A quality row at each window, with its exposure; the decode suite's total, at its own count of rows."""
    decoder = tiny_decoder()
    bench = make_bench(DecodePlan(periods=1, seconds=0, breakdown=False), Ceilings(1e5, 1e5, 1e3))
    models = bench.held(Loader)
    models._key = ("tiny", "fp32", "fp32", 0)
    models._model = LoadedModel(decoder, Letters(), "tiny")  # type: ignore[arg-type]
    specs = [MethodSpec("retro", settings(w)) for w in (2, 4)]
    case = QualityCase("tiny", TINY, prompt=200, steps=12)
    rows = quality_rows(case, specs, bench)
    assert [r.reason for r in rows if r.status != "ok"] == []
    for spec in specs:
        of_spec = [r for r in rows if r.method == "retro" and r.window == spec.config.window]
        assert {r.metric for r in of_spec if not str(r.metric).endswith("_of_text")} == {
            *(metric.name for metric in step_metrics()),
            "kv_exposure",
            "kv_error_repaired",
            "read_share",
        }
        (seen,) = [r.value for r in of_spec if r.metric == "kv_exposure"]
        assert seen is not None
        assert 1 <= seen < spec.config.window
        text = Console(record=True, width=200, file=io.StringIO())
        text.print(case_table(case.slug, of_spec))
        assert f"{seen:.2f}x" in text.export_text()
    assert [spec.label for spec in specs] == ["retro b16 r0.25 w2", "retro b16 r0.25 w4"]
    decode_case = DecodeCase("tiny", TINY, 1, 192, "fp32", "fp32")
    narrow, wide = (plan_costs(decode_case, spec).total for spec in specs)
    assert wide.flops > narrow.flops
    assert narrow.bytes == wide.bytes
    (row,) = decode_case_rows(decode_case, specs[1:], bench)
    assert (row.status, row.window) == ("ok", 4), row.reason
    assert row.error_budget_used is not None
