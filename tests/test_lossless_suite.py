"""The lossless suite: rows of a small model, texts compared, acceptance replayed, flags, resume."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import recorded
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.kernels import SparseConfig
from resa_bench.profiling.ceilings import Ceilings
from resa_bench.profiling.device import describe
from resa_bench.profiling.timing import make_timer
from resa_bench.suites.cli import main
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.failure import CheckFailed
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.runner import run_cases
from resa_bench.suites.core.spec import PINNED, MethodSpec, make_spec
from resa_bench.suites.decode import run as decode
from resa_bench.suites.engine.bind import layers_of
from resa_bench.suites.engine.engine import State
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.engine.measure import DecodePlan
from resa_bench.suites.engine.prompt import fill_synthetic
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.lossless import replay
from resa_bench.suites.lossless import run as suite
from resa_bench.suites.lossless.cases import LosslessCase, ReplayCase, dense_specs
from resa_bench.suites.lossless.method import NAME
from resa_bench.suites.lossless.replay import Acceptance, ReplayedEngine, read_acceptances, sampling_word
from resa_bench.suites.lossless.replayed import ROUNDS, ReplayRun, round_costs, verification
from resa_bench.suites.lossless.table import case_table, histogram
from resa_bench.suites.lossless.texts import Parting, largest_tie, partings
from resa_bench.suites.model.load import LoadedModel
from rich.console import Console
from tiny_model import TINY, tiny_decoder

CPU = torch.device("cpu")
BASE = SparseConfig(min_blocks=2)
CASE = LosslessCase("tiny", TINY, prompt=200, tokens=24, batch=3)
FOUR = make_spec(NAME, BASE, draft_length=4)
MEASURED = Acceptance(FOUR.variant, (0.5, 0.25, 0.0, 0.125, 0.125), "acceptance replayed from somewhere")
REPLAY = ReplayCase("tiny", TINY, 2, 512, "fp32", "fp32", acceptances=(MEASURED,))
PLAN = DecodePlan(seconds=0.0, eager=False, breakdown=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Letters:
    """A tokenizer of the tiny model: a letter a token."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % TINY.vocab for letter in text]


@pytest.fixture(scope="module")
def bench() -> Bench:
    """A model whose attention matters, kept as if it had been loaded."""
    made = Bench(CPU, describe(CPU), "test", PLAN, make_timer(CPU), Ceilings(1e5, 1e5, 1e3))
    loader = made.held(Loader)
    loader._key, loader._model = ("tiny", "fp32", "fp32", 0), LoadedModel(tiny_decoder(), Letters(), "tiny")  # type: ignore[arg-type]
    return made


def drafting(*lengths: int, **settings: Any) -> list[MethodSpec]:
    return [make_spec(NAME, BASE, draft_length=m, **settings) for m in lengths]


def measure(bench: Bench, specs: list[MethodSpec], case: LosslessCase = CASE) -> list[Row]:
    return suite.run_case(case, [*specs, *dense_specs(CPU, text=True)], bench)


def total(rows: list[Row], method: str, drafts: int | None = None) -> Row:
    [row] = [r for r in rows if (r.stage, r.method, r.draft_length) == ("total", method, drafts)]
    return row


def shares(rows: list[Row], drafts: int, metric: str = "acceptance") -> list[float]:
    of_metric = [r for r in rows if r.metric == metric and r.draft_length == drafts]
    assert [r.step for r in of_metric] == list(range(drafts + 1))
    return [r.value or 0.0 for r in of_metric]


@pytest.fixture(scope="module")
def rows(bench: Bench) -> list[Row]:
    return measure(bench, drafting(2, 5))


def test_rows_of_a_real_models_case(rows: list[Row]) -> None:
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    dense = total(rows, "torch-dense")
    assert dense.n_samples == CASE.tokens
    assert dense.draft_length is None
    for drafts in (2, 5):
        row = total(rows, NAME, drafts)
        assert (row.suite, row.case, row.selection_pattern) == ("lossless", "lossless-tiny-b3-200-24", "text")
        assert row.mean_us is not None
        assert dense.mean_us is not None
        assert row.tokens_per_s == pytest.approx(3 / row.mean_us * 1e6, rel=1e-4)
        assert row.best_dense == "torch-dense"
        assert row.speedup_vs_best_dense == pytest.approx(dense.mean_us / row.mean_us, rel=1e-4)
        assert row.time_us == row.mean_us
        measured = shares(rows, drafts)
        assert sum(measured) == pytest.approx(1, abs=1e-4)
        assert sum(a * share for a, share in enumerate(measured)) == pytest.approx(row.accepted_length, abs=1e-3)
        assert 0 < (row.accepted_length or 0) < drafts
        [equal] = [r for r in rows if r.metric == "equal_tokens" and r.draft_length == drafts]
        assert (equal.value, equal.step, equal.n_samples) == (1, CASE.tokens, 3)


def test_a_text_that_is_not_denses_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = suite.LosslessEngine.generate

    def other(engine: Any, tokens: int, run: Callable[[], object] | None = None) -> torch.Tensor:
        fed = real(engine, tokens, run)
        fed[1, 7] = (fed[1, 7] + 1) % TINY.vocab
        return fed

    monkeypatch.setattr(suite.LosslessEngine, "generate", other)
    rows = measure(bench, drafting(2))
    row = total(rows, NAME, 2)
    assert (row.status, row.mean_us, row.tokens_per_s) == ("failed", None, None)
    assert "1 of 3 texts are not dense decoding's: sequence 1 has" in (row.reason or "")
    assert "after 7 tokens" in (row.reason or "")
    values = {r.metric: r.value for r in rows if r.method == NAME}
    assert (values["equal_tokens"], values["first_divergence"]) == (pytest.approx(2 / 3, abs=1e-4), 7)
    assert (values["divergence_gap"] or 0) > 0
    console = Console(width=160, record=True)
    console.print(case_table(CASE.slug, rows))
    assert "failed" in console.export_text()


def test_partings() -> None:
    dense = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    other = torch.tensor([[1, 2, 3], [4, 0, 0], [0, 8, 9]])
    assert partings(dense, other) == [Parting(1, 1, 5, 0), Parting(2, 0, 7, 0)]
    assert partings(dense, dense) == []
    assert largest_tie(torch.float32) == 0 < largest_tie(torch.float16) < largest_tie(torch.bfloat16)


def test_where_the_rows_decide_the_kernels_texts_are_compared_by_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of bf16, walked in fp32: dense passes of m + 1 rows say the same here, too."""
    monkeypatch.setattr(suite.LosslessRun, "exact", False)
    by_rows: list[torch.Tensor] = []
    monkeypatch.setattr(suite, "decode_by_rows", recorded(suite.decode_by_rows, by_rows))
    rows = measure(bench, drafting(2), replace(CASE, tokens=10))
    assert total(rows, NAME, 2).status == "ok"
    [text] = by_rows
    assert text.shape == (3, 10)
    assert len(set(text.flatten().tolist())) > 3
    values = {r.metric: r.value for r in rows if r.metric and r.metric != "acceptance"}
    assert values == {"equal_tokens": 1, "equal_tokens_one_row": 1}


def test_sampled_texts_have_acceptances_and_no_verdict(bench: Bench) -> None:
    """Their distribution is what is lossless (tests/test_lossless.py); two draws need not be equal."""
    case = replace(CASE, sampling=Sampling(0.8, 0.9))
    rows = measure(bench, drafting(3), case)
    assert {r.status for r in rows} == {"ok"}, [r.reason for r in rows]
    assert {r.case for r in rows} == {"lossless-tiny-b3-200-24-t0.8-p0.9"}
    assert sum(shares(rows, 3)) == pytest.approx(1, abs=1e-4)
    assert {r.metric for r in rows} == {None, "acceptance"}


def test_a_method_that_fails_costs_its_own_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = suite.LosslessRun.lossless

    def broken(run: Any, spec: MethodSpec) -> Any:
        if spec.draft_length == 2:
            raise torch.OutOfMemoryError("none left")
        return real(run, spec)

    monkeypatch.setattr(suite.LosslessRun, "lossless", broken)
    rows = measure(bench, drafting(2, 3), replace(CASE, tokens=4))
    assert (total(rows, NAME, 2).status, total(rows, NAME, 2).reason) == ("oom", "none left")
    assert total(rows, NAME, 3).status == "ok"


# --- replay -----------------------------------------------------------------------------------------------------------


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
    published = Path(__file__).parents[1] / "results" / "h100"
    specs = [make_spec(NAME, draft_length=m) for m in (2, 4, 8)]
    sources = [acceptance.source for acceptance in read_acceptances(published / "lossless.jsonl.gz", specs)]
    replayed = read_rows(published / "lossless-replayed.jsonl.gz")
    assert list(dict.fromkeys(r.reason for r in replayed if r.metric == "replayed_acceptance")) == sources


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


# --- the command ------------------------------------------------------------------------------------------------------


class InProcess:
    """A worker that measures here, and counts."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.measured = bench, 0

    def run(self, case: LosslessCase, specs: list[MethodSpec], on_step: Callable[[str], None]) -> list[Row]:
        self.measured += 1
        return suite.run_case(case, specs, self.bench, on_step)

    def stop(self) -> None:
        pass


def test_resume_and_a_torn_file(bench: Bench, tmp_path: Path) -> None:
    """What is done stays done, other draft lengths add to it, a case cut short is measured again."""
    case, path, worker = replace(CASE, tokens=4), tmp_path / "lossless.jsonl", InProcess(bench)
    dense = dense_specs(CPU, text=True)

    def run(*lengths: int) -> list[Row]:
        run_cases([case], [*dense, *drafting(*lengths)], worker, path, CPU, Console(quiet=True))  # type: ignore[arg-type]
        return read_rows(path)

    first = run(2)
    assert run(2) == first
    assert worker.measured == 1
    both = run(3)
    assert worker.measured == 2
    assert {r.draft_length for r in both if r.method == NAME} == {2, 3}
    assert len({r.started_at for r in both if r.draft_length == 2}) == 1
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-1][:40])
    assert {r.draft_length for r in run(3) if r.method == NAME} == {2, 3}
    assert worker.measured == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "qwen2.5-7b"], "acceptance means nothing on random weights"),
        (["--prompt-tokens", "8K", "--tokens", "1"], "are over the 8192 tokens that smollm2-135m handles"),
        (["--prompt-tokens", "8100", "--tokens", "80", "--draft-length", "16"], "draft length 16: 8100 + 80 tokens"),
        (["--draft-length", "4", "0"], "--draft-length: got 0, must be 1 to 256"),
        (["--prompts", "0"], "--prompts: got 0, must be 1 to"),
        (["--replay", "nothing.jsonl"], "no result file at nothing.jsonl"),
        (["--top-p", "0.9"], "beside temperature 0"),
    ],
)
def test_wrong_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # argparse's own way out, with the same status
        assert main(["lossless", "--plan", "--device", "cpu", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_plan(rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lossless", "--plan", "--device", "cpu", "--ratio", "0.1", "0.2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lossless-smollm2-135m-b8-1k-64 methods: torch-dense, resa-lossless b16 m2, resa-lossless b16 m4" in text
    path = tmp_path / "lossless.jsonl"
    append(path, rows)
    arguments = ["--draft-length", "2", "5", "--min-blocks", "2", "--weights", "fp32", "int4", "--context", "4K"]
    assert main(["lossless", "--plan", "--device", "cpu", "--replay", str(path), *arguments]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "lossless-qwen2.5-7b-fp32-b1-4k-replayed lossless-qwen2.5-7b-int4-b1-4k-replayed" in text


def test_other_suites_refuse_the_name(bench: Bench) -> None:
    case = decode.DecodeCase("tiny", TINY, 1, 256, "fp32", "fp32")
    [row] = decode.run_case(case, [make_spec(NAME)], bench)
    assert row.status == "skipped"
    assert "run `resa-bench lossless`" in (row.reason or "")


def test_bars() -> None:
    replayed_rows = [Row(**CASE.columns(), method=NAME, stage="text", status="ok", step=a, value=v) for a, v in
             enumerate((0.5, 0.0, 0.25, 0.25))]  # fmt: skip
    assert histogram(replayed_rows) == "█ ▄▄"
    assert histogram([]) == ""
