"""Result rows: what may be said in one, and files that stay readable however a run ended."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from resa_bench.profiling.stats import mean_interval
from resa_bench.suites.core.results import append, read_file, read_rows, rewrite, write_csv
from resa_bench.suites.core.rows import COLUMNS, IDENTITY, PARTS, Row, identity, to_frame, to_record


def make(**changes: Any) -> Row:
    defaults: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "resa", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 28, "kv_heads": 4, "head_dim": 128, "block_size": 16, "active_ratio": 0.1,
        "cache_state": "cold", "launch": "graph", "paged": False, "status": "ok", "median_us": 12.5, "n_samples": 20,
    }  # fmt: skip
    return Row(**(defaults | changes))


def untimed(status: str, **changes: Any) -> Row:
    return make(**({"status": status, "median_us": None, "n_samples": None, "reason": "why"} | changes))


def append_case(path: Path, rows: list[Row]) -> None:
    """As a run writes a case."""
    append(path, [replace(row, case_rows=len(rows)) for row in rows])


def without_count(rows: list[Row]) -> list[Row]:
    return [replace(row, case_rows=None) for row in rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "micro.jsonl"


def test_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'fine', allowed are ok, skipped, oom, failed, throttled"):
        make(status="fine")


@pytest.mark.parametrize("status", ["skipped", "oom", "failed"])
def test_a_row_without_success_carries_no_time(status: str) -> None:
    with pytest.raises(ValueError, match=f"{status}.* carries no time, got median_us=12.5"):
        make(status=status, reason="why")


@pytest.mark.parametrize("status", ["skipped", "oom", "failed"])
@pytest.mark.parametrize("reason", [None, ""], ids=["none", "empty"])
def test_a_row_without_success_needs_a_reason(status: str, reason: str | None) -> None:
    with pytest.raises(ValueError, match=f"{status}.* needs a reason"):
        untimed(status, reason=reason)


@pytest.mark.parametrize(
    ("row", "timed"),
    [
        pytest.param(make(), True, id="ok"),
        pytest.param(make(status="throttled"), True, id="throttled"),
        pytest.param(make(median_us=None), False, id="ok-without-a-time"),
        pytest.param(untimed("skipped"), False, id="skipped"),
        pytest.param(untimed("failed"), False, id="failed"),
    ],
)
def test_timed(row: Row, timed: bool) -> None:
    assert row.timed is timed


@pytest.mark.parametrize("change", [{"median_us": 99.0}, {"commit": "other"}, {"device": "H200"}])
def test_identity_leaves_out_results_and_circumstances(change: dict[str, Any]) -> None:
    assert identity(make(**change)) == identity(make())


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_tells_by_every_setting(name: str) -> None:
    assert identity(make(**{name: "another"})) != identity(make())


def test_round_trip(path: Path) -> None:
    """Integers, floats, booleans, text beyond ASCII and line breaks come back as they were; None stays None."""
    first = [make(reason="two\nlines, 5 µs"), make(stage="attend", median_us=0.1 + 0.2)]
    second = [untimed("oom", case="m-b1-16k", paged=True)]
    append_case(path, first)
    append_case(path, second)
    read = read_rows(path)
    assert without_count(read) == first + second
    assert [row.case_rows for row in read] == [2, 2, 1]


def test_one_object_a_line_with_filled_columns_alone(path: Path) -> None:
    append_case(path, [make(), make(stage="attend")])
    text = path.read_text()
    assert text.endswith("\n")
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["stage"] for record in records] == ["total", "attend"]
    expected = {name for name, value in asdict(make()).items() if value is not None} | {"case_rows"}
    assert set(records[0]) == expected <= set(COLUMNS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_numbers_that_json_has_not_are_refused(path: Path, bad: float) -> None:
    """And nothing of the case is written."""
    append_case(path, [make()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_case(path, [make(case="other"), make(case="other", stage="attend", gbps=bad)])
    assert path.read_bytes() == before


def test_a_cut_anywhere_leaves_whole_cases(path: Path, tmp_path: Path) -> None:
    """However much of the file reached the disk, what is read is some of the cases, each complete."""
    cases = [[make(case=f"c{i}", stage=f"s{j}") for j in range(count)] for i, count in enumerate((2, 1, 3))]
    ends = [0]
    for rows in cases:
        append_case(path, rows)
        ends.append(path.stat().st_size)
    data = path.read_bytes()
    torn = tmp_path / "torn.jsonl"
    around_breaks = {i + d for i, byte in enumerate(data) if byte == ord("\n") for d in (0, 1)}
    for cut in sorted({*range(0, len(data), 13), *around_breaks}):
        torn.write_bytes(data[:cut])
        whole = sum(end <= cut + 1 for end in ends[1:])  # the last newline is not missed
        assert without_count(read_rows(torn)) == [row for rows in cases[:whole] for row in rows], f"cut at byte {cut}"


def test_a_last_line_without_its_newline_is_a_row(path: Path) -> None:
    """Its row counts all the same, and the next append begins a line of its own."""
    append_case(path, [make()])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert without_count(read_rows(path)) == [make()]
    append_case(path, [make(case="next")])
    assert [row.case for row in read_rows(path)] == [make().case, "next"]


def test_an_incomplete_case_in_the_middle_is_left_out(path: Path) -> None:
    append_case(path, [make(case="cut"), make(case="cut", stage="attend")])
    path.write_text(path.read_text().splitlines()[0] + "\n")
    append_case(path, [make(case="whole")])
    assert [row.case for row in read_rows(path)] == ["whole"]


def test_one_suite_does_not_complete_anothers_case(path: Path) -> None:
    append_case(path, [make(), make(stage="attend")])
    path.write_text(path.read_text().splitlines()[0] + "\n")
    append_case(path, [make(suite="decode")])
    assert [row.suite for row in read_rows(path)] == ["decode"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param("{broken", "Expecting property name", id="not-json"),
        pytest.param('{"suite": "micro"}', "missing", id="columns-missing"),
        pytest.param(json.dumps(asdict(make()) | {"median_us": math.nan}), "not a finite number", id="nan"),
        pytest.param(json.dumps(asdict(make()) | {"median_us": "fast"}), "expected a number", id="text-for-a-number"),
        pytest.param(json.dumps(asdict(make()) | {"started_at": 5}), "expected text", id="a-number-for-text"),
        pytest.param(json.dumps(asdict(make()) | {"dirty": "no"}), "expected true or false", id="text-for-a-choice"),
        pytest.param(json.dumps(asdict(make()) | {"context": 0.5}), "expected a whole number", id="half-a-token"),
        pytest.param(json.dumps(asdict(make()) | {"median_us": 1e308}), "beyond 1e", id="beyond-all-figures"),
        pytest.param(json.dumps(asdict(make()) | {"bytes": 10**300}), "beyond 1e", id="beyond-all-numbers"),
        pytest.param(json.dumps(asdict(make()) | {"status": "failed"}), "carries no time", id="contradiction"),
        pytest.param("[1, 2]", "not a result row", id="no-object"),
    ],
)
def test_a_whole_line_that_is_no_row_is_named(path: Path, line: str, why: str) -> None:
    append_case(path, [make()])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=rf"micro.jsonl, line 2: not a result row .*{why}|line 2: {why}"):
        read_rows(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"block_size": "16"}, "block_size: got '16', expected a whole number"),
        ({"block_size": 0}, "block_size: got 0, expected "),
        ({"selector": 3}, "selector: got '3', expected text"),
        ({"median_us": -1.0}, "median_us: got -1.0, expected 0 or more"),
        ({"median_us": 0.0}, "median_us: got 0.0, expected a time above 0"),
        ({"batch": 0}, "batch: got 0, expected 1 or more"),
        ({"context": -1}, "context: got -1, expected 0 or more"),
    ],
    ids=str,
)
def test_a_number_that_its_column_cannot_have_is_named(path: Path, change: dict[str, Any], why: str) -> None:
    append_case(path, [make()])
    path.write_text(json.dumps(to_record(make()) | change) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 1: not a result row ({why}")):
        read_rows(path)


def test_a_gap_may_be_below_zero(path: Path) -> None:
    append_case(path, [make(stage="gap", median_us=-0.5)])
    assert len(read_rows(path)) == 1


def test_the_interval_of_a_mean_may_reach_below_zero(path: Path) -> None:
    """A text is timed in two periods: by Student's t they need to differ by a sixth alone."""
    low, high = mean_interval([9.0, 11.0]) or (0.0, 0.0)
    append_case(path, [make(median_us=10.0, ci_low_us=low, ci_high_us=high)])
    [row] = read_rows(path)
    assert row.ci_low_us == low < 0


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result file at .*micro\.jsonl"):
        read_rows(path)


def test_empty_file_has_no_rows(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert read_rows(path) == []


def test_rewrite_keeps_the_rows_given(path: Path) -> None:
    append_case(path, [make(case="a"), make(case="a", stage="attend")])
    append_case(path, [make(case="b")])
    kept = [row for row in read_rows(path) if row.case == "a"]
    rewrite(path, kept)
    assert read_rows(path) == kept
    assert [file.name for file in path.parent.iterdir()] == ["micro.jsonl"]


def test_a_rewrite_that_fails_leaves_the_file(path: Path) -> None:
    append_case(path, [make()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        rewrite(path, [make(case="other"), make(case="other", gbps=math.nan)])
    assert path.read_bytes() == before


def test_csv_holds_the_same_rows(tmp_path: Path) -> None:
    rows = [make(), untimed("failed", stage="rectify", reason="off, by 2x")]
    write_csv(rows, tmp_path / "micro.csv")
    with (tmp_path / "micro.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    filled = [name for name in COLUMNS if any(getattr(row, name) is not None for row in rows)]
    assert list(records[0]) == filled  # in the order of the format, without empty columns
    assert [record["median_us"] for record in records] == ["12.5", ""]
    assert records[1]["reason"] == "off, by 2x"


def test_a_frame_has_every_column() -> None:
    assert tuple(to_frame([make()]).columns) == COLUMNS
    assert tuple(to_frame([]).columns) == COLUMNS


def test_a_gzipped_file_reads_as_the_plain_one(tmp_path: Path) -> None:
    plain, packed = tmp_path / "micro.jsonl", tmp_path / "micro.jsonl.gz"
    append_case(plain, [make()])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_rows(packed) == read_rows(plain)


def test_a_byte_order_mark_is_no_part_of_the_first_row(path: Path) -> None:
    append_case(path, [make(), make(stage="attend")])
    rows = read_rows(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == rows


def test_a_torn_second_write_does_not_borrow_rows_of_the_first(path: Path) -> None:
    """Rows kept from an earlier write of the same case do not make a later, torn one look whole."""
    first = [make(method="torch-dense", started_at="1", stage=stage) for stage in ("append", "attend", "total")]
    append_case(path, first)
    rewrite(path, without_count(first))
    append_case(path, [make(started_at="2", stage=stage) for stage in ("append", "score", "select", "total")])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert [row.method for row in read_rows(path)] == ["torch-dense"] * 3


def test_a_torn_group_beside_a_whole_one_of_the_same_second(path: Path) -> None:
    """Two groups of a case with the same number of rows, begun in one second: the second lost its end."""
    append_case(path, [make(started_at="1", stage=stage) for stage in ("a", "b", "c")])
    append_case(path, [make(started_at="1", stage=stage) for stage in ("d", "e", "f")])
    assert len(read_rows(path)) == 6
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert [row.stage for row in read_rows(path)] == ["a", "b", "c"]


def test_columns_of_a_later_version_are_left_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(to_record(make()) | {"later_column": 1, "schema": 99}) + "\n")
    contents = read_file(path)
    assert contents.unknown == {"later_column"}
    assert [row.schema for row in contents.rows] == [99]


def test_rows_of_the_first_version_have_its_number(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({n: v for n, v in to_record(make()).items() if n != "schema"}) + "\n")
    assert [row.schema for row in read_rows(path)] == [1]


def test_a_torn_gz_is_one_error(tmp_path: Path) -> None:
    packed = tmp_path / "micro.jsonl.gz"
    append_case(tmp_path / "micro.jsonl", [make() for _ in range(50)])
    packed.write_bytes(gzip.compress((tmp_path / "micro.jsonl").read_bytes())[:-20])
    with pytest.raises(ValueError, match=r"micro.jsonl.gz: the .gz file is torn or damaged"):
        read_rows(packed)


def test_a_rewrite_keeps_what_it_cannot_read(path: Path) -> None:
    append_case(path, [make()])
    with path.open("a") as file:
        file.write("{broken\n")
    contents = read_file(path)
    assert [(number, line) for number, line, _ in contents.unreadable] == [(2, "{broken")]
    rewrite(path, contents.rows, contents.unreadable)
    assert path.with_name("micro.jsonl.unreadable").read_text() == "{broken\n"
    assert len(read_rows(path)) == 1


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    append_case(path, [make()])
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    rewrite(link, [make(case="other")])
    assert link.is_symlink()
    assert [row.case for row in read_rows(path)] == ["other"]


def test_parts_hold_every_column_once() -> None:
    columns = [name for part in PARTS for name in make().part(part)]
    assert sorted(columns) == sorted(COLUMNS)
    assert tuple(columns) == COLUMNS
    assert make().part("setting")["block_size"] == 16


def test_a_name_that_is_no_text_is_written_as_escapes(tmp_path: Path) -> None:
    """An output folder named in another encoding stands in the command."""
    command = b"resa-bench micro --output \xe9\xff".decode(errors="surrogateescape")
    rows = [make(command=command)]
    rewrite(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    write_csv(rows, tmp_path / "rows.csv")
    assert "--output \\udce9\\udcff" in (tmp_path / "rows.csv").read_text()
