"""Marks on stages, and kernels of a trace charged to them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from resa_bench.profiling.ranges import StageClock, listening, mark
from resa_bench.profiling.timeline import (
    UNMARKED,
    Kernel,
    TraceMismatch,
    charge,
    short_name,
    staged_kernels,
    with_stages,
)
from resa_bench.profiling.trace import record, timeline_of


def event(category: str, name: str, start: float, length: float, correlation: int | None = None) -> dict[str, Any]:
    arguments = {} if correlation is None else {"correlation": correlation}
    return {"cat": category, "name": name, "ts": start, "dur": length, "tid": 1, "args": arguments}


EVENTS = [
    event("user_annotation", "resa/score", 0, 10),
    event("user_annotation", "resa/attend", 10, 10),
    event("user_annotation", "somebody else's", 0, 100),
    event("cuda_driver", "cuLaunchKernelEx", 2, 1, 7),
    event("cuda_runtime", "cudaLaunchKernel", 12, 1, 8),
    event("cuda_runtime", "cudaLaunchKernel", 25, 1, 9),
    event("kernel", "void attend_kernel<float, 3>(float*)", 32, 20, 8),
    event("kernel", "_score_kernel", 20, 10, 7),
    event("gpu_memset", "Memset (Device)", 60, 1, 9),
]


def test_kernels_take_the_mark_around_their_launch() -> None:
    staged = [kernel for kernel, _ in staged_kernels(timeline_of(EVENTS))]
    assert [(k.name, k.stage) for k in staged] == [
        ("_score_kernel", "score"),
        ("attend_kernel", "attend"),
        ("Memset", UNMARKED),
    ]
    assert (staged[1].start_us, staged[1].end_us) == (32, 52)


def test_no_tracing_beside_another_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSYS_PROFILING_SESSION_ID", "7")
    with pytest.raises(RuntimeError, match="runs under nsys"):
        record(lambda: None)


def test_short_names() -> None:
    assert short_name("void at::native::(anonymous namespace)::layer_norm<float>(int)") == "at::native::layer_norm"
    assert short_name("void at::native::<unnamed>::layer_norm<float>(int)") == "at::native::layer_norm"
    assert short_name("void at::native::reduce_kernel<512, 1>(int)") == "at::native::reduce_kernel"
    assert short_name("_merge_kernel") == "_merge_kernel"
    assert short_name("Memcpy DtoD (Device -> Device)") == short_name("memcpy32_post") == "copy"


def test_charges_and_gaps_sum_to_the_span() -> None:
    """B starts while A still runs (dependent launch): it is charged from A's end on."""
    first = [Kernel("a", 0, 10, "score"), Kernel("b", 4, 25, "attend"), Kernel("c", 30, 31, "merge")]
    again = [Kernel(k.name, k.start_us + 100, k.end_us + 100, k.stage) for k in first]
    result = charge([*first, *again], 2)
    assert result.stages_us == {"score": 10, "attend": 15, "merge": 1}
    assert result.gap_us == 5
    assert result.kernels == 3
    assert sum(result.stages_us.values()) + result.gap_us == 31


def test_replays_take_over_the_stages_of_the_eager_pass() -> None:
    eager = [Kernel("a", 0, 1, "score"), Kernel("b", 1, 2, "attend")]
    replayed = [Kernel("a", 10, 11), Kernel("b", 11, 12), Kernel("a", 20, 21), Kernel("b", 21, 22)]
    assert [k.stage for k in with_stages(replayed, eager, 2)] == ["score", "attend"] * 2


@pytest.mark.parametrize(
    ("names", "message"),
    [("ab", "2 kernels in 2 replays, 2 in an eager pass"), ("abac", "kernel 1 is c in the replay, b in the eager")],
)
def test_other_kernels_than_the_eager_ones(names: str, message: str) -> None:
    eager = [Kernel("a", 0, 1, "score"), Kernel("b", 1, 2, "attend")]
    with pytest.raises(TraceMismatch, match=message):
        with_stages([Kernel(name, i, i + 1) for i, name in enumerate(names)], eager, 2)


def test_marks_cost_nothing_unheard_and_add_up_when_heard() -> None:
    times = itertools.count()
    clock = StageClock(lambda: float(next(times)))
    with mark("score"):
        pass
    with listening(clock):
        for stage in ("score", "attend", "score"):
            with mark(stage):
                pass
    with mark("score"):
        pass
    assert clock.seconds == {"score": 2.0, "attend": 1.0}
