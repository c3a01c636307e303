"""Acceptance replayed on random weights: draws, rounds, rows, what is read from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lossless_rows import BASE, CPU, drafting, shares, tiny_bench, tiny_rows, total
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.spec import PINNED, make_spec
from resa_bench.suites.engine.bind import layers_of
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.prompt import fill_synthetic
from resa_bench.suites.lossless import replay
from resa_bench.suites.lossless import run as suite
from resa_bench.suites.lossless.cases import ReplayCase, dense_specs
from resa_bench.suites.lossless.method import NAME
from resa_bench.suites.lossless.replay import Acceptance, ReplayedEngine, read_acceptances, sampling_word
from resa_bench.suites.lossless.replayed import ROUNDS, ReplayRun, round_costs, verification
from resa_bench.suites.lossless.table import case_table
from rich.console import Console
from tiny_model import TINY, tiny_decoder

pytestmark = pytest.mark.usefixtures("one_thread")
FOUR = make_spec(NAME, BASE, draft_length=4)
MEASURED = Acceptance(FOUR.variant, (0.5, 0.25, 0.0, 0.125, 0.125), "acceptance replayed from somewhere")
REPLAY = ReplayCase("tiny", TINY, 2, 512, "fp32", "fp32", acceptances=(MEASURED,))


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return tiny_rows()


def test_draws_follow_the_histogram() -> None:
    drawn = MEASURED.draws(256, 3, seed=0)
    assert drawn.shape == (256, 3)
    for b in range(3):
        assert (drawn[:, b].bincount(minlength=5) / 256).tolist() == list(MEASURED.shares)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(drawn, MEASURED.draws(256, 3, seed=0))
    assert not torch.equal(drawn, MEASURED.draws(256, 3, seed=1))
    odd = Acceptance(FOUR.variant, (0.1, 0.0, 0.9), "")
    assert float(odd.draws(256, 1, 0).double().mean()) == pytest.approx(odd.mean, abs=2 / 256)


@torch.inference_mode()
def test_rounds_advance_as_the_histogram_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model says: over all that was drawn, the mean advance is the histogram's."""
    decoder = tiny_decoder(replace(TINY, layers=1))
    rounds = 64
    monkeypatch.setattr(replay, "ROUNDS", rounds)
    room = rounds * 5
    state = State.allocate(decoder, 2, 64 + room + 64, 8)
    fill_synthetic(state)
    state.start(64, torch.tensor([1, 2]))
    layers = layers_of(decoder, state, FOUR, "resa-torch")
    engine = ReplayedEngine(decoder, state, layers, drafts=4, room=room, acceptance=MEASURED)
    engine.start(room)
    for _ in range(rounds):
        engine.round()
    assert engine.acceptances().mean == pytest.approx(MEASURED.mean)
    assert (state.lengths - 64).tolist() == [rounds * (1 + MEASURED.mean)] * 2
    assert engine.counts.tolist() == (state.lengths - 64).tolist()
    with pytest.raises(ValueError, match="acceptance: of 4 drafts a round, the engine drafts 3"):
        ReplayedEngine(decoder, state, layers, drafts=3, room=8, acceptance=MEASURED)


@pytest.fixture(scope="module")
def replayed(bench: Bench) -> list[Row]:
    return suite.run_case(REPLAY, [*dense_specs(CPU, text=False), FOUR], bench)


@pytest.mark.slow
def test_replayed_rows_say_so(replayed: list[Row]) -> None:
    assert {r.status for r in replayed} == {"ok"}, [r.reason for r in replayed]
    row, dense = total(replayed, NAME, 4), total(replayed, "torch-dense")
    assert (row.suite, row.case) == ("lossless", "lossless-tiny-fp32-b2-512-replayed")
    assert row.selection_pattern == "replayed"
    assert row.reason == MEASURED.source
    assert row.accepted_length == pytest.approx(MEASURED.mean)
    assert row.n_samples == 2 * ROUNDS
    assert row.speedup_vs_best_dense == pytest.approx((dense.mean_us or 0) / (row.mean_us or 1), rel=1e-4)
    assert dense.selection_pattern == "synthetic"
    assert shares(replayed, 4, "replayed_acceptance") == list(MEASURED.shares)
    assert not [r for r in replayed if r.metric == "acceptance"]  # what is replayed is never replayed again
    console = Console(width=200, record=True)
    console.print(case_table(REPLAY.slug, replayed))
    assert "acceptance REPLAYED, synthetic caches" in console.export_text()


def test_a_graph_that_does_not_repeat_a_round_is_told(bench: Bench) -> None:
    run = ReplayRun(REPLAY, [FOUR], bench, lambda text: None)
    with torch.inference_mode():
        run.prepare(bench.held(Loader))
        _, engine = run.bind_rounds(FOUR)
        run.check_rounds(engine, engine.round)
        with pytest.raises(CheckFailed, match="keys and values that it verifies first are off by"):
            run.check_rounds(engine, lambda: None)


def test_costs_of_a_round_are_drafts_and_one_verification(replayed: list[Row]) -> None:
    row, dense = total(replayed, NAME, 4), total(replayed, "torch-dense")
    verified = verification(REPLAY, 4)
    assert verified.flops > 4 * (dense.flops or 0)
    assert verified.bytes == pytest.approx(dense.bytes, rel=0.05)  # each weight and key is read once for all rows
    assert (row.bytes or 0) * (1 + MEASURED.mean) > verified.bytes + 4 * REPLAY.config.linear_parameters * 4
    step = verification(REPLAY, 0)
    everything = round_costs(step, verified, 4, 5.0)
    assert everything.total.bytes == pytest.approx((4 * step.bytes + verified.bytes) / 5, abs=2)
    assert everything.floor_us(Ceilings(1e5, 1e5, 1e3)) > 0


def test_a_context_shorter_than_a_period_is_refused(bench: Bench) -> None:
    short = replace(REPLAY, context=64)
    rows = suite.run_case(short, [FOUR], bench)
    assert [r.status for r in rows] == ["failed"]
    assert "16 rounds take 85 tokens, more than the context of 64" in (rows[0].reason or "")


def test_what_a_file_holds_is_read_for_the_same_settings(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "lossless.jsonl"
    append(path, rows)
    two, five = read_acceptances(path, drafting(2, 5))
    assert list(two.shares) == shares(rows, 2)
    assert five.mean == pytest.approx(total(rows, NAME, 5).accepted_length, abs=1e-3)
    assert two.source.startswith("acceptance replayed from lossless.jsonl: tiny at 224 tokens, where steps read 14%")
    assert two.variant == drafting(2)[0].variant != five.variant
    with pytest.raises(
        ValueError, match=r"no greedy acceptance of resa-lossless b16 m3; it holds \S+ b16 m2, \S+ b16 m5"
    ):
        read_acceptances(path, drafting(3))
    with pytest.raises(ValueError, match=r"no sampled acceptance of resa-lossless b16 m2; it holds none"):
        read_acceptances(path, drafting(2), "-t0.8-p0.9")
    with pytest.raises(FileNotFoundError):
        read_acceptances(tmp_path / "nothing", drafting(2))


@pytest.mark.parametrize(
    "settings",
    [
        {"summary_kind": "meanstd"},
        {"summary_dtype": "fp8"},
        {"min_blocks": 4},
        {"block_size": 32},
        {"active_ratio": 0.2},
        {**PINNED, "min_blocks": 2},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_changes_the_selection_is_not_replayed(rows: list[Row], tmp_path: Path, settings: dict[str, Any]) -> None:
    """An acceptance is replayed for the drafts it was measured on; any setting of the selection tells them apart."""
    path = tmp_path / "lossless.jsonl"
    append(path, rows)
    [other] = drafting(2, **settings)
    with pytest.raises(ValueError, match="no greedy acceptance of resa-lossless"):
        read_acceptances(path, [other])
    relabelled = [replace(row, **dict(other.variant.settings)) for row in rows if row.draft_length == 2]
    append(path, relabelled)
    ours, relabelled_acceptance = read_acceptances(path, [*drafting(2), other])
    assert (ours.shares, ours.variant) == (relabelled_acceptance.shares, drafting(2)[0].variant)
    assert relabelled_acceptance.variant == other.variant


def test_published_replays_are_those_of_the_published_rows() -> None:
    """What was replayed there is what is read for the same settings now."""
    published = Path(__file__).parents[1] / "results" / "h200" / "lossless.jsonl.gz"
    specs = [make_spec(NAME, draft_length=m) for m in (2, 4, 8)]
    sources = [acceptance.source for acceptance in read_acceptances(published, specs)]
    replayed = dict.fromkeys(row.reason for row in read_rows(published) if row.metric == "replayed_acceptance")
    assert list(replayed) == [source.replace(".jsonl.gz", ".jsonl") for source in sources]


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("lossless-tiny-b3-200-24-t0.8-p0.9", "-t0.8-p0.9"),
        ("lossless-tiny-preview-b3-200-24", ""),
        ("lossless-a-t5-p2-b3-200-24", ""),
        ("lossless-tiny-b3-200-24-t1e-05-p1", "-t1e-05-p1"),
    ],
)
def test_the_end_of_a_name_tells_the_sampling(case: str, word: str) -> None:
    assert sampling_word(case) == word
