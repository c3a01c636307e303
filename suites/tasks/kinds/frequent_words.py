"""Frequent words: a list in which some come far more often than others; the three most frequent are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ..questions import question_task
from ..samples import Sample, Writer
from ..wording import listed

EXPONENT = 2.0  # of Zipf's law, as in RULER
ASKED = 3
VOCABULARY = 400
FIRST_RANK = 2  # the law's commonest word would be most of the list
LEAST_REPEATS = 2


def counts(total: int) -> list[int]:
    """How often the word of each rank comes among so many, by Zipf's law; the first three differ."""
    weights = [rank**-EXPONENT for rank in range(FIRST_RANK, FIRST_RANK + VOCABULARY)]
    numbers = [max(int(total * weight / sum(weights)), 1) for weight in weights]
    for rank in reversed(range(ASKED)):
        numbers[rank] = max(numbers[rank], numbers[rank + 1] + LEAST_REPEATS)
    return numbers


def _size(numbers: Sequence[int], tokens: Sequence[int]) -> int:
    """Tokens of so many of each of the commonest words."""
    return sum(n * size for n, size in zip(numbers, tokens, strict=False))


@question_task("frequent-words", "most frequent words, of 3", answer_tokens=32)
def frequent_words(writer: Writer) -> Sample:
    """A shuffled list of words that fills the prompt."""
    chosen = writer.rng.sample(writer.words.nouns, VOCABULARY)
    tokens = [writer.count(f" {word}") for word in chosen]
    total = max(writer.room, 0)
    while total > VOCABULARY and _size(counts(total), tokens) > writer.room:
        total = total * 31 // 32
    while total and _size(counts(total)[:ASKED], tokens) > writer.room:  # of short prompts: rare words are left out
        total = total * 31 // 32
    text = [word for word, n in zip(chosen, counts(total), strict=True) for _ in range(n)]
    used, least = _size(counts(total), tokens), sum(counts(total)[:ASKED])
    while used > writer.room and len(text) > least:
        used -= writer.count(f" {text.pop()}")
    writer.rng.shuffle(text)
    while writer.count(body := f"\n\n{' '.join(text)}") > writer.room:
        fewer = [word for i, word in enumerate(text) if word in chosen[:ASKED] or i % 16]
        if fewer == text:
            break  # `write_batch` says that they do not fit
        text = fewer
    return Sample(
        introduction="Read the following list of words and keep track of how often each comes.\n\n",
        body=body,
        question="\n\nQuestion: What are the three most frequent words in the list above?",
        beginning="Answer: The three most frequent words in the list above are:",
        answers=tuple(chosen[:ASKED]),
        reply=f" {listed(chosen[:ASKED])}",
    )
