"""What is refused by name: models, options of `generate` and arguments of attention that sparse steps would get wrong.

Everything here raises `Unsupported` with one line: what was asked for, what is served, what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from ...kernels import Unsupported

SERVED_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
OTHER_LOOPS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")
"""Methods of a model that decode without `generate`'s own loop: continuous batching, whose attention is paged."""

REFUSED_OPTIONS = {
    "cache_implementation": "keys and values are kept by the sparse method",
    "custom_generate": "it brings a loop of its own",
    "negative_prompt_ids": "classifier-free guidance runs the model beside the cache",
    "assistant_model": "drafts of another model are verified in passes of several tokens",
    "prompt_lookup_num_tokens": "drafts are verified in passes of several tokens",
    "penalty_alpha": "contrastive search copies the cache",
    "dola_layers": "DoLa reads hidden states of other layers",
    "output_attentions": "a sparse step has no weights of the blocks that it leaves out",
}
"""Options of `generate`, and why none of their values is served."""

HARMLESS = frozenset(
    {
        "position_ids", "use_cache", "cache_position", "position_embeddings", "output_attentions",
        "output_hidden_states", "output_router_logits", "logits_to_keep", "return_dict", "num_items_in_batch",
        "is_causal", "sliding_window", "kwargs", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    }
)  # fmt: skip
"""Keyword arguments that models hand to attention and that change nothing here, or are looked at by `check_call`."""


def check_model(model: PreTrainedModel) -> None:
    """Raises Unsupported for a model whose steps cannot be made sparse."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise Unsupported(f"model: {name} has no `generate`; give a causal language model of transformers")
    if model.config.is_encoder_decoder:
        raise Unsupported(f"model: {name} is an encoder-decoder; causal models alone are served")
    if not (model._can_set_attn_implementation() and getattr(model, "_supports_sdpa", False)):
        raise Unsupported(
            f"model: {name} does not take attention from transformers' attention interface with SDPA; "
            "models that do are served"
        )
    text = model.config.get_text_config(decoder=True)
    if any(mode == "reuse" for mode in getattr(text, "kv_sharing_modes", None) or ()) or getattr(
        text, "num_kv_shared_layers", None
    ):
        raise Unsupported(f"model: {name} has layers that share keys and values with others, which are not served")
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        raise Unsupported(f"model: {name} is spread over {', '.join(sorted(devices))}; put it on one device")
    if getattr(model, "_tp_size", None) not in (None, 1):
        raise Unsupported(f"model: {name} is tensor parallel; load it on one device")


def merged_options(
    model: PreTrainedModel, generation_config: GenerationConfig | None, options: Mapping[str, Any]
) -> GenerationConfig:
    """What `generate` would decode with: the model's own configuration, that of the call, keyword arguments."""
    merged = GenerationConfig()
    for source in (model.generation_config, generation_config):
        if source is not None:
            merged.update(**{name: value for name, value in source.to_dict().items() if value is not None})
    merged.update(**{name: value for name, value in options.items() if value is not None})
    return merged


def check_options(config: GenerationConfig, options: Mapping[str, Any]) -> None:
    """Raises Unsupported for a way of decoding, or an option, that sparse steps do not serve.

    Args:
        config: as `merged_options` gives it.
        options: `generate`'s keyword arguments.
    """
    for name, why in REFUSED_OPTIONS.items():
        value = options.get(name, getattr(config, name, None))
        if value not in (None, False):
            raise Unsupported(f"{name}: got {_shown(value)}, which sparse decoding does not serve: {why}; leave it out")
    if config.use_cache is False:
        raise Unsupported("use_cache: got False; a sparse step reads the cache, leave the option out")
    if (config.num_beams or 1) > 1:
        raise Unsupported(f"num_beams: got {config.num_beams}; beam search copies caches about, take num_beams=1")
    if (config.guidance_scale or 1) != 1:
        raise Unsupported(f"guidance_scale: got {config.guidance_scale}; guidance runs the model beside the cache")
    mode = config.get_generation_mode(options.get("assistant_model"))
    if mode not in SERVED_MODES:
        served = ", ".join(str(m.value) for m in SERVED_MODES)
        raise Unsupported(f"generation mode: got {mode.value}, served are {served}")


def padding(mask: Tensor | None) -> list[int] | None:
    """Tokens of left padding of each sequence of a mask `[B, T]`; None without a mask.

    Raises:
        Unsupported: masked tokens that are not padding on the left.
    """
    if mask is None:
        return None
    if mask.dim() != 2 or not mask.shape[1]:
        raise Unsupported(f"attention_mask: got {list(mask.shape)}, expected [batch, tokens] with left padding")
    seen = mask != 0
    if bool((seen[:, :-1] & ~seen[:, 1:]).any()) or not bool(seen[:, -1].all()):
        raise Unsupported(
            "attention_mask: it masks tokens after the first one that it shows; pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    pads: list[int] = (~seen).sum(1).tolist()
    return pads


def check_call(layer: int, is_sparse: bool, arguments: Mapping[str, Any]) -> None:
    """Raises Unsupported for keyword arguments of attention that would be lost: softcap, sinks, biases ...

    Args:
        is_sparse: whether the layer's steps are the method's; others are SDPA's.
    """
    for name, value in arguments.items():
        if value is not None and name not in HARMLESS:
            raise Unsupported(f"layer {layer}: its attention takes `{name}`, which sparse decoding does not compute")
    if arguments.get("is_causal") is False:
        raise Unsupported(f"layer {layer}: its attention is not causal")
    if is_sparse and arguments.get("sliding_window") is not None:
        raise Unsupported(
            f"layer {layer}: its attention has a sliding window of {arguments['sliding_window']}, "
            "but the model's configuration says full attention"
        )


def _shown(value: Any) -> str:
    return type(value).__name__ if hasattr(value, "forward") else repr(value)[:60]
