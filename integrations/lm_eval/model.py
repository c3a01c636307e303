"""The model `resa` of lm-evaluation-harness: transformers' models, decoding by a method of this project.

Texts are generated through the adapter (`integrations.transformers`). Log-likelihoods are read off forced decoding:
the context but for its last token is a dense prompt, the rest is fed token by token, so that what is scored is what
sparse steps compute. A plain prefill would take no sparse step at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ...kernels import Unsupported
from ...kernels.config import SETTINGS as STEP_SETTINGS
from ...suites.core.settings import MODEL_SETTINGS
from ...suites.core.spec import dense_here
from ...suites.model.load import load_decoder
from ...suites.model.smollm import NAME as SMOLLM
from ..transformers import Adapter, SparseCache, attach
from ..transformers.from_decoder import transformers_model
from ..transformers.names import cache_name

DENSE = "dense"
SETTINGS = {**STEP_SETTINGS, **MODEL_SETTINGS}
Request = tuple[Any, list[int], list[int]]
"""Texts (or None), the ids of a context, and those of its continuation."""


@register_model("resa")
class ResaLM(HFLM):  # type: ignore[misc]
    """A causal model of transformers whose steps are a method's."""

    def __init__(
        self, pretrained: str | PreTrainedModel, method: str = "resa", graph: bool | None = None,
        compile: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        """
        Args:
            pretrained: a Hugging Face folder or name, a model, `smollm2-135m`, or a .gguf file.
            method: of the registry; `dense` for this project's dense steps.
            graph, compile: as `attach` takes them.
            options: settings of the method by name (`active_ratio=0.05`); all others are `--model hf`'s.

        Raises:
            Unsupported: a model or a method that cannot be served, or several processes.
        """
        settings = {name: options.pop(name) for name in SETTINGS if name in options}
        if isinstance(pretrained, str) and (pretrained == SMOLLM or pretrained.endswith(".gguf")):
            pretrained, options = load_own(pretrained, options)
        super().__init__(pretrained=pretrained, **options)
        if self.world_size > 1:
            raise Unsupported("lm_eval: the model `resa` runs in one process; leave accelerate launch out")
        name = dense_here(self.model.device) if method == DENSE else method
        self.adapter: Adapter = attach(self.model, name, graph=graph, compile=compile, **settings)

    def loglikelihood_batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests to run together: of similar length, `batch_size` at a time."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]))
        size = self.batch_size if isinstance(self.batch_size, int) else 1
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each request, the continuation's log-likelihood and whether greedy decoding would have written it."""
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Forced decoding")
        for batch in self.loglikelihood_batches(requests):
            texts = [Forced.of(*requests[i][1:], limit=self.max_length) for i in batch]
            for i, answer in zip(batch, self.forced(texts), strict=True):
                answers[i] = answer
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                bar.update(1)
        bar.close()
        return answers

    @torch.no_grad()
    def forced(self, texts: Sequence[Forced]) -> list[tuple[float, bool]]:
        """Feed the texts of a batch, the prompt at once and the rest token by token."""
        device, longest = self.model.device, max(len(text.prompt) for text in texts)
        steps = max(len(text.fed) for text in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        fed = torch.zeros(len(texts), steps, dtype=torch.long, device=device)
        for row, text in enumerate(texts):
            ids[row, longest - len(text.prompt) :] = torch.tensor(text.prompt, device=device)
            mask[row, longest - len(text.prompt) :] = 1
            fed[row, : len(text.fed)] = torch.tensor(text.fed, device=device)
        cache = SparseCache(self.adapter, longest + steps)
        given: dict[str, Any] = {cache_name(self.model): cache, "use_cache": True}
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1, **given).logits[:, -1]
        scores, greedy = [0.0] * len(texts), [True] * len(texts)
        for step in range(steps + 1):
            logs, best = logits.float().log_softmax(-1), logits.argmax(-1).tolist()
            for row, text in enumerate(texts):
                target = text.target(step)
                if target is not None:
                    scores[row] += float(logs[row, target])
                    greedy[row] &= best[row] == target
            if step < steps:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                logits = self.model(input_ids=fed[:, step : step + 1], attention_mask=mask, **given).logits[:, -1]
        return list(zip(scores, greedy, strict=True))


@dataclass(frozen=True, slots=True)
class Forced:
    """One text: what is prefilled, what is fed token by token, and which predictions count.

    Attributes:
        prompt: ids, one at least.
        rest: the ids after it; the very last one is only predicted.
        scored: how many of the newest predictions count.
    """

    prompt: list[int]
    rest: list[int]
    scored: int

    @classmethod
    def of(cls, context: list[int], continuation: list[int], *, limit: int) -> Forced:
        """Of a context and its continuation, cut on the left to `limit` tokens that the model is fed.

        The context's last token is fed by a step, so that the continuation's first token is a step's prediction too.
        """
        text = (context + continuation)[-(limit + 1) :]
        prompt = max(len(text) - len(continuation) - 1, 1)
        return cls(text[:prompt], text[prompt:], min(len(continuation), len(text) - 1))

    @property
    def fed(self) -> list[int]:
        """The ids that steps are fed with."""
        return self.rest[:-1]

    def target(self, step: int) -> int | None:
        """The id that is to be predicted after so many steps; None where the prediction does not count."""
        return self.rest[step] if len(self.rest) - self.scored <= step < len(self.rest) else None


def load_own(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model that this project's loader reads, for transformers, and lm_eval's options with its tokenizer.

    Raises:
        ValueError, ModelNotHere: as `load_decoder`. Unsupported: it has no tokenizer.
    """
    device = torch.device(options.pop("device", None) or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = options.pop("dtype", "auto")
    if asked == "auto":
        asked = "bfloat16" if device.type == "cuda" else "float32"
    dtype = asked if isinstance(asked, torch.dtype) else getattr(torch, asked)
    loaded = load_decoder(name, dtype=dtype, device=device)
    if loaded.tokenizer is None:
        raise Unsupported(f"pretrained: {name} has no tokenizer; {loaded.no_tokenizer or 'give a model that has one'}")
    own = loaded.tokenizer
    special = {"bos_token": own.text_of(own.bos), "eos_token": own.text_of(own.eos[0] if own.eos else None)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own.tokenizer, **{name: text for name, text in special.items() if text},
        chat_template=own.chat_template,
    )  # fmt: skip
    tokenizer.pad_token = tokenizer.eos_token
    return transformers_model(loaded.decoder), {"tokenizer": tokenizer, "dtype": dtype, **options}
