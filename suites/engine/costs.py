"""What a decode step must move and multiply, and what a case takes of the device's memory. Known before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...kernels import SparseConfig, Traffic, get_method
from ...profiling.ceilings import Ceilings
from ..decode.cases import DecodeCase, ModelCase, capacity, rectifies, window
from ..micro.cases import MethodSpec

BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "int4": 4.25}  # int4: a scale and a zero point in half per 128 weights
SCRATCH_BYTES = 4_000_000_000  # context, work space, activations, graphs, the gate's fp64 references


class TokenCosts(Protocol):
    """What a token takes: bytes, floating-point operations, and the time that they need at least."""

    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...
    def floor_us(self, ceilings: Ceilings) -> float: ...


@dataclass(frozen=True, slots=True)
class Costs:
    """Bytes and floating-point operations of one decode step of the whole model."""

    weights: Traffic
    attention: Traffic
    rectification: Traffic  # of one rectification, not amortised
    rectify_every: int | None

    def floor_us(self, ceilings: Ceilings) -> float:
        """The step's floor, rectification amortised in."""
        step, apart = self.weights + self.attention, self.rectification
        floor = ceilings.floor_us(step.bytes, step.flops)
        every = self.rectify_every
        return floor + (ceilings.floor_us(apart.bytes, apart.flops) / every if every else 0.0)

    @property
    def bytes(self) -> int:
        every = self.rectify_every
        return self.weights.bytes + self.attention.bytes + (self.rectification.bytes // every if every else 0)

    @property
    def flops(self) -> int:
        every = self.rectify_every
        return self.weights.flops + self.attention.flops + (self.rectification.flops // every if every else 0)


def element_bytes(case: ModelCase) -> int:
    return 4 if case.dtype == "fp32" else 2


def weight_bytes(case: ModelCase) -> int:
    """Bytes of weights that a step reads: projections in the case's weight type, the head in its activations' type."""
    config = case.config
    return int(config.linear_parameters * BITS[case.weights] / 8) + config.head_parameters * element_bytes(case)


def weight_traffic(case: DecodeCase, rows: int, *, head: bool = True) -> Traffic:
    """Reading every weight once for `rows` rows; a rectification has no head."""
    config, size = case.config, element_bytes(case)
    read = weight_bytes(case) - (0 if head else config.head_parameters * size)
    parameters = config.linear_parameters + (config.head_parameters if head else 0)
    return Traffic(read, 2 * rows * parameters)


def step_weights(case: DecodeCase, window: int) -> Traffic:
    """Of a step that runs the newest `window` tokens of each sequence, and ends with the logits of the fed ones."""
    older = case.batch * (window - 1) * case.config.linear_parameters
    return weight_traffic(case, case.batch) + Traffic(0, 2 * older)


def kv_bytes(case: ModelCase, tokens: int) -> int:
    """K and V of `tokens` tokens a sequence in one layer."""
    config = case.config
    return 2 * case.batch * config.kv_heads * tokens * config.head_dim * element_bytes(case)


def summary_bytes(case: DecodeCase, config: SparseConfig, tokens: int) -> int:
    """Summaries of one layer."""
    one = config.summary_bytes(case.config.head_dim, element_bytes(case))
    return case.batch * case.config.kv_heads * config.blocks(tokens) * one


def dense_attention(case: DecodeCase) -> Traffic:
    shape = case.shape
    return Traffic(kv_bytes(case, case.context), 4 * case.batch * case.context * shape.q_heads * shape.head_dim)


def planned_attention(case: DecodeCase, spec: MethodSpec, is_dense: bool) -> Traffic:
    """All layers' attention of a step, before anything ran: lists shared by each GQA group (per head, it is more)."""
    layers, config = case.config.layers, spec.config
    dense = dense_attention(case)
    if is_dense:
        return Traffic(layers * dense.bytes, layers * dense.flops)
    chosen = min(config.selected(case.context) * config.block_size, case.context)
    scored = 0 if spec.name == "sink-window" else summary_bytes(case, config, case.context)
    if spec.name == "oracle":
        scored = dense.bytes // 2
    flops = 4 * case.batch * window(spec) * chosen * case.shape.q_heads * case.shape.head_dim
    one = Traffic(scored + kv_bytes(case, chosen), flops)
    first = spec.dense_layers or 0
    rest = layers - first
    return Traffic(first * dense.bytes + rest * one.bytes, first * dense.flops + rest * one.flops)


def rectification(case: DecodeCase, every: int) -> Traffic:
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


def plan_costs(case: DecodeCase, spec: MethodSpec, is_dense: bool) -> Costs:
    """Costs as far as they are known before the case runs."""
    every = spec.config.rectify_every if rectifies(spec) else None
    return Costs(
        step_weights(case, window(spec)),
        planned_attention(case, spec, is_dense),
        rectification(case, every) if every else Traffic(0),
        every,
    )


def memory_bytes(case: DecodeCase, specs: list[MethodSpec]) -> int:
    """What the case needs at least on the device: weights, caches, one method's summaries, work space."""
    config = case.config
    tokens = capacity(case)
    caches = 1 if case.shared_kv else config.layers
    embedding = 0 if config.tied_head else config.head_parameters * element_bytes(case)
    scored = [s for s in specs if "summary_kind" in get_method(s.name).uses]
    summaries = max([summary_bytes(case, s.config, tokens) for s in scored], default=0)
    return weight_bytes(case) + embedding + caches * (kv_bytes(case, tokens) + summaries) + SCRATCH_BYTES


def too_large(case: DecodeCase, specs: Sequence[MethodSpec], device: torch.device) -> str | None:
    """Why the case does not fit the device's memory, or None."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    need = memory_bytes(case, list(specs))
    return None if need <= total else f"needs {need / 1e9:.0f} GB of memory, the device has {total / 1e9:.0f}"
