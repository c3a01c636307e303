"""A model shared by ranks decodes as one process does; what a rank has; who may run; what exchanges take."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from benches import make_bench
from parallel_ranks import MODELS, Decoded, decode, decode_by, save_llama, small
from resa_bench.kernels import SparseConfig, Unsupported, get_method
from resa_bench.plots.caption import circumstances
from resa_bench.suites.cli import main
from resa_bench.suites.core.flags import options
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode.cases import DecodeCase
from resa_bench.suites.decode.run import run_case
from resa_bench.suites.decode.table import case_table
from resa_bench.suites.engine.case import share_of
from resa_bench.suites.engine.checks import MODEL_TOLERANCE, relative_distance
from resa_bench.suites.engine.costs import memory_bytes, plan_costs, weight_bytes
from resa_bench.suites.engine.exchange_time import ExchangeTime
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.parallel import check_policy
from resa_bench.suites.maths import suite as maths
from resa_bench.suites.model.checkpoint import load_checkpoint
from resa_bench.suites.model.config import MODELS as PRESETS
from resa_bench.suites.model.parallel.shard import Shard, check_groups

WORLDS = (2, 4)
starts_ranks = pytest.mark.xdist_group("ranks")  # else each of pytest's processes starts them all


@cache
def alone(name: str) -> Decoded:
    return decode(MODELS[name])


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world}-ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Decoded]]:
    return decode_by(request.param, tmp_path_factory.mktemp("ranks"))


@starts_ranks
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_ranks_decode_what_one_process_does(ranks: list[dict[str, Decoded]], name: str) -> None:
    """Over gloo, in fp32: logits of every step on every rank, and the same greedy tokens."""
    expected = alone(name)
    for rank in ranks:
        torch.testing.assert_close(rank[name].logits, expected.logits, rtol=1e-4, atol=2e-4)
        assert torch.equal(rank[name].tokens, expected.tokens)


@starts_ranks
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_keys_and_lists_of_a_rank_are_those_of_its_heads(ranks: list[dict[str, Decoded]], name: str) -> None:
    """Selection exchanges nothing: each rank's lists are the whole model's for its own heads."""
    expected, world = alone(name), len(ranks)
    heads = expected.keys.shape[1]
    for rank, results in enumerate(ranks):
        own = results[name]
        first, count = rank * heads // world, max(heads // world, 1)
        torch.testing.assert_close(own.keys, expected.keys[:, first : first + count], rtol=1e-4, atol=2e-4)
        if expected.lists is not None:
            assert own.lists is not None
            rows = expected.lists.shape[1] // world
            assert torch.equal(own.lists, expected.lists[:, rank * rows : (rank + 1) * rows])
    assert (expected.lists is None) == MODELS[name].spec.is_dense


@pytest.mark.gpu
@pytest.mark.slow
def test_two_gpus_decode_what_one_does(tmp_path: Path) -> None:
    """Over NCCL, in bf16, steps and rectifications as graphs, fed the same tokens."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    ranks = decode_by(2, tmp_path, "cuda")
    tolerance = MODEL_TOLERANCE[torch.bfloat16]
    for name, model in MODELS.items():
        expected = decode(model, device=torch.device("cuda", 0))
        first, second = (rank[name] for rank in ranks)
        assert torch.equal(first.logits, second.logits), name
        assert torch.equal(first.tokens, expected.tokens), name
        assert relative_distance(first.logits, expected.logits) <= tolerance, name
        keys = first.keys if first.keys.shape == expected.keys.shape else torch.cat((first.keys, second.keys), 1)
        assert relative_distance(keys, expected.keys) <= tolerance, name


def test_lists_leave_blocks_out() -> None:
    """Else equal lists would say nothing."""
    lists = alone("llama").lists
    assert lists is not None
    assert int((lists[0, 0] >= 0).sum()) < 79 // 8


# --- what a rank has ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen2.5-32b", "qwen2.5-72b", "qwen3-32b"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_shares_make_up_the_model(name: str, ranks: int) -> None:
    whole = PRESETS[name]
    check_groups(whole, ranks)
    shares = [Shard(rank, ranks).config(whole) for rank in range(ranks)]
    assert sum(share.ffn for share in shares) == whole.ffn
    assert sum(share.q_heads for share in shares) == whole.q_heads
    assert sum(share.kv_heads for share in shares) == whole.kv_heads
    assert sum(share.head_parameters for share in shares) == whole.head_parameters
    assert shares[0].ffn == max(share.ffn for share in shares)
    assert all(share.ffn % 128 == 0 for share in shares)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.1-70b", 70.6), ("qwen2.5-32b", 32.8), ("qwen2.5-72b", 72.7), ("qwen3-32b", 32.8)]
)
def test_presets_have_their_published_size(name: str, billions: float) -> None:
    config = PRESETS[name]
    assert not config.tied_head
    total = config.linear_parameters + config.head_parameters + config.embedding_parameters
    assert total / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_slices_of_a_checkpoint(rank: int, tmp_path: Path) -> None:
    """Those of the whole decoder: rows of first matrices and the head, columns of second ones, heads by themselves."""
    whole_config = small("whole", q_heads=4, kv_heads=2, ffn=128)
    save_llama(tmp_path / "model", whole_config)
    whole, own = (
        load_checkpoint(tmp_path / "model", dtype=torch.float32, device=torch.device("cpu"), shard=shard)
        for shard in (None, Shard(rank, 2, simulated=True))
    )
    first, second = whole.layers[1], own.layers[1]
    q, k, v = first.qkv.weight.split((64, 32, 32))  # type: ignore[union-attr]
    parts = [x.chunk(2)[rank] for x in (q, k, v)]
    gate_up = [x.chunk(2)[rank] for x in first.gate_up.weight.chunk(2)]  # type: ignore[union-attr]
    for got, wanted in (
        (second.qkv, torch.cat(parts)),
        (second.o, first.o.weight.chunk(2, 1)[rank]),  # type: ignore[union-attr]
        (second.gate_up, torch.cat(gate_up)),
        (second.down, first.down.weight.chunk(2, 1)[rank]),  # type: ignore[union-attr]
        (own.head, whole.head.weight.chunk(2)[rank]),  # type: ignore[union-attr]
    ):
        assert torch.equal(got.weight, wanted)  # type: ignore[union-attr]
    assert torch.equal(own.embedding, whole.embedding)
    assert own.parameter_bytes < whole.parameter_bytes


@pytest.mark.parametrize(
    ("ranks", "part"), [(3, "8 query heads"), (16, "8 query heads")], ids=["no-divisor", "more-than-heads"]
)
def test_heads_that_cannot_be_shared_are_refused(ranks: int, part: str) -> None:
    with pytest.raises(ValueError, match=f"over {ranks} ranks: {part}"):
        Shard(0, ranks).config(small("model"))


def test_groups_that_would_span_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="4-bit groups of 128 of the 128 columns of attention's output"):
        check_groups(small("model", ffn=512), 2)


def test_a_rank_of_a_known_model() -> None:
    """An eighth of Llama-3.1-70B: its weights by hand, a KV head, and what it needs at 128K."""
    share = share_of(PRESETS["llama-3.1-70b"], 8)
    assert (share.name, share.q_heads, share.kv_heads, share.ffn) == ("llama-3.1-70b-rank-of-8", 8, 1, 3584)
    case = DecodeCase("llama-3.1-70b", share, 1, 131072)
    layer = 8192 * (10 * 128 + 8 * 128) + 3 * 8192 * 3584
    assert weight_bytes(case) == 2 * (80 * layer + 16032 * 8192)
    kv = 80 * 2 * 131072 * 128 * 2
    assert memory_bytes(case, []) == weight_bytes(case) + 2 * 128256 * 8192 + kv + 4_000_000_000
    assert plan_costs(case, MethodSpec("torch-dense")).total.bytes == weight_bytes(case) + kv


def test_rows_say_what_ran() -> None:
    columns = DecodeCase("llama-3.1-70b", share_of(PRESETS["llama-3.1-70b"], 16), 1, 4096).columns()
    assert columns["case"] == "decode-llama-3.1-70b-rank-of-16-bf16-b1-4k"
    assert columns["model"] == "llama-3.1-70b-rank-of-16"
    assert (columns["ranks"], columns["simulated"], columns["kv_replicas"], columns["kv_heads"]) == (16, True, 2, 1)


def test_simulated_ranks_beside_real_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share_of(small("model")).name == "model-tp2"
    with pytest.raises(ValueError, match="torchrun has started 2 real ones"):
        share_of(small("model"), 2)


@pytest.mark.parametrize("given", [["--exchange-us", "9"], ["--exchange-gbps", "300"]], ids=["latency", "bandwidth"])
def test_half_a_measured_exchange_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["decode", "--device", "cpu", "--model", "llama-3.1-70b", "--simulate-ranks", "8", *given, "--plan"]
    assert main(arguments) == 2
    assert "a measured exchange has both" in " ".join(capsys.readouterr().err.split())


def test_maths_share_problems_unless_they_are_to_share_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    for given, name in ({}, "smollm2-135m"), ({"tensor_parallel": True}, "smollm2-135m-tp3"):
        case = maths.choose_case(options(maths.FLAGS, given), torch.device("cpu"))
        assert case.config.name == case.setting.model == name


@pytest.mark.slow
def test_rows_of_a_simulated_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own model in all tables; the exchange, as modelled, on top of what was measured."""
    whole = small("tiny")
    monkeypatch.setitem(PRESETS, whole.name, whole)
    case = DecodeCase(whole.name, share_of(whole, 2), 1, 128, "fp32", "fp32")
    sparse = SparseConfig(rectify_every=4, min_blocks=2)
    plan = DecodePlan(seconds=0.0, exchange=(1000.0, 1.0))
    rows = run_case(case, [MethodSpec("torch-dense", sparse), MethodSpec("resa-torch", sparse)], make_bench(plan))
    dense, resa = (row for row in rows if row.stage == "total")
    assert {(row.model, row.ranks, row.simulated) for row in rows} == {("tiny-rank-of-2", 2, True)}
    assert {row.stage for row in rows}.isdisjoint({"all-reduce", "all-gather", "rectify+all-reduce"})
    for row in (dense, resa):
        step, apart = row.mean_us or 0.0, row.modelled_exchange_us or 0.0
        assert apart > 2 * whole.layers * 1000
        assert row.modelled_tokens_per_s == pytest.approx(1e6 / (step + apart), rel=1e-4)
        assert row.tokens_per_s == pytest.approx(1e6 / step, rel=1e-4)
    assert dense.modelled_speedup == 1
    ratio = (resa.modelled_tokens_per_s or 0.0) / (dense.modelled_tokens_per_s or 1.0)
    assert resa.modelled_speedup == pytest.approx(ratio, rel=1e-4)
    table = case_table(case.slug, rows)
    assert "ONE OF 2 RANKS alone, without the exchange" in str(table.title)
    assert "measured: 1000 us an all-reduce" in str(table.title)
    assert "ONE OF 2 RANKS" in circumstances(rows)
    for row in (dense, resa):
        assert "RANK" not in circumstances([replace(row, ranks=None)])


# --- who may run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "policy", "ranks", "reason"),
    [
        ("resa-torch", "group-mean", 2, None),
        ("resa-torch", "group-mean", 8, "group-mean the lists span ranks"),
        ("retro", "group-sum", 8, "group-sum the lists span ranks"),
        ("oracle", None, 8, "one list per KV head the lists span ranks"),
        ("quest", "all-heads", 2, "all-heads needs the queries of all 2 ranks"),
        ("quest", "per-head", 8, None),
        ("sink-window", None, 8, None),
        ("torch-dense", None, 8, None),
    ],
)
def test_lists_that_span_ranks_are_refused_by_name(
    method: str, policy: str | None, ranks: int, reason: str | None
) -> None:
    config = Shard(0, ranks).config(small("model", kv_heads=4))
    spec = make_spec(method, **({"gqa_policy": policy} if policy else {}))
    if reason is None:
        check_policy(get_method(method), spec.config.gqa_policy, config)
        return
    with pytest.raises(Unsupported, match=reason):
        check_policy(get_method(method), spec.config.gqa_policy, config)


# --- what exchanges take --------------------------------------------------------------------------------------------


def test_the_modelled_exchange() -> None:
    """Latency alone for few bytes, bandwidth alone for many; two a layer and the logits in a step."""
    model = ExchangeTime(8)
    assert model.all_reduce_us(1) == pytest.approx(6.6 + 14 * 0.6, rel=1e-3)
    assert model.all_reduce_us(2**30) == pytest.approx(2**30 * 14 / 8 / 370e3, rel=0.02)
    given = ExchangeTime.measured(8, 10.0, 100.0)
    assert given.all_reduce_us(10**6) == pytest.approx(10 + 1e6 * 14 / 8 / 100e3)
    case = DecodeCase("llama-3.1-70b", share_of(PRESETS["llama-3.1-70b"], 8), 4, 4096)
    step = 160 * given.all_reduce_us(4 * 8192 * 2) + given.all_gather_us(4 * 128256 * 2)
    assert given.step_us(case, MethodSpec("torch-dense")) == pytest.approx(step)
    resa = MethodSpec("resa-torch")
    rectified = 158 * given.all_reduce_us(4 * 32 * 8192 * 2) / 32
    assert given.step_us(case, resa) == pytest.approx(step + rectified)
    assert given.step_us(replace(case, batch=8), resa) > given.step_us(case, resa)
