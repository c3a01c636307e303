"""kill -9 at random moments of every suite: nothing is lost beyond the case in hand, and no row is there twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_kills import COMMANDS, Killer
from fuzz_seeds import amount, seeds
from resa_bench.suites.core.registry import suites

SECONDS_A_KILL = 300


def test_every_suite_that_measures_is_killed() -> None:
    assert set(COMMANDS) == {name for name in suites() if name not in ("profile", "reference")}


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_A_KILL * (2 + amount("kills", 0)))
@pytest.mark.parametrize("suite", COMMANDS)
def test_kills(suite: str, tmp_path: Path) -> None:
    drawn = seeds("kills", 0)  # each takes the suite's time twice over
    if not drawn:
        pytest.skip("nox -s fuzz kills the suites; RESA_BENCH_FUZZ_KILLS says how often")
    pytest.importorskip("transformers")
    killer, wrong = Killer(suite, tmp_path), []
    for seed in drawn:
        text, faults = killer.kill(seed)
        wrong += [f"{text}: {fault}" for fault in faults]
    assert not wrong, "\n".join(wrong)
