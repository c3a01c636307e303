"""Words for generated tasks, out of `wonderwords`: the same lists for everyone who has its version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from ...kernels import Unsupported

PACKAGE = "wonderwords"
ADVICE = f"tasks with generated words need the package {PACKAGE}: pip install -e '.[tasks]'"


@dataclass(frozen=True, slots=True)
class Words:
    """Plain lower-case words, sorted."""

    nouns: Sequence[str]
    adjectives: Sequence[str]

    def keys(self, count: int, generator: random.Random) -> list[str]:
        """So many different keys such as `brave-lantern`."""
        nouns = generator.sample(self.nouns, count)
        return [f"{generator.choice(self.adjectives)}-{noun}" for noun in nouns]


def words_version() -> str:
    """Of the installed package. Raises Unsupported without it."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise Unsupported(ADVICE) from None


@cache
def load_words() -> Words:
    """Raises Unsupported where the package is not installed."""
    try:
        from wonderwords import RandomWord
    except ModuleNotFoundError:
        raise Unsupported(ADVICE) from None
    source = RandomWord(enhanced_prefixes=False)
    plain = {"regex": "[a-z]+", "word_min_length": 3, "word_max_length": 10}
    nouns, adjectives = (
        sorted(set(source.filter(include_categories=[kind], **plain))) for kind in ("noun", "adjective")
    )
    return Words(nouns, adjectives)
