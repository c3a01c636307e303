"""How much is drawn by each fuzz test, and from which seeds (data/fuzz_seeds.json).

The ordinary tests draw a small sample. `nox -s fuzz` sets the variables to the full amounts:

    RESA_BENCH_FUZZ_COMMANDS    command lines
    RESA_BENCH_FUZZ_FILES       malformed files
    RESA_BENCH_FUZZ_PORTABLE    settings of the portable path
    RESA_BENCH_FUZZ_KERNELS     settings of the kernels: in the interpreter, or on a GPU where there is one
    RESA_BENCH_FUZZ_KILLS       kills of each suite

A seed that failed once is written to the file's `kept` and drawn ever after.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SEEDS = Path(__file__).parent / "data" / "fuzz_seeds.json"


def amount(kind: str, sample: int) -> int:
    """How many are drawn of a kind."""
    return int(os.environ.get(f"RESA_BENCH_FUZZ_{kind.upper()}", sample))


def seeds(kind: str, sample: int) -> list[int]:
    """The seeds of a kind: those kept, then as many as are asked for."""
    entry = json.loads(SEEDS.read_text())[kind]
    first = entry["first"]
    return list(dict.fromkeys([*entry["kept"], *range(first, first + amount(kind, sample))]))
