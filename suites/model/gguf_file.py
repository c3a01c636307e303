"""Weights, configuration and tokenizer from a GGUF file, dequantised by the `gguf` library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from torch import Tensor

from .config import ModelConfig, RopeScaling, usable_context
from .decoder import Decoder
from .families import families
from .fill import Part
from .gguf_header import read_gguf
from .parallel.shard import Shard
from .schema import MOST, Fields, one_line, shown
from .tokenizer import Tokenizer, UnsupportedTokenizer, byte_level_bpe
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
    """An open GGUF file of a Llama, Qwen2 or Qwen3, or all parts of a split one."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """`path` of the file or of any of its parts; `name` of the model, by default the file's without its suffix.

        Raises:
            ValueError: the file is missing or malformed, lacks parts, or is of a model that `Decoder` does not compute.
        """
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        self._path = path
        header = read_gguf(path)
        self.paths, self._tensors = header.paths, header.tensors
        self._fields = Fields(header.fields, str(path))
        architecture = self._fields.values.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in families():
            allowed = ", ".join(families())
            raise ValueError(f"{path}: architecture is {shown(architecture)}, supported are {allowed}")
        self._family = families()[architecture]
        self._architecture = self._fields.text("general.architecture")
        self.config = self._config(name or header.name)

    def decoder(
        self, *, dtype: torch.dtype, device: torch.device, weight_dtype: str | None = None, shard: Shard | None = None
    ) -> Decoder:
        """The weights, dequantised to `dtype`; with `weight_dtype` int4 or fp8 projections are quantised anew.

        Raises:
            ValueError: a tensor is missing, misshapen, unknown, or of a type that `gguf` cannot dequantise.
        """
        stored_names = {_hugging_face_name(name): name for name in self._tensors}
        if len(stored_names) < len(self._tensors):
            raise ValueError(f"{self._path}: two tensors are the same one of the model")
        shapes = {name: self._tensors[stored].shape for name, stored in stored_names.items()}

        def read(name: str, part: Part | None) -> Tensor:
            tensor = self._read(stored_names[name])
            return tensor if part is None else tensor[part.index]

        stored = Stored(shapes, read, str(self._path))
        stored.check_shapes(self.config)
        decoder = assemble(self.config, stored, dtype=dtype, device=device, weight_dtype=weight_dtype, shard=shard)
        stored.check_all_read(_FACTORS)
        return decoder

    def tokenizer(self) -> Tokenizer | None:
        """The file's tokenizer; None where it has none, or lacks merges or token types.

        Raises:
            UnsupportedTokenizer: it is not a byte-level BPE known here. A speed run does without.
            ValueError: it is malformed.
        """
        fields, prefix = self._fields, "tokenizer.ggml."
        if not fields.has(prefix + "tokens"):
            return None
        kind = fields.text(prefix + "model")
        if kind != "gpt2":
            raise UnsupportedTokenizer(
                f"{self._path}: tokenizer model is {shown(kind)}, supported is 'gpt2' (byte-level BPE)"
            )
        if not fields.has(prefix + "merges") or not fields.has(prefix + "token_type"):
            return None
        tokens = self._list(prefix + "tokens", str)
        most = len(tokens) - 1
        ends = [fields.integer(prefix + key, -1, least=-1, most=most) for key in ("eos_token_id", "eot_token_id")]
        bos = fields.integer(prefix + "bos_token_id", -1, least=-1, most=most)
        pre = fields.text(prefix + "pre", "default")
        try:
            return byte_level_bpe(
                tokens,
                self._list(prefix + "merges", str),
                self._list(prefix + "token_type", int),
                pre,
                bos=bos if bos >= 0 else None,
                eos=tuple(dict.fromkeys(end for end in ends if end >= 0)),
                adds_bos=fields.flag(prefix + "add_bos_token", pre in ("llama-bpe", "llama3")),
                chat_template=fields.text("tokenizer.chat_template") if fields.has("tokenizer.chat_template") else None,
            )
        except UnsupportedTokenizer as error:
            raise UnsupportedTokenizer(f"{self._path}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None

    def _list(self, key: str, kind: type) -> list[Any]:
        values = self._fields.values[key]
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise self._fields.wrong(key, f"a list of {'texts' if kind is str else 'integers'}")
        return values

    def _integer(self, key: str, size: str, default: int | None = None, least: int = 1) -> int:
        return self._fields.integer(f"{self._architecture}.{key}", default, least=least, most=MOST[size])

    def _number(self, key: str, default: float | None = None, **bounds: Any) -> float:
        return self._fields.number(f"{self._architecture}.{key}", default, **bounds)

    def _config(self, name: str) -> ModelConfig:
        integer, number = self._integer, self._number
        hidden, heads = integer("embedding_length", "hidden"), integer("attention.head_count", "heads")
        dim = integer("attention.key_length", "head_dim", max(hidden // heads, 1))
        for key in ("attention.value_length", "rope.dimension_count"):
            if integer(key, "head_dim", dim) != dim:
                has = integer(key, "head_dim")
                raise ValueError(f"{self._path}: {key} is {has}, but heads have {dim} dims: not supported")
        if integer("attention.sliding_window", "context", 0, least=0):
            raise ValueError(f"{self._path}: the model has sliding-window attention, which is not supported")
        if "token_embd.weight" not in self._tensors:
            raise ValueError(f"{self._path} has no tensor 'token_embd.weight'")
        scaling = self._rope_scaling(dim)
        return ModelConfig(
            name=name,
            layers=integer("block_count", "layers"),
            hidden=hidden,
            q_heads=heads,
            kv_heads=integer("attention.head_count_kv", "heads", heads),
            head_dim=dim,
            ffn=integer("feed_forward_length", "ffn"),
            vocab=self._tensors["token_embd.weight"].shape[0],
            context=usable_context(integer("context_length", "context"), scaling),
            norm_eps=number("attention.layer_norm_rms_epsilon", least=0.0, most=1.0),
            rope_theta=number("rope.freq_base", 10000.0, above=1.0),
            rope_scaling=scaling,
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            qk_norm=self._family.qk_norm,
            tied_head="output.weight" not in self._tensors,
        )

    def _rope_scaling(self, dim: int) -> RopeScaling | None:
        kind = self._fields.text(f"{self._architecture}.rope.scaling.type", "none")
        if _FACTORS in self._tensors:
            return self._llama3_scaling(dim)
        if kind == "none":
            return None
        factor = self._number("rope.scaling.factor", above=0.0, most=1e6)
        stated = self._integer("context_length", "context")
        attention = self._number("rope.scaling.attn_factor", 1.0, above=0.0)  # on top of the paper's
        return RopeScaling(
            kind,
            factor,
            self._integer("rope.scaling.original_context_length", "context", stated),
            beta_fast=self._number("rope.scaling.yarn_beta_fast", 32.0, above=0.0),
            beta_slow=self._number("rope.scaling.yarn_beta_slow", 1.0, above=0.0),
            attention_factor=attention * (0.1 * math.log(factor) + 1) if attention != 1 else None,
        )

    def _llama3_scaling(self, dim: int) -> RopeScaling:
        """The scaling whose divisors the file holds; it says neither name nor parameters."""
        divisors = self._read(_FACTORS)
        largest = float(divisors.max())
        if not (math.isfinite(largest) and largest > 0):
            raise ValueError(f"{self._path}: {_FACTORS} holds {largest}, expected divisors above 0")
        scaling = RopeScaling("llama3", largest)
        theta = self._number("rope.freq_base", 10000.0, above=1.0)
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
            values = dequantize(stored.data(), stored.type)
        except (NotImplementedError, ValueError, OSError) as error:
            raise ValueError(f"{stored.path}: {shown(name)}: {one_line(error)}") from None
        tensor = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
        if tensor.shape != stored.shape:
            raise ValueError(f"{stored.path}: {shown(name)} is {list(tensor.shape)}, expected {list(stored.shape)}")
        if self._family.gguf_interleaved and ".attn_q." in name:
            return _halves(tensor, self.config.q_heads)
        if self._family.gguf_interleaved and ".attn_k." in name:
            return _halves(tensor, self.config.kv_heads)
        return tensor


def _halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from interleaved rotary pairs (0, 1), (2, 3)... to halves (0, D/2), (1, D/2 + 1)..."""
    pairs = tensor.view(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _hugging_face_name(name: str) -> str:
    """As it is where there is no such name: `Stored` then tells of it."""
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{suffix}"
    block, _, inner = stem.rpartition(".")
    if block.startswith("blk.") and inner in _INNER:
        return f"model.layers.{block.removeprefix('blk.')}.{_INNER[inner]}.{suffix}"
    return name
