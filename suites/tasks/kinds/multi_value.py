"""Several needles of one key, all asked for (RULER's multi-value needles)."""

from __future__ import annotations

from ..questions import question_task
from ..samples import Sample, Writer
from ..wording import listed, needle, needle_beginning, needle_introduction, needle_question

VALUES = 4


@question_task("multi-value", "numbers of one key, of 4", answer_tokens=48)
def multi_value(writer: Writer) -> Sample:
    """Four numbers of one key; all are asked for."""
    keys, numbers = writer.words.keys(1, writer.rng), writer.numbers(VALUES)
    return Sample(
        introduction=needle_introduction("numbers"),
        facts=tuple(needle(keys[0], number) for number in numbers),
        question=needle_question(keys, several=True),
        beginning=needle_beginning(keys, several=True),
        answers=tuple(numbers),
        reply=f" {listed(numbers)}",
    )
