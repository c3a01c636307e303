"""A needle in a haystack: a sentence with a number, somewhere in a long text, and a question about it at the end.

The wording and the beginning of the answer that the model is given follow RULER's single needle (arXiv 2404.06654).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.tokenizer import Tokenizer
from .chat import around_message
from .text import place

CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Cairo", "Tokyo", "Lima")
INTRODUCTION = "A special magic number is hidden in the following text. I will ask you about it afterwards.\n\n"
NEEDLE = "\n\nThe special magic number for {city} is {number}.\n\n"
QUESTION = "\n\nWhat is the special magic number for {city} mentioned in the text?"
BEGINNING = "The special magic number for {city} mentioned in the text is"
ANSWER_TOKENS = 12  # that a method may say


@dataclass(frozen=True, slots=True)
class NeedlePrompts:
    """Prompts that differ in where the needle stands, and in its number.

    Attributes:
        prompts: ids `[depths, length]`, what is prefilled.
        question: ids `[Q]` that end with the beginning of the answer; fed one by one.
        answers: ids `[depths, A]` of the numbers.
        numbers: the same as text.
        starts: where each needle begins in its prompt.
    """

    prompts: list[list[int]]
    question: list[int]
    answers: list[list[int]]
    numbers: list[str]
    starts: list[int]


def needle_prompts(
    tokenizer: Tokenizer, filler: Sequence[int], length: int, depths: Sequence[float], generator: random.Random
) -> NeedlePrompts:
    """Put a needle at each depth (a share of the prompt's tokens) of the same haystack of `length` tokens.

    Raises:
        ValueError: the haystack is too short for introduction and needle, or numbers differ in tokens.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False)

    city = generator.choice(CITIES)
    numbers = [str(generator.randrange(10_000, 100_000)) for _ in depths]
    opening, turn = around_message(tokenizer)
    introduction = [*opening, *encode(INTRODUCTION)]
    prompts, starts = [], []
    for depth, number in zip(depths, numbers, strict=True):
        needle = encode(NEEDLE.format(city=city, number=number))
        at = max(min(round(depth * length), length - len(needle)), len(introduction))
        prompts.append(place(filler, [(0, introduction), (at, needle)], length))
        starts.append(at)
    answers = [encode(f" {number}") for number in numbers]
    if len({len(answer) for answer in answers}) > 1:
        raise ValueError(f"needle: numbers of 5 digits differ in tokens ({', '.join(numbers)}); they must not")
    question = encode((QUESTION + turn + BEGINNING).format(city=city))
    return NeedlePrompts(prompts, question, answers, numbers, starts)


def holds_number(answer: str, number: str) -> bool:
    """Whether an answer holds the number: its digits, not as a part of a longer number."""
    return re.search(rf"(?<!\d){number}(?!\d)", answer) is not None
