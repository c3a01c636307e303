"""Pairs of keys in 4 bits: packed codes, pooled scores and whole steps of the kernels against plain torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import resa_bench.baselines  # noqa: F401  registers the rivals
import torch
from kernel_cases import DEVICE, DTYPES, empty_step, make_cache, make_method, random
from resa_bench.kernels import AttentionShape, KVCache, SparseConfig, Unsupported, pipeline
from resa_bench.kernels.attention import pair_scores
from resa_bench.kernels.attention.pair_codes import allocate_pairs, codes_reference, pack_pairs
from resa_bench.kernels.fused.served import unsupported
from resa_bench.kernels.pipeline import SparseLayer
from resa_bench.kernels.portable import TorchSparseLayer, calibrated
from resa_bench.kernels.selectors import selectors
from resa_bench.suites.core.spec import make_spec

DTYPE = DTYPES[-1]
LENGTHS = (101, 38)
CONFIG = replace(make_spec("resa-plus").config, selector="pairs", active_ratio=0.2, min_blocks=4)


def codes_of(packed: torch.Tensor) -> torch.Tensor:
    """`[..., P, D / 2]` bytes as codes `[..., P, D]`."""
    return torch.cat((packed & 15, packed >> 4), -1).float()


def packed_pairs(cache: KVCache, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    known = calibrated(selectors()["pairs"], cache)
    assert known is not None
    packed = allocate_pairs(cache, block_size)
    pack_pairs(cache, packed, known, block_size)
    return packed, known


@pytest.mark.sanitizer
@pytest.mark.parametrize("block_size", [8, 32])
def test_codes_are_those_of_plain_torch(block_size: int) -> None:
    cache = make_cache(LENGTHS, dtype=DTYPE, capacity=128)
    packed, known = packed_pairs(cache, block_size)
    for b, length in enumerate(LENGTHS):
        blocks = -(-length // block_size)
        keys = torch.zeros(2, blocks * block_size, 64, device=DEVICE)
        keys[:, :length] = cache.k[b, :, :length].float()
        wanted = codes_reference(keys.unflatten(1, (blocks, block_size)), known[b])
        assert torch.equal(codes_of(packed[b, :, :blocks]), wanted)
        assert not packed[b, :, blocks:].any(), "a block past the sequence's end was written"


def test_the_newest_tokens_blocks_alone_are_packed_again() -> None:
    cache = make_cache(LENGTHS, dtype=DTYPE, capacity=128)
    packed, known = packed_pairs(cache, 8)
    before = packed.clone()
    cache.k.mul_(0.5)
    pack_pairs(cache, packed, known, 8, tokens=6)  # 95 to 100, 32 to 37
    changed = (packed != before).any(-1).any(-1).any(1)
    assert [torch.where(row)[0].tolist() for row in changed] == [[11, 12], [4]]


@pytest.mark.sanitizer
@pytest.mark.parametrize(("q_heads", "pinned"), [(6, 1), (14, 0)])
def test_a_step_is_that_of_plain_torch(q_heads: int, pinned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, scores to rounding, the same lists and so the same output."""
    shape, config = AttentionShape(2, q_heads, 2, 64), replace(CONFIG, pinned_blocks=pinned)
    layers = []
    for reason in (None, "no kernels"):
        monkeypatch.setattr(pipeline, "can_run_on", lambda device, reason=reason: reason)
        cache = make_cache(LENGTHS, dtype=DTYPE, capacity=128)
        layer, step = make_method("resa-plus", shape, config, DTYPE).prepare(cache), empty_step(shape, DTYPE)
        for i, x in enumerate((step.q, step.k, step.v)):
            x.copy_(random(*x.shape, dtype=DTYPE, seed=i))
        for stage in layer.stages(step):
            stage.run()
        layers.append((layer, step))
    (kernels, step), (plain, other) = layers
    assert isinstance(kernels, SparseLayer)
    assert isinstance(plain, TorchSparseLayer)
    for b, length in enumerate(LENGTHS):
        blocks = config.blocks(length)
        torch.testing.assert_close(
            kernels.work.scores[b, :, :blocks], plain.work.scores[b, :, :blocks], rtol=1e-4, atol=1e-4
        )
    assert torch.equal(kernels.work.lists, plain.work.lists)
    torch.testing.assert_close(step.out, other.out, rtol=1e-2, atol=1e-2)
    assert kernels.traffic() == plain.traffic()
    assert all(stage.graph_safe for stage in kernels.stages(step))


@pytest.mark.sanitizer
@pytest.mark.thinned(2)
@pytest.mark.parametrize(("shares", "block_size"), [(1, 8), (2, 32), (2, 16), (1, 128), (1, 64)])
def test_programs_share_the_tiles(shares: int, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many programs score a row, and where some have no tile: the scores of plain torch."""
    monkeypatch.setattr(pair_scores, "score_shares", lambda *given: shares)
    cache = make_cache((700, 200), dtype=DTYPE, capacity=700)
    shape = AttentionShape(2, 6, 2, 64)
    packed, known = packed_pairs(cache, block_size)
    q = random(2, 6, 64, dtype=DTYPE, seed=0)
    scores = torch.zeros(packed.shape[:3], device=DEVICE)
    room = pair_scores.score_room(shape, packed.shape[2], block_size, DEVICE)
    assert room[1].shape[2] == shares
    pair_scores.score_pairs(q, cache, packed, known, room, scores, replace(CONFIG, block_size=block_size))
    table = codes_of(packed) * known[:, :, None, None, 1] + known[:, :, None, None, 0]  # [B, Hkv, M, P, D]
    for b, length in enumerate((700, 200)):
        blocks = -(-length // block_size)
        logits = torch.einsum("hgd,hmpd->hgmp", q[b].float().view(2, 3, 64), table[b, :, :blocks]) * 64**-0.5
        shares_of_heads = logits.logsumexp(-1)[:, :, :-1].softmax(-1)  # the newest takes no part
        exact = torch.cat((shares_of_heads.sum(1).log(), torch.full((2, 1), torch.inf, device=DEVICE)), 1)
        exact[:, : CONFIG.pinned_blocks] = torch.inf
        torch.testing.assert_close(scores[b, :, :blocks], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.sanitizer
def test_steps_pack_what_they_write() -> None:
    """Codes after some steps are those of packing all keys, but of a pair that is half filled."""
    cache, shape = make_cache((60, 37), dtype=DTYPE, capacity=80), AttentionShape(2, 6, 2, 64)
    layer, step = make_method("resa-plus", shape, CONFIG, DTYPE).prepare(cache), empty_step(shape, DTYPE)
    assert isinstance(layer, SparseLayer)
    for seed in range(4):
        for i, x in enumerate((step.q, step.k, step.v)):
            x.copy_(random(*x.shape, dtype=DTYPE, seed=3 * seed + i))
        cache.lengths.add_(1)
        for stage in layer.stages(step):
            stage.run()
    assert layer.table is not None
    assert layer.known is not None
    wanted = allocate_pairs(cache, 8)
    pack_pairs(cache, wanted, layer.known, 8)
    for b, length in enumerate((64, 41)):
        assert torch.equal(cache.k[b, :, length - 1], step.k[b])
        assert torch.equal(cache.v[b, :, length - 1], step.v[b])
        whole = length // 2
        assert torch.equal(layer.table[b].flatten(1, 2)[:, :whole], wanted[b].flatten(1, 2)[:, :whole])


def test_the_bytes_of_minmax_over_twice_as_many_tokens() -> None:
    shape = AttentionShape(1, 28, 4, 128)
    pairs, minmax = selectors()["pairs"], selectors()["minmax"]
    plain = SparseConfig()
    assert pairs.score_bytes(shape, CONFIG, 2, 4096) == minmax.score_bytes(shape, plain, 2, 4096)
    assert pairs.score_bytes(shape, CONFIG, 2, 4096) == 4096 // 2 * 4 * 128 // 2


def test_without_a_local_block_it_is_refused() -> None:
    with pytest.raises(ValueError, match="local_blocks: got 0, selector pairs needs 1"):
        make_method("resa-plus", AttentionShape(1, 2, 1, 64), replace(CONFIG, local_blocks=0), DTYPE)


def test_a_window_takes_no_selector() -> None:
    method = make_method("retro", AttentionShape(2, 6, 2, 64), replace(CONFIG, gqa_policy="group-sum"), DTYPE)
    with pytest.raises(Unsupported, match="selector: pairs would not see the tokens that a window writes again"):
        method.prepare(make_cache(LENGTHS, dtype=DTYPE, capacity=128))


def test_the_fused_step_refuses_it() -> None:
    shape = AttentionShape(1, 28, 4, 128)
    reason = unsupported(shape, replace(CONFIG, block_size=16), torch.bfloat16)
    assert reason == "selector: the fused step ranks blocks by their summaries alone, got pairs"


@pytest.mark.parametrize("name", ["minmax", "nothing"])
def test_only_selectors_are_selectors(name: str) -> None:
    with pytest.raises(ValueError, match=r"selector: (minmax is a kind of summary|got 'nothing', allowed are .*pairs)"):
        SparseConfig(selector=name)
