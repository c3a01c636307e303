"""Ceilings: the best of several reads, and what a row beside its floor means."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from resa_bench.profiling import ceilings as module
from resa_bench.profiling.ceilings import HEADROOM, Ceilings, Verdict, measure_ceilings
from resa_bench.profiling.streaming import PATTERNS, ReadPattern, stream, stream_reference
from resa_bench.profiling.timing import CpuTimer, Op, Timer, make_timer

CPU = torch.device("cpu")
SIZE, N = 2**20, 64
MEASURED = Ceilings(read_gbps=2000.0, copy_gbps=1500.0, matrix_tflops=500.0)


class ScriptedTimer(CpuTimer):
    """A timer for whom every op takes the milliseconds that `duration_ms` says, by its key and how often it ran."""

    def __init__(self, duration_ms: Callable[[str, int], float]) -> None:
        Timer.__init__(self, CPU, 1024)
        self.duration_ms, self.now = duration_ms, 0.0
        self.counts: dict[str, int] = {}
        self.pending = ""

    def settle(self, op: Op) -> None:
        self.pending = op.key

    def stamp(self) -> float:
        if self.pending:  # the stamp before an op: the next stamp is its end
            self.counts[self.pending] = self.counts.get(self.pending, 0) + 1
            self.end = self.now + self.duration_ms(self.pending, self.counts[self.pending]) / 1e3
            self.pending = ""
            return self.now
        self.now = self.end
        return self.now


def near(value: float) -> Any:
    """Equal to numbers within a millionth."""
    return pytest.approx(value)


def test_rates_follow_from_sizes_and_times() -> None:
    """Every sample takes a millisecond; a copy counts bytes read and written."""
    rates = measure_ceilings(ScriptedTimer(lambda key, count: 1.0), stream_bytes=SIZE, matrix=N)
    assert rates.read_gbps == pytest.approx(SIZE / 1e-3 / 1e9)
    assert rates.copy_gbps == pytest.approx(SIZE / 1e-3 / 1e9)  # half of it, to the other half
    assert rates.matrix_tflops == pytest.approx(2 * N**3 / 1e-3 / 1e12)


@pytest.mark.parametrize(("fast", "bytes_"), [("sum", SIZE), ("dot of halves", SIZE), ("sum of a quarter", SIZE // 4)])
def test_the_read_ceiling_is_the_best_of_several_ways(fast: str, bytes_: int) -> None:
    timer = ScriptedTimer(lambda key, count: 0.1 if key == fast else 1.0)
    assert measure_ceilings(timer, stream_bytes=SIZE, matrix=N).read_gbps == pytest.approx(bytes_ / 1e-4 / 1e9)


def test_a_rate_is_that_of_the_short_times_and_not_of_the_shortest() -> None:
    """Times of 1, 2, 3 ms in turn: the 5th percentile is 1 ms. A single short one among many does not count."""
    timer = ScriptedTimer(lambda key, count: 1.0 + count % 3)
    assert measure_ceilings(timer, stream_bytes=SIZE, matrix=N).read_gbps == pytest.approx(SIZE / 1e-3 / 1e9)
    lucky = ScriptedTimer(lambda key, count: 0.01 if count == 1 else 1.0 + 0.5 * (count % 2))
    assert measure_ceilings(lucky, stream_bytes=SIZE, matrix=N).read_gbps < 1.05 * SIZE / 1e-3 / 1e9


def test_floor_is_the_longer_of_bytes_and_flops() -> None:
    assert MEASURED.floor_us(2_000_000, 0) == pytest.approx(1.0)  # 2 MB at 2 TB/s
    assert MEASURED.floor_us(2_000_000, 5_000_000_000) == pytest.approx(10.0)  # 5 GFLOP at 500 TFLOP/s
    assert MEASURED.floor_us(0, 0) == 0
    assert MEASURED.bound(2_000_000, 0) == "read"
    assert MEASURED.bound(2_000_000, 5_000_000_000) == "matrix"


@pytest.mark.parametrize("median_us", [100.0, 100.001, 1e9, math.inf])
def test_a_floor_that_holds(median_us: float) -> None:
    assert MEASURED.verdict(100.0, median_us) == Verdict("within", MEASURED)


def test_a_row_that_beats_its_floor_by_a_little_raises_the_ceiling() -> None:
    """As seen at batch 33 and 128K: 100.9 % of the ceiling."""
    verdict = MEASURED.verdict(100.9, 100.0)
    assert verdict.kind == "raised"
    assert verdict.ceilings == Ceilings(near(2018.0), 1500.0, 500.0)
    assert verdict.reason == (
        "read ceiling raised from 2000.0 to 2018.0 GB/s: this row is faster than the floor by 0.9%"
    )
    assert verdict.ceilings.floor_us(201_800_000, 0) == pytest.approx(100.0)  # its own floor is now its time


def test_a_row_bound_by_arithmetic_raises_the_other_ceiling() -> None:
    verdict = MEASURED.verdict(101.0, 100.0, "matrix")
    assert verdict.ceilings == Ceilings(2000.0, 1500.0, near(505.0))
    assert verdict.reason is not None
    assert verdict.reason.startswith("matrix ceiling raised from 500 to 505 TFLOP/s")


@pytest.mark.parametrize("median_us", [100.0 / (1 + HEADROOM) - 0.01, 50.0, 0.0, -1.0, math.nan])
def test_what_no_ceiling_explains(median_us: float) -> None:
    verdict = MEASURED.verdict(100.0, median_us)
    assert (verdict.kind, verdict.ceilings) == ("impossible", MEASURED)
    assert "beats the floor of 100.00 us: wrong bytes or a warm cache" in str(verdict.reason)


@pytest.mark.parametrize("pattern", [ReadPattern(16, 4, 1), ReadPattern(64, 1, 2)], ids=lambda pattern: pattern.name)
def test_the_reading_kernel_reads_every_word(pattern: ReadPattern) -> None:
    words = torch.randint(-(2**31), 2**31 - 1, (3 * pattern.words,), dtype=torch.int32, device=DEVICE)
    sums = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    stream(words, sums, pattern)
    assert torch.equal(sums, stream_reference(words, 3))


def test_the_reading_kernel_checks_its_arguments() -> None:
    pattern = ReadPattern(16, 1, 1)
    with pytest.raises(ValueError, match="source: got shape"):
        stream(torch.zeros(33, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), pattern)
    with pytest.raises(TypeError, match="source: got dtype float32"):
        stream(torch.zeros(32), torch.zeros(2, dtype=torch.int32), pattern)


def test_a_kernel_that_does_not_compile_leaves_the_librarys_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(module, "stream", refuse)
    assert list(module._stream_read(torch.zeros(2**18, dtype=torch.int32), PATTERNS[0])) == []


COMPILE = """
import json, torch
from resa_bench.kernels.launch import recording
from resa_bench.profiling.resources import as_records
from resa_bench.profiling.streaming import PATTERNS, stream

with recording() as launches:
    for pattern in PATTERNS:
        stream(torch.zeros(pattern.words, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), pattern)
print(json.dumps(as_records(launches)))
"""


@pytest.mark.slow
def test_the_reading_kernel_compiles_without_spills() -> None:
    """For compute capability 9.0, in every pattern that is used. Another process: this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert len(records) == len(PATTERNS)
    assert [record["spill_bytes"] for record in records] == [0] * len(PATTERNS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ceilings_of_a_gpu() -> None:
    """Reads are no slower than copies, and what was allocated is released."""
    device = torch.device("cuda", 0)
    timer = make_timer(device)
    before = torch.cuda.memory_reserved(device)
    rates = measure_ceilings(timer)
    assert rates.read_gbps >= 0.95 * rates.copy_gbps > 0
    assert torch.cuda.memory_reserved(device) <= before + 2**26
