"""Key-copy: sentences that give each key a value, spread through a text; then keys are named, values must follow.

The form is a continuation and no instruction, so that base models can do it: in-context induction. Questions of one
sequence follow each other with the right values in between, whatever the method would have said, so that a later
question is decoded over keys and values that earlier steps wrote.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.tokenizer import Tokenizer
from .text import of_one_length, place

KEYS = (
    "apple river castle garden window doctor silver orange forest engine pencil bottle mirror rocket basket candle "
    "dragon hammer island jacket kitchen ladder monkey table ocean parrot rabbit market tiger violin wallet yellow "
    "zebra church butter camera desert eagle school guitar bridge flower market summer winter dinner letter button"
)  # fmt: skip
SENTENCE = "\nThe code of the {key} is {value}.\n"
QUESTION = "\nThe code of the {key} is"
END = "."


@dataclass(frozen=True, slots=True)
class CopyPrompt:
    """A list and what is asked about it.

    Attributes:
        prompt: ids `[length]`, what is prefilled.
        script: ids `[sequences, T]`, fed one by one: questions with the right answers.
        answers: where the values stand in the script, the same for all sequences.
        pairs: keys and values in the order of the prompt.
    """

    prompt: list[int]
    script: list[list[int]]
    answers: tuple[slice, ...]
    pairs: list[tuple[str, str]]


def copy_prompt(
    tokenizer: Tokenizer, filler: Sequence[int], length: int, pairs: int, series: int, generator: random.Random
) -> CopyPrompt:
    """`pairs` sentences, evenly spaced in `length` tokens; each key is asked once, in another order.

    Raises:
        ValueError: too few words of one length, or sentences that do not fit the length.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False)

    words = of_one_length(list(dict.fromkeys(KEYS.split())), lambda key: encode(QUESTION.format(key=key)))
    if len(words) < pairs:
        raise ValueError(f"copy: {pairs} pairs are asked for, {len(words)} keys are equally long in tokens")
    chosen = [(key, str(generator.randrange(10_000, 100_000))) for key in generator.sample(words, pairs)]
    start = tokenizer.encode("")  # what the model wants before a text
    lines = [encode(SENTENCE.format(key=key, value=value)) for key, value in chosen]
    gap = (length - len(start) - sum(map(len, lines))) / pairs
    inserts, before = [(0, start)], len(start)
    for i, line in enumerate(lines):
        inserts.append((before + int((i + 0.5) * gap), line))
        before += len(line)
    prompt = place(filler, inserts, length)
    asked = generator.sample(chosen, pairs)
    script: list[list[int]] = []
    spans: list[slice] = []
    for first in range(0, pairs, series):
        row: list[int] = []
        spans = []
        for key, value in asked[first : first + series]:
            row += encode(QUESTION.format(key=key))
            answer = encode(f" {value}")
            spans.append(slice(len(row), len(row) + len(answer)))
            row += answer + encode(END)
        script.append(row)
    if len({len(row) for row in script}) > 1:
        raise ValueError("copy: numbers of 5 digits differ in tokens; they must not")
    return CopyPrompt(prompt, script, tuple(spans), chosen)
