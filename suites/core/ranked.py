"""Measuring by several ranks at once: rank 0's measuring process leads, the other ranks follow it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from .bench import Case, Report
from .ranks import RankLost
from .rows import Row
from .spec import MethodSpec
from .worker import Settings, Worker, WorkerDied, serve

END_SECONDS = 60.0  # that the ranks have to part in good order


class RanksEnded(KeyboardInterrupt):
    """The ranks are gone: the run stops here, as if it had been interrupted, and what is written stays."""


def lead(pipe: Connection, settings: Settings) -> None:
    """Rank 0's measuring process."""
    try:
        serve(pipe, settings)
    except RankLost as error:
        pipe.send(("lost", str(error)))


class _Follower:
    """The pipe of a rank that nobody listens to: what rank 0 is told takes the place of what it is told."""

    def send(self, message: Any, /) -> None:
        """Dropped: rank 0 writes."""

    def recv(self) -> None:
        """Nothing."""


def follow(settings: Settings) -> int:
    """What ranks other than the first do: measure along. The exit status: 0, or 1 where the ranks fell apart."""
    try:
        serve(_Follower(), settings)
    except RankLost as error:
        print(f"resa-bench: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        words = " ".join(str(error).split())[:200]
        print(f"resa-bench: rank {settings.ranks.rank} of {settings.ranks.world} stops: {words}", file=sys.stderr)
        return 1
    return 0


class LeadingWorker(Worker):
    """Rank 0's end of its measuring process. A process that dies is not replaced: the ranks met once."""

    def __init__(self, settings: Settings, target: Callable[[Connection, Settings], None] = lead) -> None:
        super().__init__(settings, target)
        self._began = self._busy = False

    def run(self, case: Case, specs: Sequence[MethodSpec], on_step: Report) -> list[Row]:
        """Rows of one case. Raises RanksEnded, where a rank is gone."""
        self._begin()
        self._busy = True
        try:
            self._pipe.send((case, list(specs)))
            kind, content = self._receive()
            while kind == "step":
                on_step(content)
                kind, content = self._receive()
        except (WorkerDied, ConnectionError) as error:
            self._give_up(str(error))
        if kind == "lost":
            self._give_up(content)
        self._busy = False
        return content  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End all ranks: in good order, unless one is gone or the run was interrupted."""
        if not self._busy:
            try:
                self._begin()
                self._pipe.send(None)
                self._process.join(END_SECONDS)
            except (RanksEnded, WorkerDied, OSError):
                pass
        super().stop()

    def _begin(self) -> None:
        """The ranks meet. Raises RanksEnded."""
        if self._began:
            return
        self._began = True
        signal.signal(signal.SIGTERM, self._on_ended)
        try:
            self.start()
        except WorkerDied as error:
            self._give_up(str(error))

    def _on_ended(self, number: int, frame: object) -> NoReturn:
        """Torchrun ends every rank when one of them is gone."""
        self._give_up("torchrun ended the run; another rank failed, or was killed")

    def _give_up(self, reason: str) -> NoReturn:
        self._busy = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one message; torchrun gives half a minute to say it
        world = self._settings.ranks.world
        print(f"resa-bench: the {world} ranks cannot go on: {reason}; whole cases are kept", file=sys.stderr)
        raise RanksEnded(reason)
