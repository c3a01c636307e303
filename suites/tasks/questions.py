"""Tasks of generated samples: the text is prefilled, the question is fed under the method, which then answers.

One more is one file: a function that writes a `Sample`, under `@question_task(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.config import ceil_div
from ..core.flags import K
from ..engine.prompt import english_text
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.tokenizer import Tokenizer
from .cases import TaskCase, prompts_together
from .contender import Contender
from .registry import Scale, TaskKind, register_task
from .samples import Batch, Sample, Writer, write_batch
from .stored import stored, tokenizer_digest, writing_digest
from .task import Answers, Columns, Task, check_room, score_rows
from .words import PACKAGE, load_words, words_version

SCORES = ("all", "part")  # RULER's string_match_all and string_match_part
LENGTHS = (4 * K, 8 * K, 16 * K, 32 * K, 64 * K, 128 * K)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionCase(TaskCase):
    """Generated samples of a kind, `together` of them in a batch.

    Attributes:
        question_tokens: that question and beginning of the answer may take.
        answer_tokens: that a method may say.
    """

    kind: str
    together: int = 4
    question_tokens: int = 96
    answer_tokens: int = 32

    @property
    def task(self) -> str:
        return self.kind

    @property
    def batch(self) -> int:
        return self.together

    @property
    def room(self) -> int:
        return self.question_tokens + self.answer_tokens

    @property
    def made_by(self) -> tuple[Callable[[Writer], Sample]]:
        """What writes its samples, which may be another's code."""
        return (_forms[self.kind].make,)

    @property
    def libraries(self) -> tuple[str]:
        """What its words are from."""
        return (PACKAGE,)

    @property
    def words(self) -> tuple[str, ...]:
        return (str(self.together * self.groups),)


@dataclass(frozen=True, slots=True)
class Form:
    """How the samples of a kind are written and scored."""

    make: Callable[[Writer], Sample]
    scoring: str


_forms: dict[str, Form] = {}


class Questions(Task):
    """Question by question, all of a batch at once."""

    def __init__(self, case: QuestionCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case, self._form, self._words = case, _forms[case.kind], load_words()
        text = english_text()
        self._haystack = tokenizer.encode(text, bos=False)
        code = writing_digest(self._form.make)
        self._key = (case.kind, code, case.prompt, words_version(), tokenizer_digest(tokenizer), text)
        self._batches: dict[int, Batch] = {}

    def batch(self, group: int) -> Batch:
        """The samples of a batch, from the cache where they are there."""
        if group not in self._batches:
            case, first = self.case, group * self.case.together
            seeds = [f"{case.kind} {case.seed} {first + i}" for i in range(case.together)]

            def make() -> Batch:
                return write_batch(self.tokenizer, self._haystack, self._words, self._form.make, case.prompt, seeds)

            batch = stored((*self._key, *seeds), make)
            check_room(batch.questions.shape[1] + max(batch.replies.shape[1], case.answer_tokens), case)
            self._batches = {group: batch}
        return self._batches[group]

    def prompts(self, group: int) -> Tensor:
        return torch.from_numpy(self.batch(group).prompts)

    def measure(self, contender: Contender, group: int) -> Answers:
        """Feed the questions, judge the right replies, then let the method answer."""
        batch, device = self.batch(group), self.decoder.device
        questions, replies, lengths = (
            torch.from_numpy(array).to(device) for array in (batch.questions, batch.replies, batch.reply_tokens)
        )
        contender.start(questions[:, 0])
        contender.feed(questions)
        judged = contender.try_answer(replies).logp
        counted = torch.arange(judged.shape[1]) < lengths.cpu()[:, None]
        logp = (judged * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        first = contender.engine.logits.argmax(-1)
        contender.state.pending.copy_(first)
        decoded = torch.cat((first[:, None], contender.say(self.case.answer_tokens - 1)), 1).tolist()
        texts = [self.tokenizer.decode(_until(ids, self.tokenizer.eos)) for ids in decoded]
        scoring = self._form.scoring
        hits = [matches(text, answers, scoring) for text, answers in zip(texts, batch.answers, strict=True)]
        return Answers(torch.tensor(hits), logp, torch.arange(len(hits)))

    def rows(self, results: Sequence[Answers], dense: Sequence[Answers]) -> Iterator[Columns]:
        yield from score_rows(self.case.kind, results, dense)


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


def matches(reply: str, answers: Sequence[str], scoring: str) -> list[bool]:
    """Which of the strings the answer holds, whatever the case of letters: each (`all`), or whether any (`part`)."""
    held = [answer.lower() in reply.lower() for answer in answers]
    return held if scoring == "all" else [any(held)]


def question_task(
    name: str, title: str, *, samples: int = 96, question_tokens: int = 96, answer_tokens: int = 32,
    scoring: str = "all",
) -> Callable[[Callable[[Writer], Sample]], Callable[[Writer], Sample]]:  # fmt: skip
    """Register a function that writes a sample as a task.

    Args:
        samples: prompts of the list on a GPU; the whole grid takes twice as many.
        scoring: `all`: the share of the strings that the answer holds; `part`: whether it holds any.

    Raises:
        ValueError: a name that is taken, or another scoring.
    """
    if scoring not in SCORES:
        raise ValueError(f"scoring: got {scoring!r}, allowed are {', '.join(SCORES)}")

    def register(make: Callable[[Writer], Sample]) -> Callable[[Writer], Sample]:
        def case(*, config: ModelConfig, prompt: int, samples: int = 0, groups: int = 1, **more: Any) -> QuestionCase:
            """`samples` prompts, as many of them in a batch as memory allows; or `groups` batches."""
            if samples and groups == 1:
                groups = ceil_div(samples, prompts_together(config, prompt, samples))
                more["together"] = ceil_div(samples, groups)
            return QuestionCase(
                config=config, prompt=prompt, groups=groups, kind=name, question_tokens=question_tokens,
                answer_tokens=answer_tokens, **more,
            )  # fmt: skip

        scales = {
            "quick": Scale((K,), {"together": 2}, listed=False),
            "default": Scale((K,), {"together": 4, "groups": 2}, listed=False),
            "gpu": Scale((4 * K, 16 * K), {"samples": samples}),
            "full": Scale(LENGTHS, {"samples": 2 * samples}),
        }
        _forms[name] = Form(make, scoring)
        register_task(TaskKind(name=name, title=title, case=case, task=Questions, scales=scales))
        return make

    return register
