"""Variable tracking: a number goes from variable to variable along a chain, and all that hold it are asked for."""

from __future__ import annotations

import random
import string
from itertools import pairwise

from ..questions import question_task
from ..samples import Sample, Writer
from ..wording import listed

HOPS = 4
NAME_LETTERS = 5


def _names(count: int, rng: random.Random) -> list[str]:
    """Different names of capital letters, as RULER has them."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=NAME_LETTERS))] = None
    return list(names)


@question_task("variables", "variables that hold a number, of 5", answer_tokens=48)
def variables(writer: Writer) -> Sample:
    """Two chains of assignments, four hops each; the variables of one are asked for."""
    names, numbers = _names(2 * (HOPS + 1), writer.rng), writer.numbers(2)
    chains = names[: HOPS + 1], names[HOPS + 1 :]
    lines = [
        [f"\nVAR {chain[0]} = {number}\n", *(f"\nVAR {b} = VAR {a}\n" for a, b in pairwise(chain))]
        for chain, number in zip(chains, numbers, strict=True)
    ]
    turns = [0, 1] * (HOPS + 1)
    writer.rng.shuffle(turns)
    places = [iter(chain) for chain in lines]
    return Sample(
        introduction="Memorize and track the chains of variable assignments that are hidden in the following text.\n\n",
        facts=tuple(next(places[turn]) for turn in turns),
        question=f"\n\nQuestion: Find all variables that are assigned the value {numbers[0]} in the text above.",
        beginning=f"Answer: By the chains of assignments in the text above, {HOPS + 1} variables hold {numbers[0]}:",
        answers=tuple(chains[0]),
        reply=f" {listed(chains[0])}",
    )
