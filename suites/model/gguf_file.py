"""Weights, configuration and tokenizer from a GGUF file, dequantised by the `gguf` library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor

from .checkpoint import ARCHITECTURES
from .config import ModelConfig, RopeScaling
from .decoder import Decoder
from .tokenizer import Tokenizer, byte_level_bpe
from .weights import Stored, assemble

# GGUF's part of a name, and Hugging Face's.
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"  # llama3's scaling, as what to divide each frequency by


class GGUFModel:
    """An open GGUF file of a Llama, Qwen2 or Qwen3."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """`name` of the model, by default the file's without its suffix.

        Raises:
            ValueError: the file is missing, no GGUF, or of a model that `Decoder` does not compute.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        self._path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path} cannot be read as GGUF: {error}") from error
        self._architecture = self._get("general.architecture")
        if self._architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path}: architecture is {self._architecture!r}, supported are {', '.join(ARCHITECTURES)}"
            )
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self.config = self._config(name or path.stem)

    def decoder(self, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None) -> Decoder:
        """The weights, dequantised to `dtype`; with `weight_dtype="int4"` the projections are quantised anew.

        Raises:
            ValueError: a tensor is missing, misshapen, unknown, or of a type that `gguf` cannot dequantise.
        """
        names = {_hugging_face_name(name): name for name in self._tensors}
        shapes = {ours: _shape(self._tensors[name]) for ours, name in names.items()}
        stored = Stored(shapes, lambda name: self._read(names[name]), str(self._path))
        decoder = assemble(self.config, stored, dtype=dtype, device=device, weight_dtype=weight_dtype)
        stored.check_all_read(_FACTORS)
        return decoder

    def tokenizer(self) -> Tokenizer | None:
        """None where the file has none. Raises ValueError where it is not a byte-level BPE known here."""
        if "tokenizer.ggml.tokens" not in self._reader.fields:
            return None
        get, model = self._get, self._get("tokenizer.ggml.model")
        if model != "gpt2":
            raise ValueError(f"{self._path}: tokenizer model is {model!r}, supported is 'gpt2' (byte-level BPE)")
        ends = (get("tokenizer.ggml.eos_token_id"), get("tokenizer.ggml.eot_token_id"))
        return byte_level_bpe(
            get("tokenizer.ggml.tokens"),
            get("tokenizer.ggml.merges"),
            get("tokenizer.ggml.token_type"),
            get("tokenizer.ggml.pre", "default"),
            bos=get("tokenizer.ggml.bos_token_id"),
            eos=tuple(dict.fromkeys(end for end in ends if end is not None)),
            adds_bos=get("tokenizer.ggml.add_bos_token", get("tokenizer.ggml.pre") in ("llama-bpe", "llama3")),
            chat_template=get("tokenizer.chat_template"),
        )

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def _number(self, key: str, default: float | None = None) -> Any:
        """The architecture's number of that name. Raises ValueError where it is neither there nor has a default."""
        value = self._get(f"{self._architecture}.{key}", default)
        if not isinstance(value, int | float):
            what = "is missing" if value is None else f"is {value!r}, expected one number"
            raise ValueError(f"{self._path}: {self._architecture}.{key} {what}")
        return value

    def _config(self, name: str) -> ModelConfig:
        number = self._number
        hidden, heads = number("embedding_length"), number("attention.head_count")
        dim = number("attention.key_length", hidden // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if number(key, dim) != dim:
                raise ValueError(f"{self._path}: {key} is {number(key)}, but heads have {dim} dims: not supported")
        if number("attention.sliding_window", 0):
            raise ValueError(f"{self._path}: the model has sliding-window attention, which is not supported")
        if "token_embd.weight" not in self._tensors:
            raise ValueError(f"{self._path} has no tensor 'token_embd.weight'")
        return ModelConfig(
            name=name,
            layers=number("block_count"),
            hidden=hidden,
            q_heads=heads,
            kv_heads=number("attention.head_count_kv", heads),
            head_dim=dim,
            ffn=number("feed_forward_length"),
            vocab=_shape(self._tensors["token_embd.weight"])[0],
            context=number("context_length"),
            norm_eps=number("attention.layer_norm_rms_epsilon"),
            rope_theta=number("rope.freq_base", 10000.0),
            rope_scaling=self._rope_scaling(dim),
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            qk_norm=self._architecture == "qwen3",
            tied_head="output.weight" not in self._tensors,
        )

    def _rope_scaling(self, dim: int) -> RopeScaling | None:
        kind = self._get(f"{self._architecture}.rope.scaling.type", "none")
        if _FACTORS in self._tensors:
            return self._llama3_scaling(dim)
        if kind == "none":
            return None
        factor = self._number("rope.scaling.factor")
        original = self._number("rope.scaling.original_context_length", self._number("context_length"))
        attention = self._number("rope.scaling.attn_factor", 1.0)  # on top of the paper's
        return RopeScaling(
            kind,
            factor,
            original,
            beta_fast=self._number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self._number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=attention * (0.1 * math.log(factor) + 1) if attention != 1 else None,
        )

    def _llama3_scaling(self, dim: int) -> RopeScaling:
        """The scaling whose divisors the file holds; it says neither name nor parameters."""
        divisors = self._read(_FACTORS)
        scaling = RopeScaling("llama3", float(divisors.max()))
        theta = self._number("rope.freq_base", 10000.0)
        plain = ModelConfig("", 1, dim, 1, 1, dim, 1, 1, rope_theta=theta)
        scaled = ModelConfig("", 1, dim, 1, 1, dim, 1, 1, rope_theta=theta, rope_scaling=scaling)
        expected = plain.rotary()[0] / scaled.rotary()[0]
        if divisors.shape != expected.shape or not torch.allclose(divisors, expected, rtol=1e-4):
            raise ValueError(f"{self._path}: {_FACTORS} is not llama3's scaling of a context of 8192")
        return scaling

    def _read(self, name: str) -> Tensor:
        """The tensor in float32, rows of q and k in the order of `rope_split`'s halves."""
        stored = self._tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{self._path}: {name}: {error}") from error
        tensor = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
        if self._architecture == "llama" and ".attn_q." in name:
            return _halves(tensor, self.config.q_heads)
        if self._architecture == "llama" and ".attn_k." in name:
            return _halves(tensor, self.config.kv_heads)
        return tensor


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from interleaved rotary pairs (0, 1), (2, 3)... to halves (0, D/2), (1, D/2 + 1)..."""
    pairs = tensor.view(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _shape(tensor: Any) -> tuple[int, ...]:
    """GGUF names the fastest dimension first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _hugging_face_name(name: str) -> str:
    """As it is where there is no such name: `Stored` then tells of it."""
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{suffix}"
    block, _, inner = stem.rpartition(".")
    if block.startswith("blk.") and inner in _INNER:
        return f"model.layers.{block.removeprefix('blk.')}.{_INNER[inner]}.{suffix}"
    return name
