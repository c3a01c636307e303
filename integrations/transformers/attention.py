"""What transformers calls in place of its own attention while one of our caches is in use, and the mask beside it.

Two phases of a forward: the *prompt*, which meets an empty cache and is transformers' SDPA with transformers' mask, and
what follows it, whose rows attend to the cache: one token a sequence in a step, several in a dense pass. There the
lengths of the sequences say what is visible, left padding included, so that no mask is needed; one that says more
than "causal" is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ...kernels import Unsupported
from .refuse import check_call

if TYPE_CHECKING:
    from .cache import SparseCache

NAME = "resa-bench"
_running = local()


@contextmanager
def running(cache: SparseCache, config: Any) -> Iterator[None]:
    """Attention of the models that read `config` goes through `cache`, here and in this thread."""
    before = config._attn_implementation
    _running.cache = cache
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _running.cache = None


def running_cache() -> SparseCache | None:
    """The cache in use in this thread."""
    return getattr(_running, "cache", None)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention as the interface wants it: query `[B, Hq, T, D]`, new key and value `[B, Hkv, T, D]` after a prompt.

    Returns:
        `[B, T, Hq, D]`, and no weights.

    Raises:
        Unsupported: a mask, a window, dropout or an argument that would be lost.
    """
    layer: Any = module.layer_idx
    if torch.compiler.is_compiling():  # a step of a model whose every layer is sparse, looked at before (graph.py)
        return attend_op(query, key, value, layer, 0.0 if scaling is None else scaling), None
    cache = running_cache()
    if cache is None:
        raise Unsupported(f"attention implementation {NAME!r} runs with a SparseCache alone: call attach(model)")
    is_sparse = cache.is_sparse(layer)
    check_call(layer, is_sparse, arguments)
    if dropout:
        raise Unsupported(f"layer {layer}: attention dropout of {dropout}; call model.eval()")
    if not is_sparse or cache.in_prompt:
        if is_sparse:
            cache.note_prompt(layer, query)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=0.0, scaling=scaling, **arguments
        )
    if attention_mask is not None:
        raise Unsupported(f"layer {layer}: got a mask beyond left padding, which sparse steps do not serve")
    return cache.attend(layer, query, key, value, scaling), None


@torch.library.custom_op("resa_bench::attend", mutates_args=())
def attend_op(query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float) -> Tensor:
    """A layer's sparse step, opaque to torch.compile; the cache, which it writes to, is none of its arguments."""
    cache = running_cache()
    assert cache is not None
    return cache.attend(layer, query, key, value, scaling or None)


@attend_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float) -> Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty(batch, tokens, heads, value.shape[-1])


def mask(*positional: Any, **arguments: Any) -> Tensor | None:
    """SDPA's mask, but none for rows that attend to the cache causally: its lengths say what they see."""
    cache = running_cache()
    after = torch.compiler.is_compiling() or (cache is not None and not cache.in_prompt)
    if after and arguments.get("mask_function") is causal_mask_function:
        return None
    return sdpa_mask(*positional, **arguments)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)
