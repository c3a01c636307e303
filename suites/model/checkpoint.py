"""Weights and configuration from a Hugging Face folder: config.json, and the safetensors that transformers loads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import ModelConfig, RopeScaling, usable_context
from .decoder import Decoder
from .families import families
from .fill import Part
from .parallel.shard import Shard
from .schema import MOST, Fields, one_line, parse_object, read_text, shown
from .weight_files import ADAPTER_FILES, INDEX, SINGLE, StoredTensor, stored_tensors, weight_files
from .weights import Stored, assemble

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPARED_ROWS = 4096  # of embedding and head that are held at a time


def load_checkpoint(
    folder: Path, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None,
    shard: Shard | None = None,
) -> Decoder:  # fmt: skip
    """The decoder in `folder`, cast to `dtype`; `weight_dtype` and `shard` as for `random_decoder`.

    Raises:
        ValueError: a file or tensor is missing or malformed, which files are the model cannot be told, or the model is
            of a kind that `Decoder` does not compute.
    """
    config = read_config(folder)
    tensors = stored_tensors(folder)
    config = replace(config, tied_head=_is_tied(config, folder, tensors))
    if config.tied_head and EMBEDDING not in tensors and HEAD in tensors:  # tying goes both ways in transformers
        tensors[EMBEDDING] = tensors[HEAD]
        alias = {EMBEDDING: HEAD}
    else:
        alias = {}
    handles = _open(folder, {tensor.path for tensor in tensors.values()})

    def read(name: str, part: Part | None) -> Tensor:
        handle, stored_name = handles[tensors[name].path], alias.get(name, name)
        try:
            return handle.get_tensor(stored_name) if part is None else handle.get_slice(stored_name)[part.index]
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{tensors[name].path} cannot be read: {one_line(error)}") from None

    stored = Stored({name: tensor.shape for name, tensor in tensors.items()}, read, str(folder))
    stored.check_shapes(config)
    decoder = assemble(config, stored, dtype=dtype, device=device, weight_dtype=weight_dtype, shard=shard)
    stored.check_all_read("rotary_emb.inv_freq", *((HEAD,) if config.tied_head else ()))
    return decoder


def checkpoint_config(folder: Path) -> ModelConfig:
    """`read_config`, with `tied_head` as the weights have it where they are there. Raises ValueError."""
    config = read_config(folder)
    if config.tied_head and any((folder / name).exists() for name in (SINGLE, INDEX)):
        return replace(config, tied_head=_is_tied(config, folder, stored_tensors(folder)))
    return config


def _is_tied(config: ModelConfig, folder: Path, tensors: dict[str, StoredTensor]) -> bool:
    """Whether head and embedding are one matrix: as config.json says, unless the weights hold a head that differs."""
    if not config.tied_head or HEAD not in tensors or EMBEDDING not in tensors:
        return config.tied_head
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if head.shape != embedding.shape or len(head.shape) != 2:
        return False
    handles = _open(folder, {head.path, embedding.path})
    slices = [handles[tensor.path].get_slice(name) for tensor, name in ((head, HEAD), (embedding, EMBEDDING))]
    for begin in range(0, head.shape[0], COMPARED_ROWS):
        rows = [stored[begin : begin + COMPARED_ROWS] for stored in slices]
        if not torch.equal(rows[0].nan_to_num(), rows[1].nan_to_num()):
            return False
    return True


def _open(folder: Path, paths: set[Path]) -> dict[Path, Any]:
    try:
        return {path: safe_open(path, framework="pt") for path in paths}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{folder}: the weights cannot be read: {one_line(error)}") from None


class UnknownFamily(ValueError):
    """A model of a family that `Decoder` does not compute; transformers may."""


def read_config(folder: Path) -> ModelConfig:
    """config.json as a ModelConfig, every field checked. `context` is what the model is usable for, scaling included.

    Raises:
        ValueError: it is missing or malformed, or asks for what is not supported.
    """
    if not (folder / "config.json").exists() and any((folder / name).exists() for name in ADAPTER_FILES):
        weight_files(folder)  # says what an adapter needs
    fields = Fields(read_json(folder, "config.json"), str(folder / "config.json"))
    model_type = fields.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in families():
        raise UnknownFamily(f"{folder}: model_type is {shown(model_type)}, supported are {', '.join(families())}")
    family = families()[model_type]
    _reject_unsupported(folder, fields)
    fields.check_present(
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    heads = fields.integer("num_attention_heads", most=MOST["heads"])
    hidden = fields.integer("hidden_size", most=MOST["hidden"])
    context = fields.integer("max_position_embeddings", most=MOST["context"])
    theta, scaling = _rope(folder, fields, context)
    return ModelConfig(
        name=folder.resolve().name,
        layers=fields.integer("num_hidden_layers", most=MOST["layers"]),
        hidden=hidden,
        q_heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads, most=MOST["heads"]),
        head_dim=fields.integer("head_dim", family.head_dim or max(hidden // heads, 1), most=MOST["head_dim"]),
        ffn=fields.integer("intermediate_size", most=MOST["ffn"]),
        vocab=fields.integer("vocab_size", most=MOST["vocab"]),
        context=usable_context(context, scaling),
        norm_eps=fields.number("rms_norm_eps", least=0.0, most=1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied_head=fields.flag("tie_word_embeddings"),
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a folder's file. Raises ValueError where there is no such file, or not with an object in it."""
    path = folder / name
    if not path.exists() and not path.is_symlink():
        raise ValueError(f"{folder} has no {name}: not a folder with a Hugging Face model?")
    return parse_object(read_text(path), path)


def _reject_unsupported(folder: Path, fields: Fields) -> None:
    """Raises ValueError for what would change the result and is not computed here."""
    window = fields.flag("use_sliding_window") and fields.has("sliding_window")
    by_layer = fields.values.get("layer_types")
    if by_layer is not None and not (isinstance(by_layer, list) and all(isinstance(kind, str) for kind in by_layer)):
        raise fields.wrong("layer_types", "a list of texts")
    windowed_from = fields.integer("max_window_layers", 28, least=0)
    if by_layer is None and window and windowed_from < fields.integer("num_hidden_layers", 1, most=MOST["layers"]):
        by_layer = ["sliding_attention"]
    activation = fields.text("hidden_act", "silu")
    reasons = {
        "sliding-window attention": any(layer != "full_attention" for layer in by_layer or ()),
        "quantised weights (quantization_config)": fields.has("quantization_config"),
        f"activation {shown(activation)}": activation != "silu",
        "a bias on all attention projections": fields.flag("attention_bias"),
        "a bias in the feed-forward part": fields.flag("mlp_bias"),
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise ValueError(f"{folder}: the model has {', '.join(wrong)}, which is not supported")


def _rope(folder: Path, fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling; transformers 5 writes both into `rope_parameters`, older ones `rope_scaling`."""
    rope = fields.object("rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise ValueError(f"{folder}: rotary parameters differ by layer, which is not supported")
    for holder in (rope, fields):
        if holder.number("partial_rotary_factor", 1.0) != 1:
            raise ValueError(f"{folder}: rotates only a part of each head, which is not supported")
    theta = (rope if rope.has("rope_theta") else fields).number("rope_theta", 10000.0, above=1.0)
    name = rope.text("rope_type" if rope.has("rope_type") else "type", "default")
    if name == "default":
        return theta, None
    holder = fields if fields.has("original_max_position_embeddings") else rope
    original = holder.integer("original_max_position_embeddings", context, most=MOST["context"])
    factor = rope.number("factor", context / original, above=0.0, most=1e6)
    if name == "llama3":
        low, high = rope.number("low_freq_factor", 1.0, above=0.0), rope.number("high_freq_factor", 4.0, above=0.0)
        return theta, RopeScaling(name, factor, original, low_freq_factor=low, high_freq_factor=high)
    if name != "yarn":
        return theta, RopeScaling(name, factor, original)  # linear; others are refused there
    if not rope.flag("truncate", True):
        raise ValueError(f"{folder}: yarn without truncation is not supported")
    return theta, RopeScaling(
        name,
        factor,
        original,
        beta_fast=rope.number("beta_fast", 32.0, above=0.0),
        beta_slow=rope.number("beta_slow", 1.0, above=0.0),
        attention_factor=_yarn_attention_factor(rope, factor),
    )


def _yarn_attention_factor(rope: Fields, factor: float) -> float | None:
    """Given as such, or by DeepSeek's `mscale` pair; None leaves it to the paper's formula."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor", above=0.0)
    top, bottom = rope.number("mscale", 0.0, least=0.0), rope.number("mscale_all_dim", 0.0, least=0.0)
    if top and bottom and factor > 1:
        return (0.1 * top * math.log(factor) + 1) / (0.1 * bottom * math.log(factor) + 1)
    return None
