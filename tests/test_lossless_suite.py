"""The lossless suite: rows of a small model, texts compared, flags, resume."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import recorded
from lossless_rows import CASE, CPU, drafting, measure, shares, tiny_bench, tiny_rows, total
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.cli import main
from resa_bench.suites.core.bench import Bench
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.runner import run_cases
from resa_bench.suites.core.spec import MethodSpec, make_spec
from resa_bench.suites.decode import run as decode
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.lossless import run as suite
from resa_bench.suites.lossless.cases import LosslessCase, dense_specs
from resa_bench.suites.lossless.method import NAME
from resa_bench.suites.lossless.table import case_table, histogram
from resa_bench.suites.lossless.texts import Parting, largest_tie, partings
from rich.console import Console
from tiny_model import TINY

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return tiny_rows()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        (["--weights", "int4"], "--weights: is for a replay; give --replay FILE, too"),
        (["--context", "4K"], "--context: is for a replay"),
        (["--batch", "4"], "--batch: is for a replay"),
        (["--shared-kv"], "--shared-kv: is for a replay"),
        (["--seconds", "3"], "--seconds: is for a replay"),
        (["--replay", "x.jsonl", "--prompts", "4"], "--prompts: a replay has no texts"),
        (["--replay", "x.jsonl", "--prompt-tokens", "1K"], "--prompt-tokens: a replay has no texts"),
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
