"""Engines on a small model's prompts, for tests of lossless decoding."""

from __future__ import annotations

import torch
from resa_bench.kernels import SparseConfig, get_method
from resa_bench.suites.engine.engine import State, bind_layers
from resa_bench.suites.engine.rounds import LosslessEngine
from resa_bench.suites.engine.sampling import Sampling
from resa_bench.suites.model.decoder import Decoder

CPU, FP32 = torch.device("cpu"), torch.float32
TOKENS, CAPACITY = 60, 288


def sparse(block_size: int = 16, active_ratio: float = 0.1, min_blocks: int = 2) -> SparseConfig:
    return SparseConfig(block_size=block_size, active_ratio=active_ratio, min_blocks=min_blocks)


def lossless(
    decoder: Decoder,
    state: State,
    config: SparseConfig,
    drafts: int,
    *,
    name: str = "resa-torch",
    sampling: Sampling | None = None,
    room: int = TOKENS,
) -> LosslessEngine:
    method = get_method(name)(decoder.config.attention(state.batch), config, dtype=FP32, device=CPU)
    layers = bind_layers(state, method, None, 0)
    return LosslessEngine(decoder, state, layers, drafts=drafts, room=room, sampling=sampling)
