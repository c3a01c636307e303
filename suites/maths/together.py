"""Ranks that share one model (`--tensor-parallel`) answer together: the first judges and records, others compute along.

All know which answers are left from the first, and draw the same tokens, since logits and random numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .judge import Verdict
from .records import Record, RecordFile


class Unwritten(RecordFile):
    """The file of a rank that records nothing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "unwritten"

    def append(self, records: Iterable[Record]) -> None:
        """Nothing: the first rank records."""


def unjudged(expected: str, text: str) -> Verdict:
    """No judgement: the first rank judges."""
    return Verdict("no answer")
