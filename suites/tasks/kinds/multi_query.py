"""Several needles, all asked for at once (RULER's multi-query needles)."""

from __future__ import annotations

from ..questions import question_task
from ..samples import Sample, Writer
from ..wording import listed, needle, needle_beginning, needle_introduction, needle_question

QUERIES = 4


@question_task("multi-query", "numbers of four keys", question_tokens=160, answer_tokens=48)
def multi_query(writer: Writer) -> Sample:
    """A number for each of four keys; all are asked for, in another order."""
    pairs = list(zip(writer.words.keys(QUERIES, writer.rng), writer.numbers(QUERIES), strict=True))
    asked = writer.rng.sample(pairs, QUERIES)
    keys, numbers = [key for key, _ in asked], [number for _, number in asked]
    return Sample(
        introduction=needle_introduction("numbers"),
        facts=tuple(needle(key, number) for key, number in pairs),
        question=needle_question(keys, several=True),
        beginning=needle_beginning(keys, several=True),
        answers=tuple(numbers),
        reply=f" {listed(numbers)}",
    )
