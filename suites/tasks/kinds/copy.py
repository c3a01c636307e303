"""Key-copy: a list of keys and values spread through a text; each key is named, its value must follow."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core.flags import K
from ...engine.case import check_counts
from ...model.config import ModelConfig
from ...model.decoder import Decoder
from ...model.tokenizer import Tokenizer
from ..cases import TaskCase, prompts_together
from ..contender import Contender
from ..copy import CopyPrompt, copy_prompt
from ..registry import Scale, TaskKind, register_task
from ..task import Answers, Columns, Task, check_room, score_rows
from ..text import stretches

PAIR_ROOM = 32  # tokens for one question and its answer


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyCase(TaskCase):
    """A list of `pairs` keys and values spread through the text, each asked once, `series` one after another.

    A list's pairs / series sequences share the prompt; `together` lists make a batch.
    """

    task: ClassVar[str] = "copy"

    pairs: int = 16
    series: int = 4
    together: int = 1

    def __post_init__(self) -> None:
        check_counts(together=self.together)
        if min(self.pairs, self.series) < 1 or self.pairs % self.series:
            raise ValueError(f"pairs, series: got {self.pairs}, {self.series}; pairs must be a multiple of series")
        TaskCase.__post_init__(self)

    @property
    def batch(self) -> int:
        return self.together * self.pairs // self.series

    @property
    def room(self) -> int:
        return self.series * PAIR_ROOM

    @property
    def words(self) -> tuple[str, ...]:
        lists = f"{self.pairs}x{self.groups * self.together}"
        return (lists,) if self.series == 4 else (f"{lists}s{self.series}",)


class Copy(Task):
    """The list is prefilled; questions, with the right answers between them, are steps of the method."""

    def __init__(self, case: CopyCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        texts = stretches(tokenizer, case.groups * case.together, case.prompt)
        self._lists = [
            copy_prompt(tokenizer, text, case.prompt, case.pairs, case.series, random.Random(case.seed * 1009 + i))
            for i, text in enumerate(texts)
        ]
        if any(made.answers != self._lists[0].answers for made in self._lists):
            raise ValueError("copy: lists differ in where their answers stand; they must not")
        check_room(max(len(made.script[0]) for made in self._lists), case)

    def _batch(self, group: int) -> list[CopyPrompt]:
        return self._lists[group * self.case.together :][: self.case.together]

    def prompts(self, group: int) -> Tensor:
        rows = self.case.pairs // self.case.series
        return torch.tensor([made.prompt for made in self._batch(group)]).repeat_interleave(rows, 0)

    def measure(self, contender: Contender, group: int) -> Answers:
        """A value is right if the method ranks each of its tokens first: greedy decoding would have copied it."""
        batch = self._batch(group)
        script = torch.tensor([row for made in batch for row in made.script], device=self.decoder.device)
        contender.start(script[:, 0])
        judged = contender.feed(script)
        spans, rows = batch[0].answers, self.case.pairs // self.case.series
        return Answers(
            torch.stack([judged.top[:, span].all(1) for span in spans], 1),
            torch.stack([judged.logp[:, span].mean(1) for span in spans], 1),
            torch.arange(len(batch)).repeat_interleave(rows),
        )

    def rows(self, results: Sequence[Answers], dense: Sequence[Answers]) -> Iterator[Columns]:
        yield from score_rows("copy", results, dense)


def copy_case(*, config: ModelConfig, prompt: int, lists: int = 0, groups: int = 1, **settings: Any) -> CopyCase:
    """A case of `lists` lists, as many of them in a batch as memory allows; without `lists` one a batch."""
    pairs, series = settings.get("pairs", 16), settings.get("series", 4)
    if lists and groups == 1:
        most = prompts_together(config, prompt, lists * pairs // series) * series // pairs
        settings["together"] = max(d for d in range(1, lists + 1) if lists % d == 0 and d <= max(most, 1))
        groups = lists // settings["together"]
    return CopyCase(config=config, prompt=prompt, groups=groups, **settings)


register_task(
    TaskKind(
        name=CopyCase.task,
        title="values copied exactly",
        case=copy_case,
        task=Copy,
        scales={
            "quick": Scale((K,), {"pairs": 8}),
            "default": Scale((K, 4 * K), {"pairs": 16}),
            "gpu": Scale((K, 4 * K, 16 * K), {"pairs": 16, "lists": 24}),
            "full": Scale((K, 2 * K, 4 * K, 8 * K, 16 * K, 32 * K), {"pairs": 16, "lists": 32}),
        },
    )
)
