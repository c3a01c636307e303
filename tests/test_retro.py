"""RetroAttention: repaired outputs against unions of block sets, on both paths; a model against a slow reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, DTYPES, make_cache, make_method, random
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.baselines.retro import RepairingLayer
from resa_bench.kernels import (
    AttentionShape,
    StepTensors,
    Unsupported,
    WindowTensors,
)
from resa_bench.kernels.attention.window_decode import window_reference
from resa_bench.kernels.launch import INTERPRET
from resa_bench.kernels.portable import TorchSparseMethod
from resa_bench.suites.engine.gate import compare
from resa_bench.suites.quality.exposure import exposure
from retro_cases import prepare, settings
from torch import Tensor

DTYPE = DTYPES[-1]
PATHS = ("kernels", "torch")


def assert_close(computed: Tensor, expected: Tensor) -> None:
    """As torch's, but wide enough for the probabilities that kernels round to half precision on a GPU."""
    wide: dict[str, Any] = {} if DEVICE.type == "cpu" else {"atol": 5e-3, "rtol": 5e-3}
    torch.testing.assert_close(computed, expected, **wide)


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
@pytest.mark.slow
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
@pytest.mark.slow
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
@pytest.mark.slow
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
@pytest.mark.slow
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
@pytest.mark.slow
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
