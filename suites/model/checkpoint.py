"""Weights and configuration from a Hugging Face folder: config.json and *.safetensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .config import ModelConfig, RopeScaling
from .decoder import Decoder
from .weights import Stored, assemble

ARCHITECTURES = ("llama", "qwen2", "qwen3")


def load_checkpoint(
    folder: Path, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None
) -> Decoder:
    """The decoder in `folder`, cast to `dtype`; `weight_dtype` as for `random_decoder`.

    Raises:
        ValueError: a file or tensor is missing, or the model is of a kind that `Decoder` does not compute.
    """
    config = read_config(folder)
    stored = _stored(folder)
    decoder = assemble(config, stored, dtype=dtype, device=device, weight_dtype=weight_dtype)
    stored.check_all_read("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tied_head else ()))
    return decoder


def read_config(folder: Path) -> ModelConfig:
    """config.json as a ModelConfig. Raises ValueError where it is missing or asks for what is not supported."""
    raw = read_json(folder, "config.json")
    kind = raw.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"{folder}: model_type is {kind!r}, supported are {', '.join(ARCHITECTURES)}")
    _reject_unsupported(folder, raw)
    missing = [
        key
        for key in (
            "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
            "max_position_embeddings", "rms_norm_eps",
        )
        if key not in raw
    ]  # fmt: skip
    if missing:
        raise ValueError(f"{folder / 'config.json'} does not say {', '.join(missing)}")
    heads = raw["num_attention_heads"]
    theta, scaling = _rope(folder, raw)
    return ModelConfig(
        name=folder.resolve().name,
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        q_heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or (128 if kind == "qwen3" else raw["hidden_size"] // heads),
        ffn=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        context=raw["max_position_embeddings"],
        norm_eps=raw["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tied_head=raw.get("tie_word_embeddings", False),
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises ValueError where there is no such file, or not with an object in it."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {name}: not a folder with a Hugging Face model?") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name}: expected an object, got {type(value).__name__}")
    return value


def _reject_unsupported(folder: Path, raw: dict[str, Any]) -> None:
    """Raises ValueError for what would change the result and is not computed here."""
    window = raw.get("use_sliding_window") and raw.get("sliding_window") is not None
    by_layer = raw.get("layer_types")
    if by_layer is None and window and raw.get("max_window_layers", 28) < raw.get("num_hidden_layers", 0):
        by_layer = ["sliding_attention"]
    reasons = {
        "sliding-window attention": any(layer != "full_attention" for layer in by_layer or ()),
        "quantised weights (quantization_config)": raw.get("quantization_config") is not None,
        f"activation {raw.get('hidden_act')!r}": raw.get("hidden_act", "silu") != "silu",
        "a bias on all attention projections": raw.get("attention_bias", False),
        "a bias in the feed-forward part": raw.get("mlp_bias", False),
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise ValueError(f"{folder}: the model has {', '.join(wrong)}, which is not supported")


def _rope(folder: Path, raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling; transformers 5 writes both into `rope_parameters`, older ones `rope_scaling`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{folder}: rotary parameters differ by layer, which is not supported")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1, 1.0):
        raise ValueError(f"{folder}: rotates only a part of each head, which is not supported")
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    original = raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = original or raw["max_position_embeddings"]
    factor = rope.get("factor") or raw["max_position_embeddings"] / original
    if kind == "llama3":
        low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
        return theta, RopeScaling(kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    if kind != "yarn":
        return theta, RopeScaling(kind, factor, original)  # linear; others are refused there
    if not rope.get("truncate", True):
        raise ValueError(f"{folder}: yarn without truncation is not supported")
    return theta, RopeScaling(
        kind,
        factor,
        original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        attention_factor=_yarn_attention_factor(rope, factor),
    )


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float | None:
    """Given as such, or by DeepSeek's `mscale` pair; None leaves it to the paper's formula."""
    top, bottom = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is None and top and bottom and factor > 1:
        return (0.1 * top * math.log(factor) + 1) / (0.1 * bottom * math.log(factor) + 1)
    return rope.get("attention_factor")


def _stored(folder: Path) -> Stored:
    """All tensors of the folder's safetensors files, of which only the headers are read at first."""
    if (folder / "model.safetensors.index.json").exists():
        names = set(read_json(folder, "model.safetensors.index.json").get("weight_map", {}).values())
        paths = [folder / name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which model.safetensors.index.json lists")
    if not paths:
        raise ValueError(f"{folder} has no *.safetensors")
    try:
        files = [safe_open(path, framework="pt") for path in paths]
    except SafetensorError as error:
        raise ValueError(f"{folder}: the weights cannot be read: {error}") from error
    holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (a handle is not a dict)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in holder.items()}
    return Stored(shapes, lambda name: holder[name].get_tensor(name), str(folder))
