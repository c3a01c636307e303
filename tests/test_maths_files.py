"""Problem files with records that have no answer, and with lines that are malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from resa_bench.suites.maths.problems import load_problems

UNANSWERED = [
    {"answer": ""}, {"answer": "  "}, {"answer": "$$"}, {"answer": None}, {"answer": []}, {}, {"answer": [""]},
    {"answer": "", "solution": "no box"}, {"answer": float("nan")},
]  # fmt: skip


@pytest.mark.parametrize("record", UNANSWERED, ids=[json.dumps(record) for record in UNANSWERED])
def test_records_without_answers_are_named_and_left_out(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "set.jsonl"
    warnings: list[str] = []
    lines = [record | {"problem": "unanswered?"}, *({"problem": f"{i}?", "answer": i} for i in range(3))]
    path.write_text("\n".join(map(json.dumps, lines)))
    problems = load_problems([path], limit=2, warn=warnings.append)
    assert [problem.answer for problem in problems] == ["0", "1"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"problems: 1 without an answer left out\n{path}, line 1: has no answer")


def test_a_set_without_any_answer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"problem": "?", "result": 1}))
    with pytest.raises(ValueError, match="holds none with an answer in answer, final_answer"):
        load_problems([path])
    assert "line 1: has no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "?", "answer": "1", "id": [1]}', "has an id that is list"),
        ('{"problem": 5, "answer": "1"}', "has no problem"),
        ('{"problem": "\\ud800", "answer": "1"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ('{"problem": "?", "answer": ' + "9" * 5000 + "}", "digits"),
    ],
    ids=["id", "problem", "surrogate", "deep", "digits"],
)
def test_malformed_lines_are_told(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "set.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        load_problems([tmp_path / "set.jsonl"])
    with pytest.raises(ValueError, match="not a file"):
        load_problems([tmp_path])
