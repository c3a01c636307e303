"""What each task does with a contender, batch by batch, and what its rows say in the end."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.spec import MethodSpec
from ..engine.engine import State
from ..model.decoder import Decoder
from ..model.load import LoadedModel
from ..model.tokenizer import Tokenizer
from .cases import CopyCase, DivergenceCase, NeedleCase, TaskCase
from .contender import Contender, decoded_in_chunks
from .copy import copy_prompt
from .divergence import CommonNoise, agreeing, survival
from .needle import ANSWER_TOKENS, holds_number, needle_prompts
from .text import stretches, text_tokenizer

CHUNK = 32  # rows of the other numeric path, at most
Columns = dict[str, Any]


class Task(ABC):
    """A case's prompts, what is done after them, and what came of it."""

    def __init__(self, case: TaskCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        """Raises ValueError where the prompts cannot be written."""
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


def make_task(case: TaskCase, loaded: LoadedModel) -> Task:
    """Raises Unsupported for a model without a tokenizer, ValueError where the prompts cannot be written."""
    kind = {DivergenceCase: Divergence, NeedleCase: Needle, CopyCase: Copy}[type(case)]
    return kind(case, text_tokenizer(loaded), loaded.decoder)


class Divergence(Task):
    """Greedy (or sampled, with common noise) decoding; how long each method says what dense says."""

    def __init__(self, case: DivergenceCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        self._texts = stretches(tokenizer, case.groups * case.batch, case.prompt)
        self._reference: Tensor | None = None

    def prompts(self, group: int) -> Tensor:
        return torch.tensor(self._texts[group * self.case.batch :][: self.case.batch])

    def begin(self, group: int, logits: Tensor) -> None:
        self._first, self._reference = logits.argmax(-1), None

    def noise(self, group: int) -> CommonNoise:
        case, decoder = self.case, self.decoder
        seed = case.seed * 1009 + group
        return CommonNoise(case.batch, decoder.config.vocab, case.temperature, seed, decoder.device)

    def measure(self, contender: Contender, group: int) -> Tensor:
        """Tokens until it leaves dense decoding, int64 `[R]`; dense says what the others are held to."""
        contender.start(self._first)
        decoded = contender.say(self.case.steps, self._reference)
        if self._reference is None:
            self._reference = decoded
        return agreeing(decoded, self._reference).cpu()

    def in_chunks(self, state: State, spec: MethodSpec, group: int) -> Tensor:
        """The same of dense decoding through rectification's kernels: what rounding alone does."""
        assert self._reference is not None
        fed = torch.cat((self._first[:, None], self._reference[:, :-1]), 1)
        rows = math.gcd(self.case.steps, CHUNK)
        decoded = decoded_in_chunks(self.decoder, state, spec, self.case.prompt, fed, rows, self.noise(group))
        return agreeing(decoded, self._reference).cpu()

    def rows(self, results: Sequence[Tensor], dense: Sequence[Tensor]) -> Iterator[Columns]:
        yield from self.lengths_rows(results)

    def lengths_rows(self, results: Sequence[Tensor]) -> Iterator[Columns]:
        """Mean and median of the lengths `[R]` of each batch, and the survival curve."""
        lengths, steps = torch.cat(list(results)), self.case.steps
        common = {"step": steps, "n_samples": len(lengths)}
        yield {"metric": "divergence", "value": float(lengths.double().mean()), **common}
        yield {"metric": "divergence_median", "value": float(lengths.double().quantile(0.5)), **common}
        for step, share in survival(lengths, steps):
            yield {"metric": "survival", "value": share, "n_samples": len(lengths), "step": step}


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one batch: `hits` bool `[R, questions]`, `logp` float32 `[R, questions]`, nats a token of the right answer."""

    hits: Tensor
    logp: Tensor


def _score_rows(name: str, results: Sequence[Answers], dense: Sequence[Answers], **more: Any) -> Iterator[Columns]:
    """Share of right answers, of those that dense has right, and the right answer's log-probability."""
    hits, dense_hits = (torch.cat([answers.hits for answers in part]).flatten() for part in (results, dense))
    values = {name: hits, f"{name}_logp": torch.cat([answers.logp for answers in results]).flatten()}
    values |= {f"{name}_kept": hits[dense_hits]} if dense_hits.any() else {}
    for metric, samples in values.items():
        yield {"metric": metric, "value": float(samples.double().mean()), "n_samples": len(samples), **more}


class Needle(Task):
    """The haystack is prefilled; the question and what follows it are steps of the method."""

    def __init__(self, case: NeedleCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        self._batches = [
            needle_prompts(tokenizer, text, case.prompt, case.places, random.Random(case.seed * 1009 + i))
            for i, text in enumerate(stretches(tokenizer, case.groups, case.prompt))
        ]
        _check_room(max(len(b.question) + max(len(b.answers[0]), ANSWER_TOKENS) for b in self._batches), case)

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
        return Answers(torch.tensor(hits)[:, None], judged.logp.mean(1, keepdim=True))

    def rows(self, results: Sequence[Answers], dense: Sequence[Answers]) -> Iterator[Columns]:
        """Of each depth, then of all."""
        for i, depth in enumerate(self.case.places):
            at = ([Answers(a.hits[i : i + 1], a.logp[i : i + 1]) for a in part] for part in (results, dense))
            yield from _score_rows("needle", *at, depth=depth)
        yield from _score_rows("needle", results, dense)


class Copy(Task):
    """The list is prefilled; questions, with the right answers between them, are steps of the method."""

    def __init__(self, case: CopyCase, tokenizer: Tokenizer, decoder: Decoder) -> None:
        super().__init__(case, tokenizer, decoder)
        self.case = case
        self._batches = [
            copy_prompt(tokenizer, text, case.prompt, case.pairs, case.series, random.Random(case.seed * 1009 + i))
            for i, text in enumerate(stretches(tokenizer, case.groups, case.prompt))
        ]
        _check_room(max(len(b.script[0]) for b in self._batches), case)

    def prompts(self, group: int) -> Tensor:
        return torch.tensor(self._batches[group].prompt).expand(self.case.batch, -1)

    def measure(self, contender: Contender, group: int) -> Answers:
        """A value is right if the method ranks each of its tokens first: greedy decoding would have copied it."""
        batch = self._batches[group]
        script = torch.tensor(batch.script, device=self.decoder.device)
        contender.start(script[:, 0])
        judged = contender.feed(script)
        return Answers(
            torch.stack([judged.top[:, span].all(1) for span in batch.answers], 1),
            torch.stack([judged.logp[:, span].mean(1) for span in batch.answers], 1),
        )

    def rows(self, results: Sequence[Answers], dense: Sequence[Answers]) -> Iterator[Columns]:
        yield from _score_rows("copy", results, dense)


def _check_room(tokens: int, case: TaskCase) -> None:
    if tokens > case.room:
        raise ValueError(
            f"{case.task}: questions and answers take {tokens} tokens with this tokenizer, {case.room} are allowed"
        )
