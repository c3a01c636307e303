"""Models from GGUF files: the same logits as the model that was written, and errors that tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_files import (
    FP32,
    Dense,
    assert_close,
    expected_logits,
    gguf,
    make_model,
    some_tokens,
    write_gguf,
)
from resa_bench.suites.model.config import ModelConfig, RopeScaling
from resa_bench.suites.model.gguf_file import GGUFModel


@pytest.mark.parametrize("family", ["llama-linear-tied", "llama-plain-head-dim", "qwen2-yarn", "qwen3-yarn-tied"])
def test_gguf_logits_agree_with_transformers(tmp_path: Path, family: str) -> None:
    model = make_model(family)
    write_gguf(tmp_path / "small.gguf", model)
    decoder = GGUFModel(tmp_path / "small.gguf").decoder(**FP32)
    tokens = some_tokens()
    assert_close(Dense(decoder)(tokens), expected_logits(model, tokens))


def test_gguf_says_llama3_scaling_by_divisors(tmp_path: Path) -> None:
    config = ModelConfig("", 1, 64, 1, 1, 64, 1, 1, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 32.0))
    divisors = replace(config, rope_scaling=None).rotary()[0] / config.rotary()[0]
    model = make_model("llama-plain-head-dim")
    model.config.head_dim, model.config.rope_parameters["rope_theta"] = 64, 5e5
    path = tmp_path / "llama3.gguf"
    write_gguf(path, model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", divisors.numpy()))
    assert GGUFModel(path).config.rope_scaling == config.rope_scaling
    write_gguf(path, model, extra=lambda writer: writer.add_tensor("rope_freqs.weight", (divisors + 1).numpy()))
    with pytest.raises(ValueError, match="not llama3's scaling"):
        GGUFModel(path)


def test_gguf_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        GGUFModel(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("text " * 20)
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
        GGUFModel(tmp_path / "text.gguf")
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture is 'gemma', supported are llama, qwen2, qwen3"):
        GGUFModel(tmp_path / "gemma.gguf")
    model = make_model("llama-plain-head-dim")
    write_gguf(tmp_path / "window.gguf", model, extra=lambda writer: writer.add_sliding_window(8))
    with pytest.raises(ValueError, match="sliding-window"):
        GGUFModel(tmp_path / "window.gguf")
    one = torch.ones(1).numpy()
    write_gguf(tmp_path / "more.gguf", model, extra=lambda writer: writer.add_tensor("blk.0.attn_sinks.weight", one))
    with pytest.raises(ValueError, match=r"no use for: blk\.0\.attn_sinks\.weight"):
        GGUFModel(tmp_path / "more.gguf").decoder(**FP32)
