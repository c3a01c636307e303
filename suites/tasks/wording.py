"""Sentences that several generated tasks share. Their form follows RULER (arXiv 2404.06654)."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[str]) -> str:
    """`a, b, and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"


def needle(key: str, number: str) -> str:
    """A sentence that gives a key its number."""
    return f"\nOne of the special magic numbers for {key} is: {number}.\n"


def needle_introduction(what: str) -> str:
    """Before a haystack in which so much is hidden."""
    return f"Some special magic numbers are hidden in the following text. I will ask you about {what} afterwards.\n\n"


def needle_question(keys: Sequence[str], *, several: bool) -> str:
    """After the haystack: the number of the keys is asked for, or all numbers."""
    asked = "What are all the special magic numbers" if several else "What is the special magic number"
    return f"\n\nQuestion: {asked} for {listed(keys)} mentioned in the text above?"


def needle_beginning(keys: Sequence[str], *, several: bool) -> str:
    """Of the answer."""
    what, verb = ("numbers", "are") if several else ("number", "is")
    return f"Answer: The special magic {what} for {listed(keys)} mentioned in the text above {verb}"
