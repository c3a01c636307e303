"""The small random model that tests of whole-model code decode with."""

from __future__ import annotations

import torch
from resa_bench.suites.model.config import ModelConfig
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.weights import random_decoder

TINY = ModelConfig("tiny", 3, 64, 4, 2, 32, 96, 200, qkv_bias=True, rope_theta=1e4)


def tiny_decoder(
    config: ModelConfig = TINY, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Weights large enough for attention to matter: with the usual 0.02 a model this small ignores its context."""
    model = random_decoder(config, dtype=dtype, device=torch.device(device), seed=1)
    for layer in model.layers:
        for weight in layer.linears:
            weight.weight.mul_(4.0)  # type: ignore[union-attr]
    return model


class Letters:
    """A tokenizer of the tiny model: a letter a token."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % TINY.vocab for letter in text]
