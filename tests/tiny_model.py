"""The small random model that tests of whole-model code decode with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from resa_bench.kernels.linear.weights import DenseWeight
from resa_bench.suites.engine.loader import Loader
from resa_bench.suites.model.config import ModelConfig
from resa_bench.suites.model.decoder import Decoder
from resa_bench.suites.model.load import LoadedModel
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


def read_back(decoder: Decoder, plain: Callable[[Any], torch.Tensor]) -> Decoder:
    """A decoder of quantised weights with what their bits stand for in their place; `plain` gives it."""
    names = ("qkv", "o", "gate_up", "down")
    layers = []
    for layer in decoder.layers:
        held = {name: getattr(layer, name) for name in names}
        layers.append(replace(layer, **{n: DenseWeight(plain(w), w.bias) for n, w in held.items()}))  # type: ignore[arg-type]
    return Decoder(decoder.config, decoder.embedding, layers, decoder.norm, decoder.head)


class Letters:
    """A tokenizer of the tiny model: a letter a token."""

    chat_template = None

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        return [ord(letter) % TINY.vocab for letter in text]

    def decode(self, ids: list[int], *, special: bool = True) -> str:
        return "".join(map(chr, ids))


LETTERS: Any = Letters()


def keep(loader: Loader, decoder: Decoder, tokenizer: Any = LETTERS, dtype: str = "fp32") -> Loader:
    """The loader with a model in hand as if it had been loaded: `tiny` by name, weights and activations in `dtype`."""
    loader._key, loader._model = ("tiny", dtype, dtype, 0), LoadedModel(decoder, tokenizer, "tiny")
    return loader
