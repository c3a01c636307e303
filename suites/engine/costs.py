"""What a decode step must move and multiply, and what a case takes of the device's memory. Known before it runs."""

from __future__ import annotations

import os

import torch

from ...kernels import AttentionShape, SparseConfig, Traffic
from ...kernels.linear.best import OURS
from ...kernels.selectors import selector_of
from ..core.spec import MethodSpec
from ..core.work import NOTHING, Work
from .case import ModelCase, capacity

BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "int4": 4.25, "fp8": 8}
"""Of a weight. int4: a scale and a zero point in half per 128 weights; fp8: its scales, one a row, do not count."""
SCRATCH_BYTES = 4_000_000_000  # context, work space, activations, graphs, the gate's fp64 references


def element_bytes(case: ModelCase) -> int:
    """Bytes of one activation, or element of a summary."""
    return 4 if case.dtype == "fp32" else 2


def kv_element_bytes(case: ModelCase) -> int:
    """Bytes of one element of a key or value in the cache."""
    return 1 if case.stored_kv else element_bytes(case)


def weight_bytes(case: ModelCase) -> int:
    """Bytes of weights that a step reads: projections in the case's weight type, the head in its activations' type."""
    config = case.config
    return int(config.linear_parameters * BITS[case.weights] / 8) + config.head_parameters * element_bytes(case)


def second_bytes(case: ModelCase) -> int:
    """Of the projections once more, where another product may hold them beside ours."""
    return 0 if case.products == OURS else int(case.config.linear_parameters * BITS[case.weights] / 8)


def weight_traffic(case: ModelCase, rows: int, *, head: bool = True) -> Traffic:
    """Reading every weight once for `rows` rows; a rectification has no head."""
    config, size = case.config, element_bytes(case)
    read = weight_bytes(case) - (0 if head else config.head_parameters * size)
    parameters = config.linear_parameters + (config.head_parameters if head else 0)
    return Traffic(read, 2 * rows * parameters)


def step_weights(case: ModelCase, window: int) -> Traffic:
    """Of a step that runs the newest `window` tokens of each sequence, and ends with the logits of the fed ones."""
    older = case.batch * (window - 1) * case.config.linear_parameters
    return weight_traffic(case, case.batch) + Traffic(0, 2 * older)


def token_bytes(case: ModelCase) -> int:
    """K and V of one token in one layer."""
    return 2 * case.config.kv_heads * case.config.head_dim * kv_element_bytes(case)


def kv_bytes(case: ModelCase, tokens: int) -> int:
    """K and V of `tokens` tokens a sequence in one layer."""
    return case.batch * tokens * token_bytes(case)


def summary_bytes(case: ModelCase, config: SparseConfig, tokens: int) -> int:
    """Summaries of one layer."""
    block_summary = config.summary_bytes(case.config.head_dim, element_bytes(case))
    return case.batch * case.config.kv_heads * config.blocks(tokens) * block_summary


def dense_attention(case: ModelCase) -> Traffic:
    """Of a step in one layer: K and V of all sequences' tokens once, two products."""
    shape, tokens = case.shape, sum(case.sequence_tokens)
    return Traffic(tokens * token_bytes(case), 4 * tokens * shape.q_heads * shape.head_dim)


def planned_attention(case: ModelCase, spec: MethodSpec) -> Traffic:
    """All layers' attention of a step, before anything ran: lists shared by each GQA group (per head, it is more)."""
    layers, dense = case.config.layers, dense_attention(case)
    if spec.is_dense:
        return Traffic(layers * dense.bytes, layers * dense.flops)
    first, rest = spec.dense_layers or 0, sparse_layers(case, spec)
    chosen = sum(kept_tokens(spec, tokens) for tokens in case.sequence_tokens)
    scored = sum(scored_bytes(spec, case.shape, element_bytes(case), tokens, rest) for tokens in case.sequence_tokens)
    flops = 4 * spec.window * chosen * case.shape.q_heads * case.shape.head_dim
    read = first * dense.bytes + rest * chosen * token_bytes(case) + scored
    return Traffic(read, first * dense.flops + rest * flops)


def scored_bytes(spec: MethodSpec, shape: AttentionShape, element: int, tokens: int, layers: int) -> int:
    """Bytes of a sequence of `tokens` tokens that so many sparse layers read to rank its blocks, those that choose."""
    if spec.kind.evicts:
        return 0
    selector = selector_of(spec.kind.ranks_by, spec.config)
    return selector.choosing_layers(layers) * selector.score_bytes(shape, spec.config, element, tokens)


def read_share(case: ModelCase, spec: MethodSpec, length: int, tokens: float | None = None) -> float:
    """Bytes that a step's attention reads, as a share of dense attention's, in a cache of 16 bits.

    K, V, what ranks blocks, and the step's part of a rectification's attention. Of 16 bits whatever the case has, since
    what ranks blocks may have a width of its own.

    Args:
        length: tokens that the step sees.
        tokens: read for each KV head, where they were counted; None: as the settings say, lists shared by each group.
    """
    config, layers, first = spec.config, case.config.layers, spec.dense_layers or 0
    shape, size = case.config.attention(1), 2
    token = 2 * shape.kv_heads * shape.head_dim * size
    tokens = float(min(config.selected(length) * config.block_size, length)) if tokens is None else tokens
    scored = scored_bytes(spec, shape, size, length, layers - first)
    sparse = (scored + (layers - first) * tokens * token) / (length * token)
    rectified = (layers - 1) / config.rectify_every if spec.rectifies else 0.0  # its last layer attends to nothing
    return (first + sparse + rectified) / layers


def rectification(case: ModelCase, every: int) -> Traffic:
    """Weights without the head for f rows a sequence, and dense attention of them in all layers but the last.

    (The last layer ends with its keys and values, since the logits are not used.)
    """
    config, dense = case.config, dense_attention(case)
    layers = config.layers - 1
    chunk = Traffic(layers * dense.bytes, layers * dense.flops * every)
    rows, bits = case.batch * every, BITS[case.weights]
    left_out = config.hidden * (config.q_heads * config.head_dim + 3 * config.ffn)  # the last layer's o and ffn
    weights = weight_traffic(case, rows, head=False)
    return Traffic(weights.bytes - int(left_out * bits / 8), weights.flops - 2 * rows * left_out) + chunk


def plan_costs(case: ModelCase, spec: MethodSpec) -> Work:
    """A step's work as far as it is known before the case runs."""
    return model_work(case, spec, step_weights(case, spec.window) + planned_attention(case, spec), spec.rectifies)


def model_work(case: ModelCase, spec: MethodSpec, step: Traffic, rectifies: bool) -> Work:
    """A step of the whole model with its share of a rectification, where there is one."""
    every = spec.config.rectify_every if rectifies else 1
    return Work(step, rectification(case, every) if rectifies else NOTHING, every)


def memory_bytes(case: ModelCase, specs: list[MethodSpec]) -> int:
    """What the case needs at least on the device: weights, caches, one method's summaries and steps, work space."""
    config, tokens = case.config, capacity(case)
    caches = 1 if case.one_cache else config.layers
    embedding = config.embedding_parameters * element_bytes(case)
    beside = [ranking_bytes(case, spec, tokens) + step_bytes(case, spec, tokens) for spec in specs]  # the whole caches
    beside += [caches * kv_bytes(case, kept_tokens(spec, tokens)) for spec in specs if spec.kind.evicts]
    kept = caches * kv_bytes(case, tokens) + max(beside, default=0)
    return weight_bytes(case) + second_bytes(case) + embedding + kept + SCRATCH_BYTES


def ranking_bytes(case: ModelCase, spec: MethodSpec, tokens: int) -> int:
    """What all layers keep of their blocks beside K and V, to rank them by; layers that share a cache keep it once."""
    if spec.is_dense or spec.kind.evicts:
        return 0
    selector = selector_of(spec.kind.ranks_by, spec.config)
    chooser = selector.chooser(spec.config)
    if not (chooser.summarised or chooser.tabled):
        return 0
    layers = sparse_layers(case, spec)
    if case.one_cache:  # as often as layers of one turn choose
        layers = min(layers, len(selector.choosing))
    return case.batch * scored_bytes(spec, case.shape, element_bytes(case), tokens, layers)


def step_bytes(case: ModelCase, spec: MethodSpec, tokens: int) -> int:
    """What all layers' bound steps take for themselves; layers that share a cache share a step."""
    layers = case.config.layers if spec.is_dense else sparse_layers(case, spec)
    layer = spec.kind.step_bytes(case.shape, spec.config, case.torch_dtype, tokens, case.stored_kv is not None)
    return (min(layers, 1) if case.one_cache else layers) * layer


def sparse_layers(case: ModelCase, spec: MethodSpec) -> int:
    """Layers of the model that are not dense under a method."""
    return max(case.config.layers - (spec.dense_layers or 0), 0)


def kept_tokens(spec: MethodSpec, tokens: int) -> int:
    """Of a sequence of so many, those on its lists: what a method keeps that evicts."""
    return min(spec.config.selected(tokens) * spec.config.block_size, tokens)


def sequence_bytes(case: ModelCase, spec: MethodSpec) -> int:
    """What one more sequence takes by itself: K and V, of methods that evict those that they keep; summaries."""
    config, tokens = case.config, capacity(case)
    caches, first = 1 if case.one_cache else config.layers, spec.dense_layers or 0
    kept = kept_tokens(spec, tokens) if spec.kind.evicts else tokens
    sparse, dense = max(caches - first, 0), min(first, caches)
    keys = sparse * kv_bytes(case, kept) + dense * kv_bytes(case, tokens)
    return (keys + ranking_bytes(case, spec, tokens)) // case.batch


def largest_batch(case: ModelCase, spec: MethodSpec, total_bytes: int) -> int:
    """Sequences of the case's context that fit a memory beside weights and work space; 0 where none does."""
    weights = weight_bytes(case) + second_bytes(case) + case.config.embedding_parameters * element_bytes(case)
    fixed = weights + step_bytes(case, spec, capacity(case)) + SCRATCH_BYTES
    return max(total_bytes - fixed, 0) // sequence_bytes(case, spec)


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU; of a CPU, the host's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def too_large(need: int, device: torch.device) -> str | None:
    """Why so many bytes do not fit the device's memory, or None."""
    if device.type != "cuda":
        return None
    total = device_bytes(device)
    return None if need <= total else f"needs {need / 1e9:.0f} GB of memory, the device has {total / 1e9:.0f}"
