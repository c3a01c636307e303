"""The console that commands print on: any text is shown as text, by any encoding, and a reader may leave."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .exits import CLOSED

WIDTH = 140  # where there is no terminal
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys (escape sequences, the direction of writing), and halves of surrogate pairs."""


def visible(text: str) -> str:
    """The text with control characters written out: `\\x1b`; newlines and tabs stay."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainConsole(Console):
    """A console on which no text that is printed can move the cursor, change colours or set a title."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with control characters in text written out."""
        for segment in super().render(renderable, options):
            is_clean = segment.control or not CONTROLS.search(segment.text)
            yield segment if is_clean else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> NoReturn:
        """End with the status that says so; nothing more is printed."""
        self.quiet = True
        leave_closed_streams()
        raise SystemExit(CLOSED)


def leave_closed_streams() -> None:
    """Have what is still printed go nowhere: a stream whose reader is gone raises again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def prepare_streams() -> None:
    """Streams that take any character, and that are there: a process may be started without them."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process is)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def console_for(stream: Any = None, **more: Any) -> PlainConsole:
    """A console on a stream (stdout by default), as wide as the terminal or WIDTH."""
    stream = sys.stdout if stream is None else stream
    return PlainConsole(file=stream, width=None if stream.isatty() else WIDTH, **more)
