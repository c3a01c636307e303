"""Tiny random models of transformers, weights large enough for attention to matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", minversion="5.20")

SIZES: dict[str, Any] = {
    "vocab_size": 120, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "tie_word_embeddings": False,
}  # fmt: skip
NEXT: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 0, "mlp_only_layers": [0, 1],
}  # fmt: skip
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {}),
    "qwen3-next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", NEXT),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
}
FULL_AND_WINDOW = [name for name in FAMILIES if name not in ("granite", "qwen3-next", "lfm2")]


def tiny(family: str, **changes: Any) -> Any:
    """A model of a family in fp32; `changes` of its configuration."""
    config_name, model_name, own = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**SIZES | own | changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model


def prompt(batch: int, tokens: int = 40, pads: tuple[int, ...] = (0, 5, 13, 20)) -> dict[str, Tensor]:
    """Random ids and their mask, `[batch, tokens]`, padded on the left."""
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(3, 120, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads[:batch]):
        ids[row, :pad] = mask[row, :pad] = 0
    return {"input_ids": ids, "attention_mask": mask}


def greedy(model: Any, inputs: dict[str, Tensor], tokens: int = 28, **options: Any) -> Any:
    """What `generate` gives greedily, never stopping; repetitions cost, for random models love them."""
    given = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "repetition_penalty": 1.3} | options
    return model.generate(**inputs, **given)
