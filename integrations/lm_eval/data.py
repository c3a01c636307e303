"""The two tasks' questions: plain sums, and needles among look-alikes in the manner of RULER (arXiv 2404.06654).

`python -m resa_bench.integrations.lm_eval.data` writes the files that are shipped beside the tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from . import TASKS

SUMS = 64
NEEDLES = 24
SENTENCES = 16  # of a haystack
CHOICES = 4
COLOURS = ("amber", "azure", "coral", "green", "ivory", "olive", "pearl", "scarlet", "silver", "violet")
THINGS = ("boat", "bridge", "chest", "door", "garden", "lamp", "mill", "tower", "train", "well")
NOISE = (
    "The river runs along the old road and turns south behind the hill.",
    "In the morning the market opens, and by noon most of the bread is sold.",
    "Rain is expected in the evening, so the windows should be closed.",
    "The letter came a day late, but nobody had waited for it.",
    "Two lamps were lit in the hall while the guests took off their coats.",
)


def sums() -> Iterator[dict[str, Any]]:
    """Sums of two numbers below fifty, with three worked ones before each."""
    for i in range(SUMS):
        rng = Random(f"sums-{i}")
        lines = [f"{a} + {b} = {a + b}" for a, b in ((rng.randint(1, 49), rng.randint(1, 49)) for _ in range(3))]
        a, b = rng.randint(1, 49), rng.randint(1, 49)
        yield {"question": "\n".join([*lines, f"{a} + {b} ="]), "answer": str(a + b)}


def needles() -> Iterator[dict[str, Any]]:
    """A text in which four things have codes; one of the four codes is asked for."""
    for i in range(NEEDLES):
        rng = Random(f"needles-{i}")
        names = rng.sample([f"{colour} {thing}" for colour in COLOURS for thing in THINGS], CHOICES)
        codes = [str(code) for code in rng.sample(range(1000, 10_000), CHOICES)]
        sentences = [rng.choice(NOISE) for _ in range(SENTENCES)]
        for name, code in zip(names, codes, strict=True):
            sentences.insert(rng.randrange(len(sentences)), f"The code of the {name} is {code}.")
        asked = rng.randrange(CHOICES)
        question = f"{' '.join(sentences)}\n\nThe code of the {names[asked]} is"
        yield {"question": question, "choices": codes, "label": asked}


FILES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {"resa_sums.jsonl": sums, "resa_needles.jsonl": needles}


def text_of(name: str) -> str:
    """What a file holds."""
    return "".join(json.dumps(record) + "\n" for record in FILES[name]())


if __name__ == "__main__":
    for file in FILES:
        (TASKS / file).write_text(text_of(file))
