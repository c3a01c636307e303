"""The model and the prompt in use, kept from one case to the next."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...kernels import Unsupported
from ..model.load import LoadedModel, load_decoder
from .case import ModelCase, shard_of, shares
from .checks import check_linears
from .engine import State
from .products import BEST, Wanted, by_best, refusal, wanted
from .prompt import english_text, prefill


class Loader:
    """Keeps the model in use, and the longest prompt it was given, for the cases that follow."""

    def __init__(self) -> None:
        self._key: Any = None
        self._model: LoadedModel | None = None
        self._checked: set[int] = set()  # rows that the model's linear layers were compared at
        self._prefilled: State | None = None
        self._best: tuple[frozenset[Wanted], LoadedModel] | None = None  # by other products

    def model(
        self, case: ModelCase, rows: set[int], device: torch.device, on_step: Callable[[str], None] = lambda text: None
    ) -> LoadedModel:
        """The case's model, its linear layers checked at these numbers of rows; it takes the place of the last one.

        Raises:
            CheckFailed: a linear layer is wrong.
        """
        key = (case.model, case.weights, case.dtype, case.seed, *shares(case.config).values())
        if self._model is None or self._key != key:
            self._model = self._prefilled = self._best = None
            release(device)
            self._model = load_decoder(
                case.model, dtype=case.torch_dtype, device=device, weight_dtype=case.weights, seed=case.seed,
                shard=shard_of(case.config),
            )  # fmt: skip
            self._key, self._checked = key, set()
        if case.config.ranks > 1:
            torch.manual_seed(case.seed)  # ranks sample alike
        check_linears(self._model.decoder, rows - self._checked)
        self._checked |= rows
        if case.products != BEST:
            self._best = None  # its copies of the weights
            return self._model
        return self._by_best(self._model, case.weights, rows, on_step)

    def _by_best(self, loaded: LoadedModel, kind: str, rows: set[int], on_step: Callable[[str], None]) -> LoadedModel:
        decoder = loaded.decoder
        if reason := refusal(decoder.config, kind, decoder.dtype, decoder.device):
            raise Unsupported(f"products best: {reason}")
        needs = frozenset(wanted(decoder.config, kind, rows, decoder.device))
        if self._best is None or self._best[0] != needs:
            self._best = None
            release(decoder.device)
            self._best = needs, replace(loaded, decoder=by_best(decoder, kind, needs, on_step))
            check_linears(self._best[1].decoder, rows)
            release(decoder.device)
        return self._best[1]

    def prefilled(self, loaded: LoadedModel, tokens: int, on_step: Callable[[str], None]) -> State:
        """A state whose caches hold at least `tokens` tokens of the text prompt, at batch 1."""
        have = self._prefilled
        if have is None or have.capacity < tokens:
            ids = prompt_ids(loaded, tokens)
            state = State.allocate(loaded.decoder, 1, tokens, 1)
            done = 0 if have is None else have.capacity
            if have is not None:
                copy_tokens(have, state, done)
            prefill(
                loaded.decoder, state, ids[None], done=done, on_tokens=lambda n: on_step(f"prefill {n} of {tokens}")
            )
            self._prefilled = state
            return state
        return have


def copy_tokens(source: State, target: State, tokens: int) -> None:
    """Copy the first tokens' K and V of one sequence to every sequence of another state."""
    for original, copy in zip(source.caches, target.caches, strict=True):
        copy.k[:, :, :tokens] = original.k[:, :, :tokens]
        copy.v[:, :, :tokens] = original.v[:, :, :tokens]
        if original.queries is not None and copy.queries is not None:
            copy.queries.copy_(original.queries.expand_as(copy.queries))


def release(device: torch.device) -> None:
    """Give unused device memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def prompt_ids(loaded: LoadedModel, tokens: int) -> torch.Tensor:
    """The first `tokens` ids of plain English, int64 `[tokens]`. Raises Unsupported without a tokenizer."""
    if loaded.tokenizer is None:
        raise Unsupported(
            "prompt: a text prompt needs a tokenizer, and the model has none (random weights, or no tokenizer.json)"
        )
    ids = loaded.tokenizer.encode(english_text()[: tokens * 8])[:tokens]
    if len(ids) < tokens:
        raise ValueError(
            f"prompt: the text holds {len(ids)} tokens, {tokens} are asked for; take fewer sequences, or shorter ones"
        )
    return torch.tensor(ids, dtype=torch.int64, device=loaded.decoder.device)
