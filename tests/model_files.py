"""Small models of each family made by transformers, their files, and dense decoders to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from resa_bench.kernels.linear.dispatch import Weight
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.model.decoder import Cells, Decoder
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

gguf = pytest.importorskip("gguf")

CPU = torch.device("cpu")
FP32 = dict(dtype=torch.float32, device=CPU)

# Relative to the largest logit. fp32 rounds to 6e-8; 3 layers of sums over at most 128 products, and angles of up to
# 160 radians whose frequencies may differ in the last bit, make 1e-5 of it. Wrong scaling makes over 1e-2.
CLOSE = 1e-4


def matrix(weight: Weight) -> Tensor:
    """Of a weight that is not quantised."""
    assert isinstance(weight, DenseWeight)
    return weight.weight


@dataclass
class HeldCells:
    q: Tensor
    k: Tensor
    v: Tensor


class Dense:
    """A decoder at batch 1 with plain causal attention over all keys and values so far."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.length = 0
        config = decoder.config
        empty = torch.empty(2, config.kv_heads, 0, config.head_dim, dtype=decoder.dtype)
        self.caches = [empty] * config.layers

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits `[rows, vocab]` of the next tokens `[rows]`."""
        config, rows = self.decoder.config, len(tokens)
        shapes = ((rows, heads, config.head_dim) for heads in (config.q_heads, config.kv_heads, config.kv_heads))
        cells = HeldCells(*(torch.empty(shape, dtype=self.decoder.dtype) for shape in shapes))
        positions = torch.arange(self.length, self.length + rows)
        seen = torch.arange(self.length + rows) <= positions[:, None]  # [rows, keys]

        def attend(layer: int, cells: Cells) -> Tensor:
            fresh = torch.stack((cells.k, cells.v)).transpose(1, 2)  # [2, Hkv, rows, D]
            self.caches[layer] = torch.cat((self.caches[layer], fresh), dim=2)
            k, v = self.caches[layer]
            q = cells.q.transpose(0, 1)
            attended = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen, enable_gqa=True)
            return attended[0].transpose(0, 1)

        hidden = self.decoder.hidden(tokens, positions, cells, attend)
        self.length += rows
        return self.decoder.logits(hidden)

    def greedy(self, prompt: Tensor, tokens: int) -> list[int]:
        out = [int(self(prompt)[-1].argmax())]
        while len(out) < tokens:
            out.append(int(self(torch.tensor(out[-1:]))[-1].argmax()))
        return out


def assert_close(got: Tensor, expected: Tensor) -> None:
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < CLOSE, f"logits differ by {error:.1e} of the largest"


SMALL = dict(
    num_hidden_layers=3, hidden_size=64, intermediate_size=128, vocab_size=96, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=160, rms_norm_eps=1e-5,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e3, factor=8.0, original_max_position_embeddings=32,
    low_freq_factor=1.0, high_freq_factor=4.0,
)  # fmt: skip
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=40)
DEEPSEEK_YARN = dict(YARN, mscale=1.0, mscale_all_dim=0.5, beta_fast=16, beta_slow=2)
PLAIN = dict(rope_type="default", rope_theta=1e4)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-llama3": ("llama", dict(rope_parameters=LLAMA3)),
    "llama-linear-tied": ("llama", dict(rope_parameters=LINEAR, tie_word_embeddings=True)),
    "llama-plain-head-dim": ("llama", dict(rope_parameters=PLAIN, head_dim=32)),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN)),
    "qwen2-yarn-deepseek-tied": ("qwen2", dict(rope_parameters=DEEPSEEK_YARN, tie_word_embeddings=True)),
    "qwen3-plain": ("qwen3", dict(rope_parameters=PLAIN, head_dim=32)),
    "qwen3-yarn-tied": ("qwen3", dict(rope_parameters=YARN, head_dim=32, tie_word_embeddings=True)),
}


def make_model(family: str) -> Any:
    """A transformers model of random weights, so large that attention is far from even, and the position matters."""
    transformers = pytest.importorskip("transformers")
    kind, settings = FAMILIES[family]
    name = kind.capitalize()
    config = getattr(transformers, f"{name}Config")(**SMALL, **settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.2, generator=generator)
    return model


@torch.inference_mode()
def expected_logits(model: Any, tokens: Tensor) -> Tensor:
    return model(tokens[None]).logits[0]


def some_tokens(vocab: int = int(SMALL["vocab_size"]), count: int = 160) -> Tensor:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(2))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Any, *, extra: Callable[[Any], None] = lambda writer: None) -> None:
    """The model as llama.cpp's converter writes it, in float32."""
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    tied = config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if tied and key.startswith("lm_head"):
            continue
        if kind == "llama" and ("q_proj" in key or "k_proj" in key):
            tensor = interleaved(tensor, head_dim)
        for hugging_face, name in GGUF_NAMES.items():
            key = key.replace(hugging_face, name)
        writer.add_tensor(key, tensor.numpy())
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Row 2 i of a head is its row i, row 2 i + 1 its row D/2 + i."""
    half = head_dim // 2
    order = [start + part * half + i for start in range(0, len(rows), head_dim) for i in range(half) for part in (0, 1)]
    return rows[order]
