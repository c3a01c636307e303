"""The rule that prose carries no measured number: what has a unit of measurement stands in a marked place."""

from __future__ import annotations

import re

from .marks import MARK

UNITS = ("us", "\u00b5s", "ms", "x", "\u00d7", "tokens/s", "%", "J", "GB/s", "TFLOP/s", "MHz", "W", "nats")
NUMBER = re.compile(rf"(?<![\w.])\d[\d.,]*\s?(?:{'|'.join(map(re.escape, UNITS))})(?![\w/])")
NOT_PROSE = (
    MARK,
    re.compile(r"```.*?```", re.DOTALL),  # code
    re.compile(r"`[^`\n]*`"),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\]\([^)]*\)"),  # where links lead
)


def unmarked(text: str) -> list[tuple[int, str]]:
    """Numbers with a unit that stand in prose: the line, and the number."""
    for pattern in NOT_PROSE:
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return [(text.count("\n", 0, match.start()) + 1, match[0]) for match in NUMBER.finditer(text)]
