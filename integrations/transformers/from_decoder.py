"""A decoder of ours as a model of transformers: the same weights, which are shared and not copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers import models as families

from ...kernels import Unsupported
from ...kernels.linear.dispatch import Weight
from ...kernels.linear.weights import DenseWeight
from ...suites.model.config import ModelConfig
from ...suites.model.decoder import Decoder


def transformers_model(decoder: Decoder) -> PreTrainedModel:
    """The model of transformers that computes what `decoder` does; its tensors are views of the decoder's.

    Raises:
        Unsupported: quantised weights, or a mixture of options that no family of transformers has.
    """
    config = decoder.config
    kind, own = _family(config)
    with torch.device("meta"):
        model = kind(own).to(decoder.dtype)
    model.load_state_dict(_tensors(decoder), assign=True, strict=not config.tied_head)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=own).to(decoder.device)
    model.generation_config.pad_token_id = 0
    model.eval()
    return model.requires_grad_(False)


def _family(config: ModelConfig) -> tuple[Any, PretrainedConfig]:
    """The class of the model, and its configuration."""
    if config.qkv_bias and config.qk_norm:
        raise Unsupported(f"model: {config.name} has biases and norms of q and k; no family of transformers has both")
    common: dict[str, Any] = {
        "vocab_size": config.vocab, "hidden_size": config.hidden, "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers, "num_attention_heads": config.q_heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.context, "tie_word_embeddings": config.tied_head,
        "rope_parameters": _rope(config), "attn_implementation": "sdpa",
    }  # fmt: skip
    if config.qk_norm:
        return families.qwen3.Qwen3ForCausalLM, families.qwen3.Qwen3Config(**common)
    if config.qkv_bias:
        return families.qwen2.Qwen2ForCausalLM, families.qwen2.Qwen2Config(**common)
    return families.llama.LlamaForCausalLM, families.llama.LlamaConfig(**common)


def _rope(config: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` of transformers."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    own: dict[str, Any] = {
        "rope_type": scaling.kind, "rope_theta": config.rope_theta, "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
    }  # fmt: skip
    if scaling.kind == "llama3":
        own |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        own |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        own |= {"attention_factor": scaling.attention_factor} if scaling.attention_factor is not None else {}
    return own


def _tensors(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's tensors under Hugging Face's names."""
    config = decoder.config
    tensors = {"model.embed_tokens.weight": decoder.embedding, "model.norm.weight": decoder.norm.weight}
    if not config.tied_head:
        tensors["lm_head.weight"] = _dense(decoder.head).weight
    widths = {"q": config.q_heads * config.head_dim, "k": config.kv_heads * config.head_dim}
    widths["v"] = widths["k"]
    for i, layer in enumerate(decoder.layers):
        at = f"model.layers.{i}"
        qkv, gate_up = _dense(layer.qkv), _dense(layer.gate_up)
        parts = zip(widths, qkv.weight.split(list(widths.values())), strict=True)
        tensors |= {f"{at}.self_attn.{name}_proj.weight": part for name, part in parts}
        if qkv.bias is not None:
            biases = zip(widths, qkv.bias.split(list(widths.values())), strict=True)
            tensors |= {f"{at}.self_attn.{name}_proj.bias": part for name, part in biases}
        gate, up = gate_up.weight.split(config.ffn)
        tensors |= {
            f"{at}.self_attn.o_proj.weight": _dense(layer.o).weight,
            f"{at}.mlp.gate_proj.weight": gate,
            f"{at}.mlp.up_proj.weight": up,
            f"{at}.mlp.down_proj.weight": _dense(layer.down).weight,
            f"{at}.input_layernorm.weight": layer.attention_norm.weight,
            f"{at}.post_attention_layernorm.weight": layer.ffn_norm.weight,
        }
        for name, norm in (("q", layer.q_norm), ("k", layer.k_norm)):
            if norm is not None:
                tensors[f"{at}.self_attn.{name}_norm.weight"] = norm.weight
    return tensors


def _dense(weight: Weight) -> DenseWeight:
    """Raises Unsupported for 4-bit and 8-bit weights, which transformers' linear layers do not read."""
    if not isinstance(weight, DenseWeight):
        raise Unsupported("weights: transformers reads weights of 16 bits or more, these are quantised; take bf16")
    return weight
