"""What the tasks ask: prompts, needles, copies, the first difference of two texts, common noise."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.core.analysis import share_error
from resa_bench.suites.tasks import needle
from resa_bench.suites.tasks.copy import copy_prompt
from resa_bench.suites.tasks.divergence import CommonNoise, agreeing, survival
from resa_bench.suites.tasks.needle import holds_number, needle_prompts
from resa_bench.suites.tasks.text import of_one_length, place, stretches
from tiny_model import LETTERS

CPU = torch.device("cpu")


def test_the_first_difference_is_found() -> None:
    dense = torch.tensor([[1, 2, 3, 4]] * 4)
    decoded = torch.tensor([[1, 2, 3, 4], [9, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 9]])
    assert agreeing(decoded, dense).tolist() == [4, 0, 2, 3]


def test_the_error_of_a_share() -> None:
    assert share_error(0.5, 100) == pytest.approx(0.05, rel=0.02)
    assert share_error(1.0, 10) == share_error(0.0, 10) > 0.04


def test_survival_falls_where_sequences_leave() -> None:
    curve = dict(survival(torch.tensor([0, 8, 31, 32]), 32))
    assert list(curve) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert (curve[1], curve[8], curve[12], curve[24], curve[32]) == (0.75, 0.75, 0.5, 0.5, 0.25)
    assert dict(survival(torch.tensor([2, 5]), 5)) == {1: 1.0, 2: 1.0, 3: 0.5, 4: 0.5, 5: 0.5}


def test_noise_is_common_and_samples_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(2000, 4)
    noise, other = (CommonNoise(2000, 4, 0.5, 7, CPU) for _ in range(2))
    noise.draw(3)
    other.draw(2)
    other.draw(3)
    tokens = noise(logits)
    assert torch.equal(tokens, other(logits))
    shares = torch.bincount(tokens, minlength=4) / 2000
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(-1), atol=0.03, rtol=0)
    other.draw(4)
    assert not torch.equal(tokens, other(logits))
    assert torch.equal(CommonNoise(2000, 4, 0.0, 7, CPU)(logits), logits.argmax(-1))


def test_inserts_begin_where_they_should() -> None:
    out = place(list(range(100)), [(0, [-1]), (5, [-2, -3]), (9, [-4])], 12)
    assert out == [-1, 0, 1, 2, 3, -2, -3, 4, 5, -4, 6, 7]
    with pytest.raises(ValueError, match="ask for a longer context"):
        place(list(range(100)), [(0, [-1, -1]), (1, [-2])], 12)


def test_stretches_are_of_the_text_and_evenly_spaced() -> None:
    first, second = stretches(LETTERS, 2, 50)
    assert (len(first), len(second)) == (50, 50)
    assert first != second
    with pytest.raises(ValueError, match="a stretch of 99999999 is asked for"):
        stretches(LETTERS, 1, 99_999_999)


@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_needle_lies_at_its_depth(depth: float) -> None:
    filler = stretches(LETTERS, 1, 1000)[0]
    made = needle_prompts(LETTERS, filler, 1000, [depth], random.Random(3))
    text = LETTERS.decode(made.prompts[0])
    start = text.index("\n\nThe special magic number for")
    assert len(made.prompts[0]) == 1000
    assert text.count(made.numbers[0]) == 1
    first, last = len(needle.INTRODUCTION), 1000 - len(needle.NEEDLE.format(city="Rome", number=12345)) - 2
    assert start == made.starts[0]
    if depth in (0.0, 1.0):
        assert first <= start <= first + 1 if depth == 0 else start >= last
    else:
        assert abs(start - depth * 1000) <= 1
    assert LETTERS.decode(made.answers[0]) == f" {made.numbers[0]}"


def test_haystacks_differ_in_the_needle_alone() -> None:
    filler = stretches(LETTERS, 1, 600)[0]
    made = needle_prompts(LETTERS, filler, 600, [0.3, 0.8], random.Random(3))
    city = next(c for c in needle.CITIES if f"for {c} " in LETTERS.decode(made.question))
    for prompt, start in zip(made.prompts, made.starts, strict=True):
        end = start + len(needle.NEEDLE.format(city=city, number=12345))
        bare = prompt[len(needle.INTRODUCTION) : start] + prompt[end:]
        assert bare == filler[: len(bare)]
    with pytest.raises(ValueError, match="ask for a longer context"):
        needle_prompts(LETTERS, filler, 60, [0.5], random.Random(3))


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 48213.", True), (' "48213".', True), ("It is 48213", True), (" 482131", False), (" 4821", False),
     ("148213 48213", True), ("", False)],
)  # fmt: skip
def test_an_answer_is_right_or_wrong(answer: str, right: bool) -> None:
    assert holds_number(answer, "48213") is right


def test_a_copy_prompt_holds_its_pairs_and_asks_each_once() -> None:
    made = copy_prompt(LETTERS, stretches(LETTERS, 1, 500)[0], 500, 6, 3, random.Random(1))
    text = LETTERS.decode(made.prompt)
    assert len(made.prompt) == 500
    places = [text.index(f"\nThe code of the {key} is {number}.\n") for key, number in made.pairs]
    assert places == sorted(places)
    gaps = [b - a for a, b in pairwise(places)]
    assert max(gaps) - min(gaps) <= 1
    asked = [LETTERS.decode(row) for row in made.script]
    assert len(asked) == 2
    for key, number in made.pairs:
        assert sum(f"\nThe code of the {key} is {number}." in row for row in asked) == 1
    answers = {LETTERS.decode(row[span]).strip() for row in made.script for span in made.answers}
    assert answers == {number for _, number in made.pairs}
    with pytest.raises(ValueError, match="99 pairs are asked for"):
        copy_prompt(LETTERS, made.prompt, 500, 99, 3, random.Random(1))
    assert of_one_length(["a", "bb", "cc"], LETTERS.encode) == ["bb", "cc"]
