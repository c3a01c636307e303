"""RetroAttention: repaired outputs against unions of block sets, on both paths; a model against a slow reference."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from benches import make_bench
from kernel_cases import DEVICE, DTYPES, make_cache, make_method, random
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.baselines import retro
from resa_bench.baselines.retro import RepairingLayer, Retro
from resa_bench.kernels import (
    AttentionShape,
    KVCache,
    SparseConfig,
    StepTensors,
    Unsupported,
    WindowTensors,
    get_method,
)
from resa_bench.kernels.attention.window_decode import window_reference
from resa_bench.kernels.launch import INTERPRET
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
from resa_bench.suites.engine.gate import compare
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.micro.cases import Case, ModelShape
from resa_bench.suites.micro.checks import check_window, dense_exact
from resa_bench.suites.micro.inputs import make_inputs, make_window
from resa_bench.suites.micro.run import prepare as prepare_micro
from resa_bench.suites.model.decoder import Cells, Decoder
from resa_bench.suites.model.load import LoadedModel
from resa_bench.suites.quality.cases import QualityCase
from resa_bench.suites.quality.exposure import exposure
from resa_bench.suites.quality.run import run_case as quality_rows
from resa_bench.suites.quality.table import case_table
from rich.console import Console
from tiny_model import TINY, Letters, tiny_decoder
from torch import Tensor

DTYPE = DTYPES[-1]
PATHS = ("kernels", "torch")
CPU = torch.device("cpu")


def prepare(method: Retro, cache: KVCache, path: str) -> RepairingLayer:
    """Bind on the kernels, or on the portable path, which the interpreter would otherwise stand in for."""
    layer = method.prepare(cache) if path == "kernels" else TorchSparseMethod.prepare(method, cache)
    assert isinstance(layer, RepairingLayer)
    return layer


def assert_close(computed: Tensor, expected: Tensor) -> None:
    """As torch's, but wide enough for the probabilities that kernels round to half precision on a GPU."""
    wide: dict[str, Any] = {} if DEVICE.type == "cpu" else {"atol": 5e-3, "rtol": 5e-3}
    torch.testing.assert_close(computed, expected, **wide)


def settings(w: int, **others: Any) -> SparseConfig:
    own: dict[str, Any] = {"active_ratio": 0.25, "min_blocks": 2, "gqa_policy": "group-sum", "window": w}
    return SparseConfig(**own | others)


class Frozen:
    """Sequences that grow by known tokens: K, V and queries of every position are what they are, at every step."""

    def __init__(self, starts: list[int], steps: int, shape: AttentionShape, capacity: int, layout: str) -> None:
        self.starts, self.shape = starts, shape
        self.cache = make_cache(
            [n + steps for n in starts], shape.kv_heads, shape.head_dim, dtype=DTYPE, capacity=capacity, layout=layout
        )
        self.keys, self.values = (x.clone() for x in self.cache.gather())
        self.q = random(len(starts), capacity, shape.q_heads, shape.head_dim, dtype=DTYPE, seed=5)
        self.cache.lengths.copy_(torch.tensor(starts))

    def step(self, layer: RepairingLayer, n: int) -> WindowTensors:
        """Grow by a token and run the newest n; what lies before the prompt's end is garbage that must go nowhere."""
        self.cache.lengths.add_(1)
        first = torch.tensor(self.starts, dtype=torch.int32, device=DEVICE)
        rows: list[list[Tensor]] = [[], [], []]
        for b, length in enumerate(self.cache.lengths.tolist()):
            at = torch.arange(length - n, length, device=DEVICE)
            sources = self.q[b], self.keys[b].transpose(0, 1), self.values[b].transpose(0, 1)
            for picked_rows, source in zip(rows, sources, strict=True):
                picked = source[at.clamp(min=0)].clone()
                picked[at < self.starts[b]] = float("nan")
                picked_rows.append(picked)
        q, k, v = (torch.stack(picked_rows) for picked_rows in rows)
        window = WindowTensors(q, k, v, torch.full_like(q, float("nan")), first)
        for stage in layer.window_stages(window):
            stage.run()
        return window


def run_and_compare(frozen: Frozen, layer: RepairingLayer, steps: int) -> Tensor:
    """Every row of every step against fp64 over the union of its sets; the last step's outputs."""
    w, size = layer.window, layer.config.block_size
    seen: list[dict[int, Tensor]] = [{} for _ in frozen.starts]
    out = torch.empty(0)
    for _ in range(steps):
        window = frozen.step(layer, w)
        out = window.out
        for b, length in enumerate(frozen.cache.lengths.tolist()):
            lists = layer.work.lists[b].expand(frozen.shape.kv_heads, -1)
            chosen = torch.zeros(frozen.shape.kv_heads, layer.ring.loaded.shape[2] + 1, dtype=torch.bool, device=DEVICE)
            chosen.scatter_(1, torch.where(lists < 0, chosen.shape[1] - 1, lists).long(), True)
            chosen = chosen[:, :-1]
            assert torch.equal(layer.ring.latest()[b], chosen)
            for i in range(w):
                position = length - w + i
                if position < frozen.starts[b]:
                    assert not out[b, i].any(), "a row of the prompt has an output"
                    continue
                seen[b][position] = seen[b].get(position, torch.zeros_like(chosen)) | chosen
                exact = window_reference(
                    frozen.q[b, position], frozen.keys[b], frozen.values[b], position, seen[b][position],
                    block_size=size,
                )  # fmt: skip
                compare(f"sequence {b}, position {position}", out[b, i], exact, out.dtype)
        grown = max(len(sets) for sets in seen)
    assert grown == steps
    return out


@pytest.mark.parametrize(
    ("path", "w", "heads", "kv_heads", "dim", "size", "layout"),
    [
        pytest.param("kernels", 2, 7, 1, 128, 16, "contiguous", marks=pytest.mark.sanitizer, id="kernels-w2-g7-d128"),
        pytest.param("kernels", 4, 2, 2, 64, 16, "paged", marks=pytest.mark.sanitizer, id="kernels-w4-mha-d64-paged"),
        pytest.param(
            "kernels", 8, 7, 1, 64, 8, "token-major", marks=pytest.mark.sanitizer, id="kernels-w8-g7-d64-b8-token-major"
        ),
        pytest.param("torch", 2, 2, 2, 128, 8, "contiguous", id="torch-w2-mha-d128-b8"),
        pytest.param("torch", 4, 14, 2, 128, 32, "token-major", id="torch-w4-g7-d128-b32-token-major"),
        pytest.param("torch", 8, 14, 2, 64, 16, "contiguous", id="torch-w8-g7-d64"),
        pytest.param("torch", 8, 4, 2, 16, 8, "contiguous", id="torch-w8-g2-d16-b8"),
    ],
)
def test_repaired_outputs_attend_to_the_union(
    path: str, w: int, heads: int, kv_heads: int, dim: int, size: int, layout: str
) -> None:
    """A ragged batch, lengths off the block grid, a block boundary within the window, a sequence shorter than it."""
    starts = [1, 12 * size - 2]
    steps = w + 2
    if path == "kernels" and INTERPRET:  # which runs row by row
        starts, steps = (starts, 3) if w < 8 else (starts[1:], 4)
    shape = AttentionShape(len(starts), heads, kv_heads, dim)
    frozen = Frozen(starts, steps, shape, 12 * size + 64, layout)
    layer = prepare(make_method("retro", shape, settings(w, block_size=size), DTYPE), frozen.cache, path)
    run_and_compare(frozen, layer, steps)
    after = frozen.cache.gather()
    for b, length in enumerate(frozen.cache.lengths.tolist()):
        for before, now in zip((frozen.keys, frozen.values), after, strict=True):
            assert torch.equal(before[b, :, :length], now[b, :, :length])


def grown_sets(w: int = 2) -> tuple[Frozen, RepairingLayer]:
    shape = AttentionShape(1, 4, 2, 64)
    frozen = Frozen([150], 6, shape, 192, "contiguous")
    return frozen, prepare(make_method("retro", shape, settings(w), DTYPE), frozen.cache, "torch")


def test_repairs_do_something() -> None:
    """The union is more than a query's own set, so what the tests above compare is not the sparse output again."""
    frozen, layer = grown_sets()
    frozen.step(layer, 2)
    own = frozen.step(layer, 2).out[:, 1].clone()
    repaired = frozen.step(layer, 2).out[:, 0]
    assert (own - repaired).abs().max() > 1e-3
    assert layer.ring.in_window().sum() > layer.ring.latest().sum()


@pytest.mark.parametrize("path", PATHS)
def test_tokens_taken_back_leave_no_results(path: str) -> None:
    """Slots of tokens that are gone held older tokens' results before: those see the next list whole, and it alone."""
    shape = AttentionShape(1, 4, 2, 64)
    frozen = Frozen([150], 6, shape, 192, "contiguous")
    layer = prepare(make_method("retro", shape, settings(2), DTYPE), frozen.cache, path)
    for _ in range(4):
        frozen.step(layer, 2)
    frozen.cache.lengths.sub_(2)
    layer.refresh(1)
    out = frozen.step(layer, 2).out
    length = int(frozen.cache.lengths)
    for i in range(2):
        position = length - 2 + i
        exact = window_reference(
            frozen.q[0, position], frozen.keys[0], frozen.values[0], position, layer.ring.latest()[0], block_size=16
        )
        compare(f"position {position}", out[0, i], exact, out.dtype)


@pytest.mark.parametrize("policy", ["group-sum", "all-heads"])
def test_both_paths_leave_the_same(policy: str) -> None:
    shape = AttentionShape(2, 6, 2, 32)
    results: list[tuple[Any, ...]] = []
    for path in PATHS:
        frozen = Frozen([77, 130], 3, shape, 160, "contiguous")
        method = make_method("retro-cached", shape, settings(2, gqa_policy=policy), DTYPE)
        layer = prepare(method, frozen.cache, path)
        out = run_and_compare(frozen, layer, 3)
        ring = layer.ring
        assert ring.query is not None
        results.append((out, ring.out, ring.lse, ring.query, layer.summaries.data[:, :, :5]))  # type: ignore[union-attr]
        results.append((ring.loaded, ring.clock))
    for triton, portable in zip(results[0], results[2], strict=True):
        assert_close(triton, portable)
    for triton, portable in zip(results[1], results[3], strict=True):
        assert torch.equal(triton, portable)


@pytest.mark.parametrize("path", PATHS)
def test_a_window_of_one_is_quest(path: str) -> None:
    shape = AttentionShape(2, 2, 1, 32)
    frozen = Frozen([77, 130], 2, shape, 160, "contiguous")
    config = settings(1)
    layer = prepare(make_method("retro", shape, config, DTYPE), frozen.cache, path)
    method = make_method("quest", shape, config, DTYPE)
    quest = method.prepare(frozen.cache) if path == "kernels" else TorchSparseMethod.prepare(method, frozen.cache)
    for _ in range(2):
        window = frozen.step(layer, 1)
        q, k, v = (x[:, 0].contiguous() for x in (window.q, window.k, window.v))
        step = StepTensors(q, k, v, window.q[:, 0].clone())
        for stage in quest.stages(step):
            stage.run()
        assert_close(window.out[:, 0], step.out)
        lists = layer.work.lists.clone()
        alone = step.out.clone()
        for stage in layer.stages(StepTensors(step.q, step.k, step.v, step.out.fill_(float("nan")))):
            stage.run()  # the step of a single token, which the interface has of every method
        assert_close(step.out, alone)
        assert torch.equal(lists, quest.selection().lists)


@pytest.mark.parametrize("path", PATHS)
def test_variants_differ_in_the_query_alone(path: str) -> None:
    """Queries held still: the same. A past query that changes: only `retro` sees it, and only in what is new."""
    shape = AttentionShape(1, 2, 1, 16)
    outputs: dict[tuple[str, bool], Tensor] = {}
    for name in ("retro", "retro-cached"):
        for changed in (False, True):
            frozen = Frozen([150], 3, shape, 192, "contiguous")
            layer = prepare(make_method(name, shape, settings(2), DTYPE), frozen.cache, path)
            frozen.step(layer, 2)
            frozen.step(layer, 2)
            if changed:
                frozen.q[:, 151] += 1.0
            outputs[name, changed] = frozen.step(layer, 2).out
    assert_close(outputs["retro", False], outputs["retro-cached", False])
    assert_close(outputs["retro-cached", True], outputs["retro-cached", False])
    assert (outputs["retro", True][:, 0] - outputs["retro", False][:, 0]).abs().max() > 1e-3
    assert_close(outputs["retro", True][:, 1], outputs["retro", False][:, 1])


def test_lists_per_query_head_are_refused() -> None:
    shape = AttentionShape(1, 4, 2, 64)
    method = make_method("retro", shape, settings(2, gqa_policy="per-head"), DTYPE)
    with pytest.raises(Unsupported, match="group-sum"):
        method.prepare(make_cache([40], dtype=DTYPE))
    with pytest.raises(ValueError, match="window: got 0"):
        settings(0)


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


def test_exposure_counts_what_a_query_has_seen() -> None:
    """Against sets kept by hand; with a window of one it is 1."""
    frozen, layer = grown_sets(3)
    sets = []
    for _ in range(5):
        frozen.step(layer, 3)
        sets.append([set(row[row >= 0].tolist()) for row in layer.work.lists[0]])
    length, size = 155, layer.config.block_size
    wanted = []
    for head in range(2):
        union = sets[2][head] | sets[3][head] | sets[4][head]
        oldest = [p for block in union for p in range(block * size, (block + 1) * size) if p <= length - 3]
        once = [p for block in sets[4][head] for p in range(block * size, (block + 1) * size) if p < length]
        wanted.append(len(oldest) / len(once))
    assert exposure([layer])[0, 0].tolist() == pytest.approx(wanted)
    assert max(wanted) > 1
    frozen, layer = grown_sets(1)
    frozen.step(layer, 1)
    assert exposure([layer]).unique().tolist() == [1.0]


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
        assert {r.metric for r in of_spec} == {
            *(metric.name for metric in step_metrics()),
            "kv_exposure",
            "kv_error_repaired",
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
