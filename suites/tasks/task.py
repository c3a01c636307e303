"""What a task does with a contender, batch by batch, and what rows say of answers in the end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.decoder import Decoder
from ..model.tokenizer import Tokenizer
from .cases import TaskCase
from .contender import Contender
from .divergence import CommonNoise

Columns = dict[str, Any]
LEAST_PROMPTS = 4  # whose differences say how far the mean may be off


class Task(ABC):
    """A case's prompts, what is done after them, and what came of it."""

    def __init__(self, case: TaskCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        """Raises ValueError where the prompts cannot be written, Unsupported where a package is missing."""
        self.decoder, self.tokenizer = decoder, tokenizer
        self._greedy = CommonNoise(case.batch, decoder.config.vocab, 0.0, case.seed, decoder.device)

    @abstractmethod
    def prompts(self, group: int) -> Tensor:
        """Ids int64 `[R, L]` of a batch, on the CPU."""

    def begin(self, group: int, logits: Tensor) -> None:  # noqa: B027 (nothing, where the first token fed is known)
        """A batch is prefilled; `logits` `[R, vocab]` after it."""

    def noise(self, group: int) -> CommonNoise:
        """How tokens are chosen in this batch."""
        return self._greedy

    @abstractmethod
    def measure(self, contender: Contender, group: int) -> Any:
        """What a method does in a batch; dense decoding comes first."""

    @abstractmethod
    def rows(self, results: Sequence[Any], dense: Sequence[Any]) -> Iterator[Columns]:
        """Metrics, values and what else tells rows of a method apart, from what it and dense did in each batch."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one batch.

    Attributes:
        hits: bool `[R, questions]`, what was answered right.
        logp: float32 `[R, questions]`, nats a token of the right answer.
        prompts: int64 `[R]`, which sequences share a prompt: their errors go together.
    """

    hits: Tensor
    logp: Tensor
    prompts: Tensor


def score_rows(name: str, results: Sequence[Answers], dense: Sequence[Answers], **more: Any) -> Iterator[Columns]:
    """Share of right answers, of those that dense has right, and the right answer's log-probability.

    Each with the standard error of its mean over prompts, where there are several.
    """
    dense_hits = torch.cat([answers.hits for answers in dense])
    groups = torch.cat([answers.prompts + 2**20 * i for i, answers in enumerate(results)])
    hits, logp = (torch.cat([getattr(answers, part) for answers in results]) for part in ("hits", "logp"))
    scores = [(name, hits, torch.ones_like(hits)), (f"{name}_logp", logp, torch.ones_like(logp).bool())]
    scores += [(f"{name}_kept", hits, dense_hits)] if dense_hits.any() else []
    for metric, values, counted in scores:
        error, prompts = error_over_prompts(values, counted, groups)
        value = float(values[counted].double().mean())
        yield {
            "metric": metric, "value": value, "n_samples": int(counted.sum()), "value_error": error,
            "n_texts": prompts, **more,
        }  # fmt: skip


def error_over_prompts(values: Tensor, counted: Tensor, groups: Tensor) -> tuple[float | None, int]:
    """The standard error of the mean of what is counted, prompts being independent; None for few. And their number.

    The mean is a ratio of sums over prompts; its error is that of the ratio to first order.

    Args:
        values: `[R, questions]`.
        counted: bool `[R, questions]`, those that the mean is of.
        groups: int64 `[R]`, the prompt of each.
    """
    _, index = groups.unique(return_inverse=True)
    count = int(index.max()) + 1
    sums, sizes = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
    sums.index_add_(0, index, (values.double() * counted).sum(1))
    sizes.index_add_(0, index, counted.double().sum(1))
    used = sizes > 0
    prompts = int(used.sum())
    if prompts < LEAST_PROMPTS:
        return None, prompts
    residuals = (sums - sums.sum() / sizes.sum() * sizes)[used]
    variance = float((residuals**2).sum()) * prompts / (prompts - 1)
    return math.sqrt(variance) / float(sizes.sum()), prompts


def check_room(tokens: int, case: TaskCase) -> None:
    """Raises ValueError for questions and answers that take more tokens than the case has room for."""
    if tokens > case.room:
        raise ValueError(
            f"{case.task}: questions and answers take {tokens} tokens with this tokenizer, {case.room} are allowed"
        )
