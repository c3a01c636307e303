"""The command `maths`: answers, resume, ranks, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from maths_cases import FAKE, TEMPLATE, letter_tokenizer, write
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.cli import main
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.maths import judge, suite
from resa_bench.suites.maths.judge import Judge
from resa_bench.suites.maths.records import read_records
from resa_bench.suites.model.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A small Qwen2 with tokenizer and template, as Hugging Face saves it."""
    tmp_path = tmp_path_factory.mktemp("model")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("math_verify")
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "small")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.tokenizer, chat_template=TEMPLATE)
    fast.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.slow
def test_command_answers_resumes_and_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(limit_s, [sys.executable, "-c", FAKE]))
    lines = [{"problem": f"{i} + 1?", "answer": i + 1} for i in range(3)]
    path = write(tmp_path / "sums.jsonl", *lines, {"problem": "long " * 100, "answer": 1})
    out = tmp_path / "runs"
    common = ["maths", "--device", "cpu", "--model", str(folder), "--problems", str(path), "--output", str(out)]
    common += ["--max-tokens", "12", "--rectify-every", "4", "--min-blocks", "2", "--batch", "3"]
    assert main([*common, "--method", "torch-dense", "resa-torch"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "refused: sums/4: the prompt takes 5" in printed
    assert "2 prompt over the context" in printed
    records = read_records(out / "maths")
    assert [r.outcome for r in records].count("refused") == 2
    assert len(records) == 8
    assert all(r.tokens == 12 or r.finished for r in records if r.outcome != "refused")
    assert {(r.method, r.metric, r.n_samples) for r in read_rows(out / "maths.jsonl")} >= {
        ("torch-dense", "accuracy", 3), ("resa-torch", "length", 3),
    }  # fmt: skip

    ((written,),) = [list((out / "maths").glob("*.jsonl"))]
    kept = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join(kept[:-1]) + kept[-1][:30])  # the last line torn by a crash
    assert main([*common, "--method", "torch-dense", "resa-torch", "--samples", "2"]) == 0
    assert "7 of 16 answers were there already" in " ".join(capsys.readouterr().out.split())
    again = read_records(out / "maths")
    assert len(again) == 16
    before = {r.key: r.text for r in records}
    assert {r.key: r.text for r in again if r.key in before} == before  # the torn one is made again as it was
    assert main(["maths", "--table", str(out)]) == 0
    assert "resa-torch b16 f4" in capsys.readouterr().out


@pytest.mark.slow
def test_ranks_share_the_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes as torchrun would start them, one after the other, then a third that goes on alone."""
    monkeypatch.setattr(suite, "Judge", lambda limit_s: Judge(limit_s, [sys.executable, "-c", FAKE]))
    path = write(tmp_path / "sums.jsonl", *({"problem": f"{i} + 1?", "answer": i + 1} for i in range(5)))
    common = ["maths", "--device", "cpu", "--model", str(folder), "--problems", str(path), "--max-tokens", "8"]
    common += ["--method", "torch-dense", "--output", str(tmp_path)]
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(common) == 0
    assert "resa-bench maths --table" in capsys.readouterr().out
    counts = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "maths").iterdir()}
    assert counts == {"records-0of2.jsonl": 3, "records-1of2.jsonl": 2}
    (tmp_path / "maths" / "records-1of2.jsonl").unlink()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert main(common) == 0
    assert "3 of 5 answers were there already" in capsys.readouterr().out
    assert sorted(r.problem for r in read_records(tmp_path / "maths")) == ["1", "2", "3", "4", "5"]


def test_command_names_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(*flags: str) -> str:
        assert main(["maths", "--device", "cpu", *flags]) == 2
        return " ".join(capsys.readouterr().err.split())

    path = str(write(tmp_path / "bad.jsonl", "{"))
    assert "line 1: Expecting property name" in complaint("--problems", path, "--model", str(folder))
    raw = json.loads((folder / "config.json").read_text())
    other = write(tmp_path / "other" / "config.json", raw | {"model_type": "mamba"}).parent
    good = str(write(tmp_path / "good.jsonl", {"problem": "1?", "answer": 1}))
    assert "model_type is 'mamba', supported are llama" in complaint("--problems", good, "--model", str(other))
    assert "random weights" in complaint("--model", "qwen2.5-7b")
    assert "--method nothing: unknown" in complaint("--problems", good, "--method", "nothing")
    assert "no records there" in complaint("--table", str(tmp_path))
    monkeypatch.setattr(suite, "unavailable", lambda: judge.unavailable.__doc__)
    assert "Why answers cannot be judged here" in complaint("--problems", good)
