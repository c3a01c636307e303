"""Comparing two runs: verdicts at the edges of intervals and tolerance, what counts as broken, exit statuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from resa_bench.suites.compare import compare_files, headline, markdown, render, summary
from resa_bench.suites.core.results import append, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.verdict import compare, verdict
from rich.console import Console


def make(median: float | None = 100.0, half_width: float | None = 0.5, **changes: Any) -> Row:
    """A timed row with an interval of `median` +- `half_width` microseconds."""
    interval = {}
    if median is not None and half_width is not None:
        interval = {"ci_low_us": median - half_width, "ci_high_us": median + half_width}
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "resa", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "block_size": 16, "cache_state": "cold",
        "launch": "graph", "status": "ok", "device": "H100", "median_us": median,
    }  # fmt: skip
    return Row(**(defaults | interval | changes))


def untimed(status: str, **changes: Any) -> Row:
    return make(None, status=status, reason="a [reason]", **changes)


def shown(a: list[Row], b: list[Row], tmp_path: Path, tolerance: float = 0.02) -> tuple[int, str]:
    """Exit status and printed text of `main` on two files."""
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, rows in zip(paths, (a, b), strict=True):
        append(path, rows)
    console = Console(width=200, record=True, file=(tmp_path / "out.txt").open("w"))
    return compare_files(*paths, tolerance, console), console.export_text()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param(make(100), make(110), "slower", id="slower"),
        pytest.param(make(100), make(90), "faster", id="faster"),
        pytest.param(make(100), make(100), "same", id="equal"),
        pytest.param(make(100), make(102), "same", id="at-the-tolerance"),
        pytest.param(make(100), make(98), "same", id="at-the-tolerance-below"),
        pytest.param(make(100), make(102.1), "slower", id="just-past-the-tolerance"),
        pytest.param(make(100), make(97.9), "faster", id="just-past-the-tolerance-below"),
        pytest.param(make(100, 0.1), make(101, 0.1), "same", id="disjoint-but-within-tolerance"),
        pytest.param(make(100, 5), make(110, 5), "unclear", id="intervals-touch"),
        pytest.param(make(100, 5), make(90, 5), "unclear", id="intervals-touch-below"),
        pytest.param(make(100, 4.9), make(110, 5), "slower", id="intervals-just-apart"),
        pytest.param(make(100, 4.9), make(90, 5), "faster", id="intervals-just-apart-below"),
        pytest.param(make(100, 8), make(110, 8), "unclear", id="intervals-overlap"),
        pytest.param(make(100, 2), make(100, 2), "same", id="half-width-at-the-tolerance"),
        pytest.param(make(100, 2.1), make(100, 1), "unclear", id="a-too-wide-to-be-the-same"),
        pytest.param(make(100, 1), make(100, 2.1), "unclear", id="b-too-wide-to-be-the-same"),
        pytest.param(make(100, None), make(100), "unclear", id="no-interval-in-a"),
        pytest.param(make(100), make(150, None), "unclear", id="no-interval-in-b"),
    ],
)
def test_verdict(a: Row, b: Row, expected: str) -> None:
    assert verdict(a, b, 0.02) == expected
    assert [pair.verdict for pair in compare([a], [b]).pairs] == [expected]


def test_the_tolerance_decides() -> None:
    a, b = make(100), make(104)
    assert [verdict(a, b, tolerance) for tolerance in (0.02, 0.05)] == ["slower", "same"]


def test_ratio_is_b_over_a() -> None:
    assert compare([make(100)], [make(125)]).pairs[0].ratio == 1.25


@pytest.mark.parametrize(
    "change",
    [{"stage": "attend"}, {"block_size": 32}, {"launch": "eager"}, {"cache_state": "warm"}, {"context": 4096}],
    ids=lambda change: next(iter(change)),
)
def test_rows_that_differ_in_identity_are_not_paired(change: dict[str, Any]) -> None:
    a, b = make(), make(**change)
    comparison = compare([a], [b])
    assert not comparison.pairs
    assert comparison.only_a == (a,)
    assert comparison.only_b == (b,)
    assert comparison.exit_code == 2


def test_rows_of_another_commit_and_device_are_paired() -> None:
    comparison = compare([make(commit="x")], [make(commit="y", device="A100", started_at="later")])
    assert len(comparison.pairs) == 1


def test_of_a_row_measured_twice_the_later_counts() -> None:
    assert compare([make(100), make(200)], [make(200)]).pairs[0].ratio == 1.0


# Statuses


@pytest.mark.parametrize(
    ("a", "b", "broken", "code"),
    [
        pytest.param("ok", "failed", 1, 1, id="ok-to-failed"),
        pytest.param("ok", "oom", 1, 1, id="ok-to-oom"),
        pytest.param("throttled", "failed", 1, 1, id="throttled-to-failed"),
        pytest.param("skipped", "failed", 1, 1, id="skipped-to-failed"),
        pytest.param("ok", "skipped", 0, 0, id="ok-to-skipped"),
        pytest.param("failed", "failed", 0, 0, id="failed-in-both"),
        pytest.param("oom", "failed", 0, 0, id="oom-to-failed"),
        pytest.param("failed", "ok", 0, 0, id="mended"),
    ],
)
def test_newly_failed_counts_as_a_regression(a: str, b: str, broken: int, code: int) -> None:
    other = make(stage="attend")
    rows = [make(status=s) if s in ("ok", "throttled") else untimed(s) for s in (a, b)]
    comparison = compare([rows[0], other], [rows[1], other])
    assert len(comparison.newly_failed) == broken
    assert len(comparison.status_changes) == (a != b)
    assert comparison.exit_code == code


def test_a_failure_recorded_once_for_all_stages_is_found() -> None:
    failed = untimed("failed", stage="attend", launch=None, cache_state=None)
    assert compare([make(), make(stage="score")], [failed]).newly_failed == (failed,)


@pytest.mark.parametrize(
    "elsewhere", [{"method": "quest"}, {"case": "m-b1-16k"}, {"block_size": 64}], ids=lambda change: next(iter(change))
)
def test_a_failure_of_something_new_is_no_regression(elsewhere: dict[str, Any]) -> None:
    comparison = compare([make()], [make(), untimed("failed", **elsewhere)])
    assert not comparison.newly_failed
    assert comparison.exit_code == 0


# Exit statuses and what is printed


@pytest.mark.parametrize(
    ("medians", "code"),
    [
        pytest.param([(100, 100)], 0, id="same"),
        pytest.param([(100, 80)], 0, id="faster"),
        pytest.param([(100, 80), (100, 130)], 1, id="one-slower-among-faster"),
    ],
)
def test_exit_status(tmp_path: Path, medians: list[tuple[float, float]], code: int) -> None:
    a = [make(x, stage=f"stage{i}") for i, (x, _) in enumerate(medians)]
    b = [make(y, stage=f"stage{i}") for i, (_, y) in enumerate(medians)]
    assert shown(a, b, tmp_path)[0] == code


def test_an_unclear_difference_is_no_regression(tmp_path: Path) -> None:
    code, text = shown([make(100, 20)], [make(110, 20)], tmp_path)
    assert code == 0
    assert "1 unclear" in text


def test_nothing_comparable_is_2_and_says_so(tmp_path: Path) -> None:
    code, text = shown([make()], [make(method="quest")], tmp_path)
    assert code == 2
    assert "nothing to compare" in text
    assert "only in A: 1 rows (resa 1)" in text
    assert "only in B: 1 rows (quest 1)" in text


def test_everything_newly_failed_is_a_regression_not_incomparable(tmp_path: Path) -> None:
    code, text = shown([make()], [untimed("failed")], tmp_path)
    assert code == 1
    assert "newly failed: a [reason]" in text
    assert "status ok -> failed: 1" in text


@pytest.mark.parametrize("content", [None, b"not json\n", b"\xff\xfe\n", b'{"suite": "micro"}\n'],
                         ids=["missing", "not-json", "not-text", "not-a-row"])  # fmt: skip
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    append(tmp_path / "good.jsonl", [make()])
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_bytes(content)
    for paths in ((tmp_path / "good.jsonl", bad), (bad, tmp_path / "good.jsonl")):
        with pytest.raises((OSError, ValueError), match=r"bad\.jsonl"):
            compare_files(*paths)


@pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan")])
def test_a_tolerance_that_makes_no_sense_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance: got"):
        compare([make()], [make()], tolerance)


def test_a_time_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="times must be above 0"):
        compare([make(0.0)], [make(1.0)])


def test_different_devices_are_warned_of(tmp_path: Path) -> None:
    text = shown([make()], [make(device="A100")], tmp_path)[1]
    assert "devices differ: A ran on H100, B on A100" in text


def test_the_same_device_is_not_warned_of(tmp_path: Path) -> None:
    assert "warning" not in shown([make()], [make()], tmp_path)[1]


def test_summary_gives_counts_median_largest_and_shares() -> None:
    medians = (100.0, 101.0, 104.0, 150.0)
    a = [make(100, stage=f"s{i}") for i in range(4)]
    b = [make(median, stage=f"s{i}") for i, median in enumerate(medians)]
    lines = "\n".join(summary(compare(a, b)))
    assert "4 rows timed in both: 2 slower, 0 faster, 0 unclear, 2 same" in lines
    assert "median B / A 1.0250; largest difference 50.0% (m-b1-8k resa b16 s3" in lines
    assert "within 2 %: 50.0% of rows; within 5 %: 75.0%" in lines


def test_shares_count_a_difference_of_exactly_2_and_5_percent() -> None:
    comparison = compare([make(100), make(100, stage="x")], [make(102), make(105, stage="x")])
    assert comparison.share_within(0.02) == 0.5
    assert comparison.share_within(0.05) == 1.0


def test_table_lists_what_changed_worst_first_and_flags_throttling() -> None:
    stages = {"a": 100.0, "b": 103.0, "c": 150.0, "d": 50.0}
    rows = [make(100, stage=stage) for stage in stages]
    later = [make(median, stage=stage) for stage, median in stages.items()]
    later[3] = replace(later[3], status="throttled")
    table = render(compare(rows, later))
    assert list(table.columns[2].cells) == ["c", "b", "d"]
    assert [("throttled" in str(cell)) for cell in table.columns[-1].cells] == [False, False, True]


def test_table_names_only_the_settings_that_vary_and_the_run_once() -> None:
    a = [make(100, block_size=b, gqa_policy="group-mean") for b in (16, 32)]
    b = [make(150, block_size=b, gqa_policy="group-mean") for b in (16, 32)]
    table = render(compare(a, b))
    assert list(table.columns[1].cells) == ["resa b16", "resa b32"]
    assert "cold graph" in str(table.title)
    mixed = render(compare([*a, make(100, launch="eager")], [*b, make(150, launch="eager")]))
    assert sorted(map(str, mixed.columns[3].cells)) == ["cold eager", "cold graph", "cold graph"]


@pytest.mark.parametrize(
    ("slower", "status"),
    [
        pytest.param({"stage": "total"}, 1, id="cold-graph-step"),
        pytest.param({"stage": "append"}, 0, id="stage"),
        pytest.param({"stage": "total", "launch": "eager"}, 0, id="eager-step"),
        pytest.param({"stage": "total", "cache_state": "warm"}, 0, id="warm-step"),
    ],
)
def test_cold_whole_steps_as_graphs_decide(slower: dict[str, Any], status: int) -> None:
    """Where there are such rows, others are listed as slower but leave the exit status alone."""
    steady = make(method="quest", stage="total")
    comparison = compare([steady, make(100, **slower)], [steady, make(150, **slower)])
    assert comparison.count("slower") == 1
    assert comparison.exit_code == status


# --- Markdown, for pull requests --------------------------------------------------------------------------------------


def whole(*medians: float, half_width: float = 0.5, **changes: Any) -> list[Row]:
    """A cold whole step as a graph in as many cases."""
    return [make(median, half_width, case=f"m-b1-{i}k", **changes) for i, median in enumerate(medians)]


@pytest.mark.parametrize(
    ("a", "b", "line", "status"),
    [
        pytest.param(
            whole(100, 100, 100), whole(100, 112.3, 80),
            "**SLOWER**: 1 of 3 whole steps, by up to 12.3% (tolerance 2%)", 1, id="slower",
        ),
        pytest.param(
            whole(100, 100), whole(100, 80), "**FASTER**: 1 of 2 whole steps, by up to 20.0% (tolerance 2%)", 0,
            id="faster",
        ),
        pytest.param(whole(100, 100), whole(101, 99), "**SAME**: 2 of 2 whole steps within 2%", 0, id="same"),
        pytest.param(
            whole(100, 100, half_width=9), whole(101, 99, half_width=9),
            "**UNCLEAR**: 2 of 2 whole steps vary too much to tell 2%", 0, id="noisy",
        ),
        pytest.param(whole(100), [], "**UNCLEAR**: no row is timed in both files", 2, id="nothing-in-both"),
        pytest.param([make()], [untimed("failed")], "**FAILED**: 1 row of B newly failed", 1, id="failed"),
        pytest.param(
            [make(100, stage="score")], [make(90, stage="score")],
            "**FASTER**: 1 of 1 rows, by up to 10.0% (tolerance 2%)", 0, id="stages-alone",
        ),
    ],
)  # fmt: skip
def test_the_headline_and_the_exit_status(a: list[Row], b: list[Row], line: str, status: int) -> None:
    comparison = compare(a, b)
    assert headline(comparison) == line
    assert comparison.exit_code == status
    assert markdown(comparison).splitlines()[0] == line


@pytest.mark.parametrize(
    ("tolerance", "shown_as"), [(0.005, "0.5%"), (0.0004, "0.04%"), (0.07, "7%"), (0.125, "12.5%")]
)
def test_a_tolerance_has_all_its_digits(tolerance: float, shown_as: str, tmp_path: Path) -> None:
    slower = headline(compare(whole(100), whole(150), tolerance))
    assert slower.endswith(f"(tolerance {shown_as})")
    assert headline(compare(whole(100), whole(100, half_width=40), tolerance)).endswith(f"to tell {shown_as}")
    assert f"tolerance {shown_as}," in " ".join(shown(whole(100), whole(150), tmp_path, tolerance)[1].split())


def test_markdown_has_intervals_and_keeps_what_does_not_decide_folded() -> None:
    a = [*whole(100, 100), make(100, stage="score")]
    b = [*whole(150, 100), make(120, stage="score")]
    text = markdown(compare(a, b))
    changed, rest = text.split("<details>", 1)
    assert (
        "| m-b1-0k | resa b16 | total | cold graph | 100.00 (99.50 to 100.50) | 150.00 (149.50 to 150.50) | " in changed
    )
    assert "| 1.500 | SLOWER |" in changed
    assert "SAME" not in changed
    assert "1 other rows that changed" in rest
    assert rest.index("| score |") < rest.index("1 the same") < rest.index("| SAME |")


def test_markdown_names_devices_and_commits_and_warns_where_they_differ() -> None:
    text = markdown(compare([make(commit="a" * 40)], [make(device="A100", commit="b" * 40, dirty=True)]))
    assert "- **the devices differ**" in text
    assert "- A: H100; aaaaaaaaaa\n- B: A100; bbbbbbbbbb (changed since)" in text
    assert "devices differ" not in markdown(compare([make()], [make()]))


def test_markdown_of_many_rows_says_how_many_it_leaves_out() -> None:
    text = markdown(compare(whole(*[100.0] * 30), whole(*[150.0] * 30)), at_most=20)
    assert text.count("| SLOWER |") == 20
    assert "10 rows more" in text


def test_markdown_is_printed_unwrapped_and_with_the_same_status(tmp_path: Path) -> None:
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, rows in zip(paths, (whole(100), [*whole(150), untimed("failed", case="m|n")]), strict=True):
        append(path, rows)
    console = Console(width=40, record=True, file=(tmp_path / "out.txt").open("w"))
    assert compare_files(*paths, 0.02, console, as_markdown=True) == 1
    assert console.export_text().rstrip("\n") == markdown(compare(read_rows(paths[0]), read_rows(paths[1])))


# --- decode rows ------------------------------------------------------------------------------------------------------


def test_decode_steps_are_compared_by_their_means_and_stages_are_not() -> None:
    """p50 leaves rectification out, the mean has it; a gap may be negative and is no measurement."""

    def step(mean_us: float, **columns: Any) -> Row:
        values: dict[str, Any] = {
            "suite": "decode",
            "median_us": 5.0,
            "mean_us": mean_us,
            "launch": "graph",
            "cache_state": "cold",
        }
        values |= {"ci_low_us": mean_us * 0.999, "ci_high_us": mean_us * 1.001}
        return make(**(values | columns))

    gap = {"stage": "gap", "median_us": -1.0, "ci_low_us": None, "ci_high_us": None}
    result = compare([step(10.0), step(-1.0, **gap)], [step(12.0), step(-2.0, **gap)])
    ((pair,),) = (result.pairs,)
    assert (pair.verdict, round(pair.ratio, 3)) == ("slower", 1.2)
    assert result.exit_code == 1
