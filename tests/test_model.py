"""Decoders from checkpoints and random numbers: the same logits as transformers, and errors that tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import (
    CLOSE,
    FAMILIES,
    FP32,
    SMALL,
    YARN,
    Dense,
    assert_close,
    expected_logits,
    make_model,
    matrix,
    some_tokens,
    write_gguf,
)
from resa_bench.kernels.linear.int4 import Int4Weight, dequantise
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.model.checkpoint import load_checkpoint, read_config
from resa_bench.suites.model.config import MODELS, ModelConfig
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.load import load_decoder, model_config
from resa_bench.suites.model.weights import random_decoder
from tiny_model import read_back
from torch import Tensor


@pytest.fixture(params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """A small model and the folder it is saved in, in several files."""
    model = make_model(request.param)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    return model, tmp_path


def test_logits_agree_with_transformers(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    assert len(list(folder.glob("*.safetensors"))) > 1
    decoder = load_checkpoint(folder, **FP32)
    tokens = some_tokens()  # beyond the original context
    expected = expected_logits(model, tokens)
    assert_close(Dense(decoder)(tokens), expected)
    if decoder.config.rope_scaling:
        unscaled = Decoder(
            replace(decoder.config, rope_scaling=None), decoder.embedding, decoder.layers, decoder.norm, decoder.head
        )
        error = (Dense(unscaled)(tokens) - expected).abs().max() / expected.abs().max()
        assert error > 100 * CLOSE, "this test would not notice wrong scaling"


def test_tied_head_is_the_embedding(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    decoder = load_checkpoint(folder, **FP32)
    assert isinstance(decoder.head, DenseWeight)
    assert (decoder.head.weight is decoder.embedding) == model.config.tie_word_embeddings
    assert decoder.parameter_bytes == 4 * sum(p.numel() for p in model.parameters() if p.ndim > 1 or is_bias(p, model))


def is_bias(parameter: Tensor, model: Any) -> bool:
    return any(p is parameter and key.endswith("bias") for key, p in model.named_parameters())


def test_old_rope_keys_mean_the_same(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    new = read_config(folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    raw["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    path.write_text(json.dumps(raw))
    assert read_config(folder) == new


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        pytest.param("mistral", {}, "model_type is 'mistral', supported are llama, qwen2, qwen3", id="architecture"),
        pytest.param("qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), "sliding-window",
                     id="window"),
        pytest.param("qwen3", dict(layer_types=["full_attention", "sliding_attention"]), "sliding-window",
                     id="window-by-layer"),
        pytest.param("llama", dict(quantization_config={"quant_method": "awq"}), "quantised weights", id="quantised"),
        pytest.param("llama", dict(attention_bias=True), "bias on all attention", id="attention-bias"),
        pytest.param("llama", dict(mlp_bias=True), "bias in the feed-forward", id="mlp-bias"),
        pytest.param("llama", dict(hidden_act="gelu"), "activation 'gelu'", id="activation"),
        pytest.param("llama", dict(partial_rotary_factor=0.5), "only a part of each head", id="partial-rotary"),
        pytest.param("llama", dict(rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic', allowed are linear",
                     id="scaling"),
        pytest.param("llama", dict(rope_scaling={"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
                     "'longrope', allowed are linear", id="longrope"),
        pytest.param("qwen2", dict(rope_scaling=dict(YARN, truncate=False)), "without truncation", id="truncation"),
    ],
)  # fmt: skip
def test_unsupported_configurations_are_told(tmp_path: Path, kind: str, settings: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SMALL, **settings}))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_a_window_that_no_layer_uses_is_no_window(tmp_path: Path) -> None:
    """As Qwen2.5's configurations have it."""
    unused = dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", **SMALL, **unused}))
    assert read_config(tmp_path).qkv_bias


def test_missing_files_and_tensors_are_told(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_checkpoint(tmp_path, **FP32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(ValueError, match="does not say num_hidden_layers, num_attention_heads"):
        load_checkpoint(tmp_path, **FP32)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SMALL}))
    with pytest.raises(ValueError, match=r"has no \*\.safetensors"):
        load_checkpoint(tmp_path, **FP32)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, **FP32)
    safetensors.save_file({"model.embed_tokens.weight": torch.zeros(96, 32)}, weights)
    with pytest.raises(ValueError, match=r"'model.embed_tokens.weight' has shape \[96, 32\], .* says \[96, 64\]"):
        load_checkpoint(tmp_path, **FP32)
    safetensors.save_file({"model.embed_tokens.weight": torch.zeros(96, 64)}, weights)
    with pytest.raises(ValueError, match=r"no tensor 'model\.layers\.0\.input_layernorm\.weight'"):
        load_checkpoint(tmp_path, **FP32)
    weights.unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks model-2\.safetensors"):
        load_checkpoint(tmp_path, **FP32)


def test_a_tensor_without_use_is_told(tmp_path: Path) -> None:
    """It would mean that the model computes something else."""
    safetensors = pytest.importorskip("safetensors.torch")
    make_model("llama-plain-head-dim").save_pretrained(tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(32)
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no use for: model\.layers\.0\.self_attn\.q_norm\.weight"):
        load_checkpoint(tmp_path, **FP32)


YARN_4K = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3_32 = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("stated", "scaling", "usable"),
    [
        pytest.param(1024, YARN_4K, 4096, id="yarn-added-by-hand"),
        pytest.param(4096, YARN_4K, 4096, id="yarn-stated"),
        pytest.param(1024, {"type": "yarn", "factor": 2.5}, 2560, id="yarn-without-original"),
        pytest.param(1024, {"type": "linear", "factor": 4.0}, 4096, id="linear"),
        pytest.param(131072, LLAMA3_32, 131072, id="llama3-states-it"),
        pytest.param(2048, None, 2048, id="none"),
    ],
)
def test_context_is_what_the_scaling_makes_usable(
    tmp_path: Path, stated: int, scaling: dict[str, Any] | None, usable: int
) -> None:
    raw = {"model_type": "qwen2", **SMALL, "max_position_embeddings": stated, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path).context == usable


TINY = ModelConfig("tiny", 2, 256, 4, 2, 64, 384, 100, qkv_bias=True, qk_norm=True)


def test_random_weights_are_as_drawn() -> None:
    decoder = random_decoder(TINY, seed=3, **FP32)
    again, other = random_decoder(TINY, seed=3, **FP32), random_decoder(TINY, seed=4, **FP32)
    layer = decoder.layers[1]
    for weight, std in ((decoder.embedding, 0.02), (matrix(layer.qkv), 0.02), (matrix(layer.down), 0.02)):
        assert weight.std() == pytest.approx(std, rel=0.05)
        assert abs(weight.mean()) < 1e-3
    assert layer.qkv.bias is not None
    assert 0 < layer.qkv.bias.std() < 0.03
    assert layer.q_norm is not None
    assert layer.ffn_norm.weight.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(matrix(layer.down), matrix(again.layers[1].down))
    assert not torch.equal(matrix(layer.down), matrix(other.layers[1].down))
    matrices = TINY.linear_parameters + 2 * TINY.head_parameters
    assert decoder.parameter_bytes == 4 * (matrices + TINY.layers * TINY.qkv_width)


def test_int4_decoder_has_the_bytes_and_logits_of_its_4_bits() -> None:
    decoder = random_decoder(TINY, weight_dtype="int4", **FP32)
    assert all(isinstance(weight, Int4Weight) for layer in decoder.layers for weight in layer.linears)
    assert isinstance(decoder.head, DenseWeight)

    def packed(depth: int) -> float:
        """Bytes a row: half a byte for each weight of a block of 512, scale and zero in fp32 for each of its groups."""
        blocks = -(-depth // 512)
        return blocks * (512 / 2 + 4 * 2 * 4)

    c = TINY
    rows = {c.hidden: c.qkv_width + c.hidden + 2 * c.ffn, c.ffn: c.hidden}
    layer_bytes = sum(n * packed(depth) for depth, n in rows.items()) + 4 * c.qkv_width
    assert decoder.weight_bytes == c.layers * layer_bytes + 4 * c.head_parameters

    plain = read_back(decoder, dequantise)
    tokens = some_tokens(TINY.vocab, 20)
    assert_close(Dense(decoder)(tokens), Dense(plain)(tokens))


def test_int4_of_a_checkpoint_takes_the_group_that_fits(tmp_path: Path) -> None:
    make_model("llama-plain-head-dim").save_pretrained(tmp_path)
    decoder = load_checkpoint(tmp_path, weight_dtype="int4", **FP32)
    full = load_checkpoint(tmp_path, **FP32)
    quantised = decoder.layers[0].qkv
    assert isinstance(quantised, Int4Weight)
    assert quantised.group == 64
    assert (dequantise(quantised) - matrix(full.layers[0].qkv)).abs().max() < 0.06  # half a step of 1.4 / 15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(dict(weight_dtype="int8"), "got 'int8' .* allowed are fp32 .*, int4, fp8", id="unknown"),
        pytest.param(dict(weight_dtype="bf16"), "got 'bf16' with activations of fp32", id="mixed"),
        pytest.param(dict(dtype=torch.float64), "allowed are torch.bfloat16", id="dtype"),
    ],
)
def test_unknown_dtypes_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_decoder(TINY, **(FP32 | settings))


def test_load_by_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    loaded = load_decoder("tiny", seed=5, **FP32)
    assert (loaded.decoder.config, loaded.tokenizer, loaded.source) == (TINY, None, "random weights, seed 5")
    model = make_model("llama-plain-head-dim")
    folder = tmp_path / "some-model"
    model.save_pretrained(folder)
    loaded = load_decoder(str(folder), **FP32)
    assert loaded.source == "Hugging Face folder some-model"
    write_gguf(tmp_path / "some.gguf", model)
    other = load_decoder(str(tmp_path / "some.gguf"), **FP32)
    assert (other.source, other.tokenizer) == ("GGUF file some.gguf", None)
    assert torch.equal(matrix(loaded.decoder.layers[2].qkv), matrix(other.decoder.layers[2].qkv))
    for name, config in (
        ("tiny", TINY),
        (folder, loaded.decoder.config),
        (tmp_path / "some.gguf", other.decoder.config),
    ):
        assert model_config(str(name)) == config


def test_unknown_names_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"got 'gpt-5', allowed are qwen2.5-7b, .*smollm2-135m, a folder .* \.gguf file"
    ):
        load_decoder("gpt-5", **FP32)
    with pytest.raises(ValueError, match=r"got './gone': no such file or folder, allowed are"):
        load_decoder("./gone", **FP32)
