"""The measuring loop under a fake clock: order, flushes, warm-up, when it stops; the CPU's flush."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest
import torch
from resa_bench.profiling import timing
from resa_bench.profiling.timing import CpuTimer, CudaTimer, Op, Plan, Samples, Timer, make_timer, measure, warm_up

CPU = torch.device("cpu")
STEADY = 1e-3
NOISY = (1e-3, 2e-3, 3e-3)


class Clock:
    """Seconds that pass only when rounds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class LoggingTimer(CpuTimer):
    """The CPU's timer with a small buffer, on a fake clock, that notes what happens."""

    def __init__(self, clock: Clock) -> None:
        Timer.__init__(self, CPU, 1024)
        self.clock, self.log = clock, []  # type: ignore[var-annotated]

    def flush(self) -> None:
        self.log.append("flush")
        super().flush()

    def stamp(self) -> float:
        self.log.append("stamp")
        return self.clock.now

    def synchronize(self) -> None:
        self.log.append("sync")

    def op(self, key: str, seconds: float | Iterable[float] = STEADY, cold: bool = True) -> Op:
        """An operation that takes these seconds, one after the other."""
        durations: Iterator[float] = repeat(seconds) if isinstance(seconds, float) else iter(seconds)

        def run() -> None:
            self.log.append(key)
            self.clock.now += next(durations)

        return Op(key, run, cold)


@pytest.fixture
def timer() -> LoggingTimer:
    return LoggingTimer(Clock())


def taken(timer: LoggingTimer, ops: list[Op], **plan: float) -> dict[str, Samples]:
    """Measure without a warm-up loop; every op still runs once before (and that run is not in the log)."""
    settings = {"precision": 0.005, "budget_s": 1e9, "warmup_s": 0.0} | plan
    samples = measure(ops, timer, Plan(**settings), clock=timer.clock)  # type: ignore[arg-type]
    del timer.log[: 2 * len(ops)]
    return samples


def test_one_round_of_a_cold_and_a_warm_op(timer: LoggingTimer) -> None:
    """Cold: a flush before the timed span. Warm: an untimed run instead. Synchronised once, at the round's end."""
    taken(timer, [timer.op("cold"), timer.op("warm", cold=False)], max_samples=1)
    cold = ["flush", "stamp", "cold", "stamp"]
    warm = ["warm", "stamp", "warm", "stamp"]
    assert timer.log == [*cold, *warm, "sync"]


def test_every_cold_sample_is_flushed_and_no_warm_one(timer: LoggingTimer) -> None:
    taken(timer, [timer.op("cold", cycle(NOISY))], max_samples=7)
    assert timer.log.count("flush") == timer.log.count("cold") == 7
    timer.log.clear()
    taken(timer, [timer.op("warm", cycle(NOISY), cold=False)], max_samples=7)
    assert (timer.log.count("flush"), timer.log.count("warm")) == (0, 14)


def test_ops_are_interleaved_round_by_round(timer: LoggingTimer) -> None:
    taken(timer, [timer.op(key, cycle(NOISY)) for key in "abc"], max_samples=4)
    assert [entry for entry in timer.log if entry in "abc"] == list("abc") * 4


def test_samples_stay_in_order_and_whole(timer: LoggingTimer) -> None:
    """Microseconds, outlier included, as they were taken; the untimed first run is not among them."""
    times = [5e-6, 3e-6, 9e-6, 1e-6, 4000e-6, 2e-6]
    samples = taken(timer, [timer.op("a", chain([7.0], times)), timer.op("b", cycle(NOISY))], max_samples=6)
    assert samples["a"].times_us == pytest.approx([5, 3, 9, 1, 4000, 2])


def test_the_flush_is_not_in_the_time(timer: LoggingTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush() -> None:
        timer.clock.now += 1.0

    monkeypatch.setattr(timer, "flush", flush)
    samples = taken(timer, [timer.op("a")], max_samples=5)
    assert samples["a"].times_us == pytest.approx([1000] * 5)


@pytest.mark.parametrize(
    ("min_samples", "expected"),
    [pytest.param(20, 20, id="at-the-least"), pytest.param(7, 10, id="looked-at-every-fifth-round")],
)
def test_a_steady_op_stops_by_precision(timer: LoggingTimer, min_samples: int, expected: int) -> None:
    samples = taken(timer, [timer.op("a")], min_samples=min_samples)["a"]
    assert (len(samples.times_us), samples.stopped_by) == (expected, "precision")


def test_a_noisy_op_goes_on_alone_until_the_time_is_up(timer: LoggingTimer) -> None:
    """The steady op stops at 10; the noisy one takes 1, 2, 3, 1, ... ms until the budget is spent."""
    samples = taken(timer, [timer.op("steady"), timer.op("noisy", cycle(NOISY))], min_samples=10, budget_s=0.060)
    assert (len(samples["steady"].times_us), samples["steady"].stopped_by) == (10, "precision")
    assert samples["noisy"].stopped_by == "time"
    # 10 rounds of both take 10 + 20 ms; every later round 2 ms on the average, until past 60 ms
    assert len(samples["noisy"].times_us) == 10 + 15
    tail = [entry for entry in timer.log if entry in ("steady", "noisy")][20:]
    assert set(tail) == {"noisy"}


def test_precision_decides_when_it_is_reached(timer: LoggingTimer) -> None:
    """Times of 100 and 102 us: an interval of +-1 % is good enough for 2 % and not for 0.5 %."""
    loose = taken(timer, [timer.op("a", cycle((100e-6, 102e-6)))], precision=0.02, max_samples=50)["a"]
    strict = taken(timer, [timer.op("a", cycle((100e-6, 102e-6)))], precision=0.005, max_samples=50)["a"]
    assert (len(loose.times_us), loose.stopped_by) == (20, "precision")
    assert (len(strict.times_us), strict.stopped_by != "precision") == (50, True)


@pytest.mark.parametrize(
    ("min_samples", "expected"),
    [pytest.param(20, 5, id="five-rounds-at-least"), pytest.param(3, 3, id="fewer-where-the-plan-says-so")],
)
def test_a_spent_budget_still_leaves_some_samples(timer: LoggingTimer, min_samples: int, expected: int) -> None:
    samples = taken(timer, [timer.op("slow", 100.0)], min_samples=min_samples, budget_s=1.0)["slow"]
    assert (len(samples.times_us), samples.stopped_by) == (expected, "time")


def test_the_warm_up_is_not_in_the_budget(timer: LoggingTimer) -> None:
    """A first run of 1000 s (a compilation), then 1 s a sample."""
    durations = chain([1000.0], cycle((1.0, 2.0, 3.0)))
    samples = taken(timer, [timer.op("a", durations)], budget_s=20.0)["a"]
    assert len(samples.times_us) == 11  # 1 + 2 + 3 + ... passes 20 s with the eleventh


def test_most_samples(timer: LoggingTimer) -> None:
    assert len(taken(timer, [timer.op("a", cycle(NOISY))], max_samples=13)["a"].times_us) == 13


def test_rounds_are_told(timer: LoggingTimer) -> None:
    rounds: list[int] = []
    plan = Plan(budget_s=1e9, max_samples=4, warmup_s=0.0)
    measure([timer.op("a", cycle(NOISY))], timer, plan, clock=timer.clock, on_round=rounds.append)
    assert rounds == [1, 2, 3, 4]


def test_two_ops_of_one_key_are_refused(timer: LoggingTimer) -> None:
    with pytest.raises(ValueError, match="share a key"):
        measure([timer.op("a"), timer.op("a", cold=False)], timer, Plan(), clock=timer.clock)
    assert timer.log == []


def test_nothing_to_measure(timer: LoggingTimer) -> None:
    assert measure([], timer, Plan(), clock=timer.clock) == {}


def test_warm_up_is_by_time_after_the_first_run(timer: LoggingTimer) -> None:
    """The first run, however long, does not count: 0.1 s of 10 ms runs follow it, each waited for."""
    slow_first = timer.op("a", chain([100.0], repeat(0.0100001)))
    quick = timer.op("b", 0.025)
    warm_up([slow_first, quick], timer, 0.1, timer.clock)
    assert timer.log == ["a", "sync"] * (1 + 10) + ["b", "sync"] * (1 + 4)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(timing, "_cpu_cache_bytes", lambda: 2**18)
    return 2**18


def test_cpu_flush_reads_four_times_the_cache(small_cache: int) -> None:
    timer = CpuTimer(CPU)
    assert timer.flush_bytes == 4 * small_cache
    assert timer._buffer.numel() * timer._buffer.element_size() >= 4 * small_cache
    before = timer._buffer.clone()
    timer.flush()
    torch.testing.assert_close(timer._sink.double(), before.double().sum(), rtol=1e-3, atol=0.1)
    assert torch.equal(timer._buffer, before)  # read, not written
    assert before.std() > 0.1  # not zeros or a constant
    assert len(before.unique()) > len(before) // 2


def test_flush_reads_every_part_of_the_buffer(small_cache: int) -> None:
    timer = CpuTimer(CPU)
    for place in (0, timer._buffer.numel() // 2, timer._buffer.numel() - 1):
        timer._buffer.zero_()
        timer._buffer[place] = 3.0
        timer.flush()
        assert float(timer._sink) == 3.0


def test_flush_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_cpu_cache_bytes", lambda: 2**40)
    monkeypatch.setattr(timing, "MAX_FLUSH_BYTES", 2**16)
    timer = CpuTimer(CPU)
    assert timer.flush_bytes == 2**16 == timer._buffer.numel() * 4


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param(["48K", "2048K", "36M"], 36 * 2**20, id="largest-of-all-levels"),
        pytest.param(["32K", "1024K"], 2**20, id="kibibytes"),
        pytest.param([], 32 * 2**20, id="system-does-not-say"),
    ],
)
def test_cpu_cache_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[str], expected: int) -> None:
    for index, size in enumerate(sizes):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(timing, "Path", lambda _: tmp_path)
    assert timing._cpu_cache_bytes() == expected


def test_cpu_stamps_are_seconds(small_cache: int) -> None:
    timer = CpuTimer(CPU)
    before = timer.stamp()
    torch.randn(1000, 1000).sum()
    assert 0 < timer.stamp() - before < 60


def test_captured_on_a_cpu_is_the_call_itself(small_cache: int) -> None:
    run: Callable[[], None] = lambda: None  # noqa: E731
    assert CpuTimer(CPU).captured(run) is run


def test_make_timer(small_cache: int) -> None:
    assert isinstance(make_timer(CPU), CpuTimer)
    with pytest.raises(ValueError, match="got meta, allowed are cuda, cpu"):
        make_timer(torch.device("meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_keeps_its_tensors() -> None:
    """Without it a layer that only its graph reads would lose its memory to the next allocation."""
    device = torch.device("cuda", 0)
    total = torch.zeros((), device=device)

    def reading_its_own() -> Callable[[], object]:
        own = torch.ones(2**20, device=device)
        return lambda: torch.sum(own, 0, out=total)

    run = make_timer(device).captured(reading_its_own())
    other = torch.full((2**20,), 7.0, device=device)
    run()
    assert float(total) == 2**20
    assert float(other[0]) == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_timer() -> None:
    """Events around a graph replay give microseconds; the flush holds four times the L2 and is not written."""
    device = torch.device("cuda", 0)
    timer = make_timer(device)
    assert isinstance(timer, CudaTimer)
    assert timer.flush_bytes >= 4 * torch.cuda.get_device_properties(device).L2_cache_size
    before = timer._buffer.clone()
    x = torch.randn(2**22, device=device)
    y = torch.empty_like(x)
    run = timer.captured(lambda: torch.add(x, 1, out=y))
    y.zero_()
    samples = measure([Op("cold", run), Op("warm", run, cold=False)], timer, Plan(budget_s=2.0))
    assert torch.equal(y, x + 1)
    assert torch.equal(timer._buffer, before)
    assert all(0.5 < time < 1e5 for timed in samples.values() for time in timed.times_us)
