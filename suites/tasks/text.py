"""Prompts as token ids: stretches of plain text, sentences put into them at a place, words of one length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..engine.prompt import english_text
from ..model.tokenizer import Tokenizer


def stretches(tokenizer: Tokenizer, count: int, length: int) -> list[list[int]]:
    """`count` stretches of `length` ids of plain English, evenly spaced; they overlap where the text is short.

    Raises:
        ValueError: the text is shorter than one stretch.
    """
    ids = tokenizer.encode(english_text())
    if len(ids) < length:
        raise ValueError(f"prompt: the text holds {len(ids)} tokens, a stretch of {length} is asked for")
    step = min((len(ids) - length) // max(count - 1, 1), len(ids) // count)
    return [ids[i * step : i * step + length] for i in range(count)]


def place(filler: Sequence[int], inserts: Sequence[tuple[int, Sequence[int]]], length: int) -> list[int]:
    """`length` ids: the filler with each insert beginning at its place in the result.

    Args:
        filler: at least `length` ids.
        inserts: places in ascending order, and the ids that begin there.

    Raises:
        ValueError: an insert would overlap the one before it, or end beyond the length.
    """
    out: list[int] = []
    used = 0
    for at, ids in inserts:
        room = at - len(out)
        if room < 0 or at + len(ids) > length:
            raise ValueError(f"prompt: what must stand in it does not fit {length} tokens; ask for a longer context")
        out += [*filler[used : used + room], *ids]
        used += room
    return [*out, *filler[used : used + length - len(out)]]


def of_one_length(words: Sequence[str], encode: Callable[[str], list[int]]) -> list[str]:
    """Those of the words, in order, whose number of tokens is the commonest: what they stand in is equally long."""
    lengths = [len(encode(word)) for word in words]
    commonest = Counter(lengths).most_common(1)[0][0]
    return [word for word, n in zip(words, lengths, strict=True) if n == commonest]
