"""`resa-bench decode` as a user runs it: a checkpoint folder, resume, plots; SmolLM2 with everything selected."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.suites.cli import main
from resa_bench.suites.core.results import read_rows
from resa_bench.suites.core.spec import MethodSpec
from resa_bench.suites.engine.engine import Engine, State, bind_layers, generate
from resa_bench.suites.engine.loader import prompt_ids
from resa_bench.suites.engine.prompt import prefill
from resa_bench.suites.model.load import load_decoder
from resa_bench.suites.model.smollm import ModelNotHere

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Qwen2 of a few thousand weights as Hugging Face saves it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    path = tmp_path / "small-qwen2"
    transformers.Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.slow
def test_decode_measures_resumes_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs"
    common = ["decode", "--device", "cpu", "--model", str(folder), "--prompt", "synthetic", "--output", str(out)]
    common += ["--method", "torch-dense", "resa-torch", "--seconds", "0", "--rectify-every", "4", "--min-blocks", "2"]
    assert main([*common, "--context", "128", "256"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "decoding with fp32 weights, synthetic context" in printed
    assert "a step's time in microseconds" in printed
    rows = read_rows(out / "decode.jsonl")
    totals = [r for r in rows if r.stage == "total"]
    assert {(r.context, r.method, r.status) for r in totals} == {
        (context, method, "ok") for context in (128, 256) for method in ("torch-dense", "resa-torch")
    }
    assert all(r.command and r.command.startswith("resa-bench decode") for r in rows)
    assert {path.stem.split("-")[1] for path in (out / "plots").glob("*.png")} >= {"tokens", "speedup", "stages"}

    assert main([*common, "--context", "128", "256", "--no-plots"]) == 0
    assert "2 of 2 cases were done already" in " ".join(capsys.readouterr().out.split())
    assert len(read_rows(out / "decode.jsonl")) == len(rows)


def test_text_needs_room_in_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--device", "cpu", "--model", str(folder), "--context", "8K"]) == 2
    assert "--context 8192: small-qwen2 handles texts of at most 4096 tokens" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.slow
def test_smollm_with_everything_selected_is_dense() -> None:
    """Token for token in fp32, rectifications in between."""
    try:
        loaded = load_decoder("smollm2-135m", dtype=torch.float32, device=CPU)
    except ModelNotHere as error:
        pytest.skip(str(error))
    tokens, decoder = 24, loaded.decoder
    texts = []
    with torch.inference_mode():
        ids = prompt_ids(loaded, 201)
        for name in ("torch-dense", "resa-torch"):
            spec = MethodSpec(name, SparseConfig(active_ratio=1.0, rectify_every=10))
            state = State.allocate(decoder, 1, 256, tokens)
            prefill(decoder, state, ids[None, :200])
            state.start(200, ids[200:])
            method = get_method(name)(decoder.config.attention(1), spec.config, dtype=torch.float32, device=CPU)
            every = 10 if name == "resa-torch" else None
            engine = Engine(decoder, state, bind_layers(state, method, None, 0), rectify_every=every)
            generate(engine.step, engine.rectify if every else None, 10, tokens)
            texts.append(state.history[:tokens, 0].tolist())
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5, "the model says something"
