"""Judging: gold answers in all formats of the public sets against what models write, limits, missing answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from resa_bench.suites.maths.answers import expand_e_notation, latex_numbers, number_text
from resa_bench.suites.maths.judge import Judge
from resa_bench.suites.maths.problems import _problem

# Gold answers as gaokao2023en, minerva_math, olympiadbench, aime24 and amc23 write them, boxed answers, and verdicts.


RIGHT, WRONG = "right", "wrong"
ANSWERS = [
    # e-notation
    ("4.5e33", r"4.5 \times 10^{33}", RIGHT),
    ("4.5e33", r"4.5\cdot 10^{33}", RIGHT),
    ("4.5e33", "4.5e33", RIGHT),
    ("4.5e33", "4.5E+33", RIGHT),
    ("4.5e33", r"4.6 \times 10^{33}", WRONG),
    ("4.5e33", r"4.5 \times 10^{32}", WRONG),
    ("1e-5", "10^{-5}", RIGHT),
    ("1e-5", r"1 \times 10^{-5}", RIGHT),
    ("1e-5", "0.00001", RIGHT),
    ("1e-5", r"\frac{1}{100000}", RIGHT),
    ("1e-5", r"2\times10^{-5}", WRONG),
    ("1e-4", "0.0001", RIGHT),
    ("2.88e-19", r"2.88 \times 10^{-19} \text{ J}", RIGHT),
    ("2.88e-19", r"2.88 \times 10^{-19}\ \mathrm{J}", RIGHT),
    ("2.88e-19", r"2.89 \times 10^{-19}", WRONG),
    ("2.88e-19", r"2.88 \times 10^{-18}", WRONG),
    ("2.88e-19", "0", WRONG),
    ("1.325e-27", r"1.325 \times 10^{-27}", RIGHT),
    ("1.325e-27", r"1.325 \times 10^{-26}", WRONG),
    ("3e8", r"3 \times 10^8", RIGHT),
    ("3e8", "300000000", RIGHT),
    ("3e8", "300,000,000", RIGHT),
    ("3e8", r"3 \times 10^8 \mathrm{~m/s}", RIGHT),
    ("1e11", "10^{11}", RIGHT),
    ("3.61e2", "361", RIGHT),
    ("1.4903e4", "14903", RIGHT),
    ("1.70e4", r"1.70 \times 10^4", RIGHT),
    ("1.70e4", "17000", RIGHT),
    ("8.7e8", r"8.7 \times 10^{8}", RIGHT),
    ("6.5e-2", "0.065", RIGHT),
    ("1.04e-3", "0.00104", RIGHT),
    ("1.04e-3", r"1.04 \times 10^{-3}", RIGHT),
    ("2.7778e-6", r"2.7778 \times 10^{-6}", RIGHT),
    ("7.353e14", r"7.353\times10^{14}", RIGHT),
    ("4.45e15", "4.45 × 10^{15}", RIGHT),
    (r"2 \times 10^{-5}", "2e-5", RIGHT),
    ("0.00002", "2e-05", RIGHT),
    ("0.0001", "1e-4", RIGHT),
    ("-1.5e-7", r"-1.5 \times 10^{-7}", RIGHT),
    ("-1.5e-7", r"1.5 \times 10^{-7}", WRONG),
    ("4.5e33", "The answer is 4.5e33", RIGHT),
    ("1e-5", "So the answer is 1e-5.", RIGHT),
    ("1e-5", r"The answer is $1 \times 10^{-5}$.", RIGHT),
    # small exact
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", WRONG),
    (r"\frac{1}{2^{99}}", "2^{-99}", RIGHT),
    ("1e-7", "2e-7", WRONG),
    ("0.0000001", "0.0000002", WRONG),
    ("(10^{-7},1)", r"(2\times 10^{-7},1)", WRONG),
    ("10^{-20} x", r"2\cdot 10^{-20} x", WRONG),
    ("0", "1e-9", WRONG),
    (r"\frac{1}{3}", "0.333333", RIGHT),
    (r"\frac{1}{3}", "0.33", WRONG),
    # fractions
    (r"\frac{1}{2}", "0.5", RIGHT),
    (r"\frac{1}{2}", "1/2", RIGHT),
    (r"\frac12", r"\dfrac{1}{2}", RIGHT),
    ("-1./3", r"-\frac{1}{3}", RIGHT),
    ("-3./2", "-1.5", RIGHT),
    ("1/3", r"\frac13", RIGHT),
    (r"2\frac58", r"\frac{21}{8}", RIGHT),
    (r"2\frac58", "2.625", RIGHT),
    (r"1\frac45", "1.8", RIGHT),
    (r"6\frac23", r"\frac{20}{3}", RIGHT),
    (r"6\frac23", "4", WRONG),
    (".48", "0.48", RIGHT),
    ("0.48", ".48", RIGHT),
    (".145", "0.145", RIGHT),
    # percent
    (r"1.1\%", r"1.1\%", RIGHT),
    (r"1.1\%", "1.1", RIGHT),
    (r"1.1\%", "0.011", RIGHT),
    ("62.5%", r"62.5\%", RIGHT),
    ("62.5%", "0.625", RIGHT),
    ("62.5%", "62.5", RIGHT),
    (r"8 \%", r"8\%", RIGHT),
    (r"5.3\%", "5.3 percent", RIGHT),
    ("17.5%", r"17.6\%", WRONG),
    (r"20\%", r"\frac{1}{5}", RIGHT),
    ("62.5%", r"62.5\text{ percent}", RIGHT),
    ("62.5%", r"\frac{5}{8}", RIGHT),
    # units
    ("22.1cm^{2}", r"22.1 \text{ cm}^2", RIGHT),
    ("22.1cm^{2}", "22.1", RIGHT),
    ("22.1cm^{2}", r"22.1\,\mathrm{cm}^{2}", RIGHT),
    ("22.1cm^{2}", "22.2", WRONG),
    ("20 $cm^{2}$", r"20 \text{ cm}^2", RIGHT),
    ("20 $cm^{2}$", "20", RIGHT),
    (r"36\sqrt{7}cm^{3}", r"36\sqrt{7}", RIGHT),
    (r"36\sqrt{7}cm^{3}", r"36\sqrt{7}\text{ cm}^3", RIGHT),
    (r"576\pi\;m^{2}", r"576\pi", RIGHT),
    (r"576\pi\;m^{2}", r"576\pi\text{ m}^2", RIGHT),
    ("2s", r"2\text{ s}", RIGHT),
    ("2s", "2", RIGHT),
    ("2s", r"2\text{ seconds}", RIGHT),
    ("5am", "5", RIGHT),
    ("5am", r"5\text{ am}", RIGHT),
    ("5am", r"5 \text{ a.m.}", RIGHT),
    ("1:58 am", r"1:58\text{ am}", RIGHT),
    ("1:58 am", "1:58", RIGHT),
    ("1:58 am", "1:59", WRONG),
    ("145solution:", "145", RIGHT),
    ("145solution:", "146", WRONG),
    ("560", r"560 \text{ nm}", RIGHT),
    ("50", r"50\text{ km/s}", RIGHT),
    ("50", r"50\ \mathrm{km \cdot s^{-1}}", RIGHT),
    # degrees
    (r"4^{\circ}", "4", RIGHT),
    (r"4^{\circ}", r"4^\circ", RIGHT),
    (r"45^{\circ}", "45", RIGHT),
    (r"45^{\circ}", r"45 \text{ degrees}", RIGHT),
    (r"45^{\circ}", r"\frac{\pi}{4}", WRONG),
    (r"90^{\circ},60^{\circ}", "90,60", RIGHT),
    (r"90^{\circ},60^{\circ}", r"60^\circ, 90^\circ", RIGHT),
    (r"18.8^{\circ}", "18.8", RIGHT),
    (r"\angle B E A_{1}=90,\angle A E B_{1}=90", r"90^\circ", WRONG),
    (r"(45^{\circ}, 60^{\circ}),(135^{\circ}, 60^{\circ})", r"(45^\circ,60^\circ),(135^\circ,60^\circ)", RIGHT),
    # thousands
    ("2,900", "2900", RIGHT),
    ("2,900", "2,900", RIGHT),
    ("2,900", "2{,}900", RIGHT),
    ("2,900", r"2\,900", RIGHT),
    ("120,000", "120000", RIGHT),
    ("1,625", "1625", RIGHT),
    ("35,000", "35,000", RIGHT),
    ("1625", "1,625", RIGHT),
    ("3986729", "3{,}986{,}729", RIGHT),
    ("3986729", "3,986,729", RIGHT),
    ("2,900", "29", WRONG),
    # dollars
    ("$1.50$", "1.50", RIGHT),
    ("$1.50$", r"\$1.50", RIGHT),
    ("$3.50$", "3.5", RIGHT),
    ("221,8", "8, 221", RIGHT),
    (r"\$5", "5", RIGHT),
    ("5", r"\$5", RIGHT),
    # multiple
    ("48, 384", "48, 384", RIGHT),
    ("48, 384", r"48 \text{ and } 384", RIGHT),
    ("48, 384", "384, 48", RIGHT),
    ("48, 384", "48", WRONG),
    (r"2 or -2 or \frac{1}{2} or -\frac{1}{2}", r"\pm 2, \pm\frac12", RIGHT),
    (r"2 or -2 or \frac{1}{2} or -\frac{1}{2}", r"2, -2, \frac{1}{2}, -\frac{1}{2}", RIGHT),
    (r"2 or -2 or \frac{1}{2} or -\frac{1}{2}", "2", WRONG),
    ("5 or 9", "5, 9", RIGHT),
    ("5 or 9", r"5 \text{ or } 9", RIGHT),
    ("5 or 9", r"9 \text{ or } 5", RIGHT),
    ("5 or 9", "5", WRONG),
    ("5 or 9", "59", WRONG),
    ("0.05 and 0.6", "0.05, 0.6", RIGHT),
    ("0.05 and 0.6", r"0.05 \text{ and } 0.6", RIGHT),
    ("0.05 and 0.6", "0.05", WRONG),
    ("69,84", "69, 84", RIGHT),
    ("69,84", r"\{69,84\}", RIGHT),
    ("69,84", "84 and 69", RIGHT),
    ("1,3,5", "1, 3, 5", RIGHT),
    ("1,3,5", r"\{1,3,5\}", RIGHT),
    ("1,3,5", "1,3", WRONG),
    ("1,2,3,4", "1234", WRONG),
    ("1,-1,7,-7", r"\pm 1, \pm 7", RIGHT),
    ("1,-1,7,-7", "1,7", WRONG),
    ("-2,0,2", r"0, \pm 2", RIGHT),
    (r"22+8\sqrt{6},22-8\sqrt{6}", r"22 \pm 8\sqrt{6}", RIGHT),
    ("1, 3, 5, 15", "1, 3, 5, 15", RIGHT),
    (
        r"\frac{1}{6} \pi, \frac{5}{6} \pi, \frac{1}{4} \pi, \frac{3}{4} \pi",
        r"\frac{\pi}{6},\frac{\pi}{4},\frac{3\pi}{4},\frac{5\pi}{6}",
        RIGHT,
    ),
    # equations
    ("x=9", "9", RIGHT),
    ("x=9", "x = 9", RIGHT),
    ("k=1", "1", RIGHT),
    ("k=1", "2", WRONG),
    ("f(x)=2 x", "2x", RIGHT),
    ("f(x)=2 x", "f(x)=2x", RIGHT),
    ("f(x)=2 x", "f(x)=3x", WRONG),
    ("9", "x=9", RIGHT),
    ("y=-2x+5", "y = 5 - 2x", RIGHT),
    ("y=-2x+5", "-2x+5", RIGHT),
    ("n^{2}+1", "N = n^2+1", RIGHT),
    ("f(x)=-1,f(x)=x+1", "f(x) = x+1, f(x)=-1", RIGHT),
    ("f(x)=-1,f(x)=x+1", r"f(x) = -1 \text{ and } f(x) = x+1", RIGHT),
    ("f(x)=x,f(x)=-x", r"f(x)=\pm x", RIGHT),
    (r"\frac{x^{2}}{2} - \frac{y^{2}}{2} = 1", "x^2-y^2=2", RIGHT),
    (r"a=2, a=-6-4 \sqrt{2}", r"2, -6-4\sqrt{2}", RIGHT),
    (r"k \geqslant 2", r"k \ge 2", RIGHT),
    (r"k \geqslant 2", "k > 2", WRONG),
    ("b > a > c", "b>a>c", RIGHT),
    ("b > a > c", "a > b > c", WRONG),
    # sets and intervals
    (r"\{x|-2\leq x < 1\}", "[-2,1)", RIGHT),
    (r"\{x|-2\leq x < 1\}", r"\{x \mid -2 \le x < 1\}", RIGHT),
    (r"\{x|-2\leq x < 1\}", r"-2 \le x < 1", RIGHT),
    (r"\{x|-2\leq x < 1\}", "[-2,1]", WRONG),
    (r"(-\infty,-3)", r"(-\infty, -3)", RIGHT),
    (r"(-\infty,-3)", "x < -3", RIGHT),
    (r"(-\infty,-3)", r"(-\infty,-3]", WRONG),
    (r"[2,+\infty)", r"[2, \infty)", RIGHT),
    ("[2,3)", "[2, 3)", RIGHT),
    ("[2,3)", "(2, 3)", WRONG),
    (r"(-\infty, 0)\cup(0,1)\cup(1,+\infty)", r"(-\infty,0) \cup (0,1) \cup (1,\infty)", RIGHT),
    (r"(-\infty, 0) \cup\{1\}.", r"(-\infty, 0) \cup \{1\}", RIGHT),
    (r"\{2,3,5\}", r"\{5,3,2\}", RIGHT),
    (r"\{1\}", "1", RIGHT),
    (r"\{x|x=3k,k\in \mathbb{Z}\}", r"\{x \mid x = 3k, k \in \mathbb{Z}\}", RIGHT),
    # coordinates
    ("(1,3)", "(1,3)", RIGHT),
    ("(1,3)", "(3,1)", WRONG),
    ("(2,4)", r"\left(2,4\right)", RIGHT),
    ("(1,8,19), (2,7,13), (4,5,7)", "(1, 8, 19), (2, 7, 13), (4, 5, 7)", RIGHT),
    ("(1,8,19), (2,7,13), (4,5,7)", "(4,5,7),(2,7,13),(1,8,19)", RIGHT),
    ("(1,8,19), (2,7,13), (4,5,7)", "(1,8,19)", WRONG),
    ("(0,2),(0,-2),(4,23),(4,-23)", r"(0,\pm 2),(4,\pm 23)", RIGHT),
    (r"\left(-\frac53,0\right)", r"(-\frac{5}{3}, 0)", RIGHT),
    ("(12,3,4), (6,5.4,7.6)", "(12,3,4),(6,5.4,7.6)", RIGHT),
    # text
    (r"\text{a necessary but not a sufficient condition}", r"\text{a necessary but not a sufficient condition}", RIGHT),
    ("Quadrant I", r"\text{Quadrant I}", RIGHT),
    ("Quadrant I", "I", WRONG),
    ("A", r"\text{A}", RIGHT),
    ("A", r"\textbf{A}", RIGHT),
    ("A", "A", RIGHT),
    ("A", "B", WRONG),
    ("C", r"\text{(C)}", RIGHT),
    ("K", "K", RIGHT),
    ("I,II,III,IV", r"\text{I, II, III, IV}", RIGHT),
    ("K", r"\mathrm{K}", RIGHT),
    ("A", "(A)", RIGHT),
    ("C", "C. 5", RIGHT),
    ("E_{1},E_{2}", "E_1, E_2", RIGHT),
    ("E_{1},E_{2}", "E_1", WRONG),
    # expressions
    (r"C_{400}^{40} \cdot C_{200}^{20}", r"\binom{400}{40} \cdot \binom{200}{20}", RIGHT),
    (r"8(\sqrt[10]{2^{7}})", r"8\cdot 2^{7/10}", RIGHT),
    ("np.arcsin(10/13)", r"\arcsin(10/13)", RIGHT),
    ("np.arcsin(10/13)", r"\sin^{-1}\left(\frac{10}{13}\right)", RIGHT),
    ("np.arcsin(10/13)", "0.877", WRONG),
    (r"\frac{1}{2a}(\exp{a*t} - \exp{-a*t})", r"\frac{e^{at}-e^{-at}}{2a}", RIGHT),
    (
        r"x_{0} \cos (\omega t)+$ $\dot{x}_{0} \sin (\omega t) / \omega",
        r"x_0 \cos(\omega t) + \frac{\dot{x}_0}{\omega}\sin(\omega t)",
        RIGHT,
    ),
    ("+2", "2", RIGHT),
    (r"\sqrt{5}-1", r"-1+\sqrt{5}", RIGHT),
    ("1+2i", "1+2i", RIGHT),
    (r"\frac{100!}{2^{50}}", r"\frac{100!}{2^{50}}", RIGHT),
    (r"\lfloor\sqrt{n-1}\rfloor", r"\left\lfloor \sqrt{n-1} \right\rfloor", RIGHT),
    (r"\ln 2 + i\pi / 3", r"\ln 2 + \frac{i\pi}{3}", RIGHT),
    ("7.6 Z", "7.6Z", RIGHT),
    (r"2.2 \tau", r"2.2\tau", RIGHT),
    (r"\alpha", r"\alpha", RIGHT),
    ("I(0)", "I(0)", RIGHT),
    ("MR=SRMC", "MR = SRMC", RIGHT),
    ("SRAC=LRAC", r"\text{SRAC} = \text{LRAC}", RIGHT),
    (r"12\times18\times11", "2376", RIGHT),
    (r"C=\frac{def}{de+df+ef}", r"\frac{def}{de+df+ef}", RIGHT),
    (r"100 p^{\frac{1}{2}}", r"100\sqrt{p}", RIGHT),
    (r"m \frac{d v}{d t}+b v=f", r"m\frac{dv}{dt} + bv = f", RIGHT),
    (r"\pm 3", r"\pm 3", RIGHT),
    (r"\pm 3", "3", WRONG),
    ("3", r"\pm 3", WRONG),
    ("-0.2", r"-\frac15", RIGHT),
    ("27", "27.0", RIGHT),
    ("0.10", "0.1", RIGHT),
    ("24.310", "24.31", RIGHT),
]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    pytest.importorskip("math_verify")
    with Judge(30.0) as process:
        yield process


def gold(answer: Any) -> str:
    """As a problem file's answer is kept."""
    return _problem({"problem": "?", "answer": answer}, "set", 1).answer


@pytest.mark.parametrize(("answer", "boxed", "outcome"), ANSWERS, ids=[f"{a}|{b}" for a, b, _ in ANSWERS])
@pytest.mark.slow
def test_formats_of_answers(judge: Judge, answer: str, boxed: str, outcome: str) -> None:
    text = boxed if "answer is" in boxed else f"So it is \\boxed{{{boxed}}}."
    assert judge(gold(answer), text).outcome == outcome


@pytest.mark.parametrize(
    ("answer", "boxed"),
    [(2e-05, r"2 \times 10^{-5}"), (2e-05, "0.00002"), (1.5e-7, r"1.5 \times 10^{-7}"), (3e22, r"3 \times 10^{22}"),
     (27.0, "27"), (-0.5, r"-\frac{1}{2}"), (6.02e23, "6.02e23"), (123456789, "123{,}456{,}789")],
)  # fmt: skip
def test_numbers_of_json(judge: Judge, answer: float, boxed: str) -> None:
    assert judge(gold(answer), rf"\boxed{{{boxed}}}").outcome == RIGHT
    assert judge(gold(answer * 1.5), rf"\boxed{{{boxed}}}").outcome == WRONG


def test_e_notation_is_rewritten_and_nothing_else() -> None:
    assert latex_numbers("4.5e33") == r"4.5 \times 10^{33}"
    assert expand_e_notation("1.25e-3 and 4E+2, -1.5e-7") == "0.00125 and 400, -0.00000015"
    assert number_text(2e-05) == "0.00002"
    assert number_text(27.0) == "27"
    assert number_text(1e16) == "1" + "0" * 16
    assert expand_e_notation("1e500") == r"1 \times 10^{500}"
    for text in ("2e^{3}", "e5", "x1e5", "2e", "abc2e3", r"\frac{2e^3}{3}", "1e5x", "0x1e5"):
        assert expand_e_notation(text) == text


def test_euler_is_read_where_it_is_meant(judge: Judge) -> None:
    assert judge("2e-3", r"\boxed{2e - 3}").outcome == RIGHT
    assert judge(r"2 e^{3}", r"\boxed{2e^3}").outcome == RIGHT


def test_two_boxes_are_not_one(judge: Judge) -> None:
    assert judge("2", r"\boxed{1} and \boxed{2}").outcome == WRONG
    assert judge("1, 2", r"\boxed{1} and \boxed{2}").outcome == RIGHT
    assert judge("12", r"\boxed{1 2}").outcome == WRONG
