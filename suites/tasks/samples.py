"""Samples of generated tasks: what is written, asked and answered, and how it becomes token ids of one length.

As in RULER (arXiv 2404.06654) a sample is a text with something in it, a question, and the beginning of the answer; it
is scored by which of the right strings the answer holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.tokenizer import Tokenizer
from .chat import around_message
from .words import Words


@dataclass(frozen=True, slots=True)
class Writer:
    """What a generated task writes a sample with.

    Attributes:
        rng: of this sample alone.
        room: tokens that the text may take.
        count: tokens of a text.
    """

    rng: random.Random
    words: Words
    room: int
    count: Callable[[str], int]

    def numbers(self, count: int) -> list[str]:
        """So many different numbers of five digits."""
        return [str(number) for number in self.rng.sample(range(10_000, 100_000), count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question and the text that answers it.

    Attributes:
        introduction: before the text.
        facts: sentences, in this order at random places of a haystack of plain English.
        body: a text of its own in the haystack's place, of at most `Writer.room` tokens.
        question: after the text.
        beginning: of the answer; the model is given it.
        answers: strings that are looked for in what the model says.
        reply: the right answer as it goes on after the beginning, whose log-probability is judged.
    """

    introduction: str
    question: str
    beginning: str
    answers: tuple[str, ...]
    reply: str
    facts: tuple[str, ...] = ()
    body: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as token ids.

    Attributes:
        prompts: int64 `[R, length]`, what is prefilled.
        questions: int64 `[R, Q]`, fed one by one; they end with the beginning of the answer.
        replies: int64 `[R, A]`, padded with zeros after `reply_tokens` int64 `[R]` each.
        answers: strings by sample.
    """

    prompts: np.ndarray
    questions: np.ndarray
    replies: np.ndarray
    reply_tokens: np.ndarray
    answers: list[list[str]]


def write_batch(
    tokenizer: Tokenizer, haystack: Sequence[int], words: Words, make: Callable[[Writer], Sample], length: int,
    seeds: Sequence[str],
) -> Batch:  # fmt: skip
    """Samples of one length, a seed each.

    Questions differ in tokens: those of the text before a short one are fed with it, so that all are as long as the
    longest.

    Args:
        haystack: ids of plain English.
        make: writes a sample.

    Raises:
        ValueError: what must stand in a prompt does not fit its length.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False)

    def count(text: str) -> int:
        return len(encode(text))

    opening, turn = around_message(tokenizer)
    written = []
    for seed in seeds:
        rng = random.Random(seed)
        sample = make(Writer(rng, words, length - len(opening) - ROOM_AROUND, count))
        written.append((rng, sample, encode(sample.question + turn + sample.beginning)))
    longest = max(len(question) for _, _, question in written)
    rows = []
    for rng, sample, question in written:
        head = [*opening, *encode(sample.introduction)]
        room = length + longest - len(question) - len(head)
        rows.append([*head, *_text(rng, sample, haystack, room, encode), *question])
    replies = [encode(sample.reply) for _, sample, _ in written]
    padded = np.zeros((len(rows), max(map(len, replies))), np.int64)
    for row, reply in zip(padded, replies, strict=True):
        row[: len(reply)] = reply
    ids = np.array(rows, np.int64)
    answers = [list(sample.answers) for _, sample, _ in written]
    return Batch(ids[:, :length], ids[:, length:], padded, np.array(list(map(len, replies))), answers)


ROOM_AROUND = 96  # tokens of introductions at most


def _text(
    rng: random.Random, sample: Sample, haystack: Sequence[int], room: int, encode: Callable[[str], list[int]]
) -> list[int]:
    """Exactly `room` ids: plain English with the sample's facts in it, or before its body as much as fills it up."""
    facts = [encode(fact) for fact in sample.facts]
    body = encode(sample.body)
    plain = room - len(body) - sum(map(len, facts))
    if plain < 0:
        raise ValueError(
            f"prompt: a text of {room - plain} tokens does not fit the {room} that are left; ask for a longer context"
        )
    start = rng.randrange(len(haystack))
    around = _cyclic(haystack, start, plain)
    out: list[int] = []
    done = 0
    for cut, fact in zip(sorted(rng.randint(0, plain) for _ in facts), facts, strict=True):
        out += [*around[done:cut], *fact]
        done = cut
    return [*out, *around[done:], *body]


def _cyclic(ids: Sequence[int], start: int, count: int) -> list[int]:
    """`count` ids from `start` on, from the beginning again after the end."""
    out: list[int] = []
    while len(out) < count:
        out += ids[start : start + count - len(out)]
        start = 0
    return out
