"""Needle: a sentence with a number at so many depths of a haystack, and a question about it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.flags import K
from ...model.decoder import Decoder
from ...model.tokenizer import Tokenizer
from ..cases import TaskCase
from ..contender import Contender
from ..needle import ANSWER_TOKENS, holds_number, needle_prompts
from ..registry import Scale, TaskKind, register_task
from ..task import Answers, Columns, Task, check_room, score_rows
from ..text import stretches

QUESTION_ROOM = 96  # tokens for question and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleCase(TaskCase):
    """A sentence with a number at `depths` depths of a haystack, one prompt a depth; a group is a haystack."""

    task: ClassVar[str] = "needle"

    depths: int = 5

    @property
    def batch(self) -> int:
        return self.depths

    @property
    def room(self) -> int:
        return QUESTION_ROOM

    @property
    def words(self) -> tuple[str, ...]:
        return (f"{self.depths}x{self.groups}",)

    @property
    def places(self) -> tuple[float, ...]:
        """Depths from 0.1 to 0.9, 0 being the start of the prompt; a single one is in the middle."""
        if self.depths == 1:
            return (0.5,)
        return tuple(round(0.1 + 0.8 * i / (self.depths - 1), 4) for i in range(self.depths))


class Needle(Task):
    """The haystack is prefilled; the question and what follows it are steps of the method."""

    def __init__(self, case: NeedleCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        self._batches = [
            needle_prompts(tokenizer, text, case.prompt, case.places, random.Random(case.seed * 1009 + i))
            for i, text in enumerate(stretches(tokenizer, case.groups, case.prompt))
        ]
        check_room(max(len(b.question) + max(len(b.answers[0]), ANSWER_TOKENS) for b in self._batches), case)

    def prompts(self, group: int) -> Tensor:
        return torch.tensor(self._batches[group].prompts)

    def measure(self, contender: Contender, group: int) -> Answers:
        """Feed the question, judge the right answer, then let the method answer: the number must be in what it says."""
        batch, device = self._batches[group], self.decoder.device
        question = torch.tensor(batch.question, device=device).expand(self.case.batch, -1)
        contender.start(question[:, 0])
        contender.feed(question)
        judged = contender.try_answer(torch.tensor(batch.answers, device=device))
        first = contender.engine.logits.argmax(-1)
        contender.state.pending.copy_(first)
        answers = torch.cat((first[:, None], contender.say(ANSWER_TOKENS - 1)), 1).tolist()
        hits = [holds_number(self.tokenizer.decode(ids), n) for ids, n in zip(answers, batch.numbers, strict=True)]
        haystack = torch.zeros(len(hits), dtype=torch.int64)  # one for all depths
        return Answers(torch.tensor(hits)[:, None], judged.logp.mean(1, keepdim=True), haystack)

    def rows(self, results: Sequence[Answers], dense: Sequence[Answers]) -> Iterator[Columns]:
        """Of each depth, then of all."""
        for i, depth in enumerate(self.case.places):
            at = (
                [Answers(a.hits[i : i + 1], a.logp[i : i + 1], a.prompts[i : i + 1]) for a in part]
                for part in (results, dense)
            )
            yield from score_rows("needle", *at, depth=depth)
        yield from score_rows("needle", results, dense)


register_task(
    TaskKind(
        name=NeedleCase.task,
        title="the number is in the answer",
        case=NeedleCase,
        task=Needle,
        scales={
            "quick": Scale((K,), {"depths": 3}),
            "default": Scale((4 * K,), {"depths": 3, "groups": 2}),
            "gpu": Scale((4 * K,), {"depths": 9, "groups": 4}),
            "full": Scale((K, 2 * K, 4 * K, 8 * K, 16 * K, 32 * K), {"depths": 9, "groups": 8}),
        },
    )
)
