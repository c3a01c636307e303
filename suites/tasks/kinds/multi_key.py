"""Several needles, one of them asked for: the others are distractors (RULER's multi-key needles)."""

from __future__ import annotations

from ..questions import question_task
from ..samples import Sample, Writer
from ..wording import needle, needle_beginning, needle_introduction, needle_question

NEEDLES = 8


@question_task("multi-key", "the number of the key asked for, of 8", samples=192, answer_tokens=16)
def multi_key(writer: Writer) -> Sample:
    """A number for each of eight keys; one key is asked for."""
    keys, numbers = writer.words.keys(NEEDLES, writer.rng), writer.numbers(NEEDLES)
    asked = writer.rng.randrange(NEEDLES)
    return Sample(
        introduction=needle_introduction("a number"),
        facts=tuple(map(needle, keys, numbers)),
        question=needle_question(keys[asked : asked + 1], several=False),
        beginning=needle_beginning(keys[asked : asked + 1], several=False),
        answers=(numbers[asked],),
        reply=f" {numbers[asked]}",
    )
