"""The process that judges: requests `[expected, text]` a line on stdin, replies `[outcome, extracted]` on stdout.

It holds math-verify (and sympy) and of this project only the rewriting of answers, so that it starts fast and may be
killed at will. The library's own time limits are off: they work by signals, which arithmetic on huge numbers ignores.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from ..model.line_server import serve
from .answers import expand_e_notation, rewritten, same_words

MEMORY_BYTES = 2 * 2**30  # address space, of which sympy itself takes 0.3: 10^(10^10) must not take the machine's
EXTRACTED_CHARS = 200
REWRITTEN_CHARS = 2000  # of a longer answer the library's reading stands
EXACT = 1e-13  # relative difference of numbers that are equal but for the 30 digits they are compared at
ROUNDED = 1e-4  # relative difference of a number and its rounding to six decimals, from 0.01 on
BIG = 1e-12  # relative difference of equal numbers of which one is a 64-bit float


def judge(expected: str, text: str) -> tuple[str, str]:
    """Whether the final answer of `text`, in `\\boxed{}` or plain, equals `expected`; and that answer as found.

    The library reads both as they are; where that does not agree, both are read again as `answers.rewritten` has them.
    """
    from latex2sympy2_extended.math_normalization import extract_boxed_content
    from math_verify import parse

    answer = parse(text, parsing_timeout=None)
    plain = expand_e_notation(text)
    given = extract_boxed_content(plain, "last") if "\\boxed" in plain or "\\fbox" in plain else None
    if not answer and not given:
        return "no answer", ""
    extracted = str(answer[-1] if answer else given)[:EXTRACTED_CHARS]
    wanted = parse(_boxed(expected), parsing_timeout=None)
    if _same(wanted, answer):
        return "right", extracted
    if given is not None and len(given) > REWRITTEN_CHARS:
        return "wrong", extracted
    if given is not None and same_words(expected, given):
        return "right", extracted
    again = _boxed(rewritten(given)) if given is not None else plain
    if again != text or rewritten(expected) != expected:
        both = [*wanted, *parse(_boxed(rewritten(expected)), parsing_timeout=None)]
        if _same(both, [*answer, *parse(again, parsing_timeout=None)]):
            return "right", extracted
    return "wrong", extracted


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _same(wanted: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return verify(wanted, answer, timeout_seconds=None, allow_set_relation_comp=True)


def compare_by_relative_difference() -> None:
    """Have math-verify compare numbers relative to their size.

    It rounds to six decimals and calls differences below 1e-15 none, so that all small numbers are equal, and finds
    4.5e33 as a float unequal to the integer. Its comparison is replaced where sets, intervals and matrices use it.
    """
    from math_verify import grader

    absolute = grader.sympy_numeric_eq
    if not hasattr(absolute, "by_relative_difference"):
        grader.sympy_numeric_eq = relative(absolute)


def relative(absolute: Callable[..., bool]) -> Callable[..., bool]:
    """The library's `sympy_numeric_eq`, but for numbers that it calls equal too early or too late."""
    from math_verify.grader import get_pct_val
    from sympy import Basic, Float

    def equal(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
        same = absolute(a, b, float_rounding, numeric_precision)
        if not (isinstance(a, Basic) and isinstance(b, Basic)):
            return same
        percent = get_pct_val(a) is not None or get_pct_val(b) is not None
        pairs = [(a, b), (get_pct_val(a, a), get_pct_val(b, b))] if percent else [(a, b)]
        gaps = [gap for gap in (difference(*pair) for pair in pairs) if gap is not None]
        if not gaps:
            return same
        floats = a.has(Float) or b.has(Float)
        if same:
            return min(gaps) <= (ROUNDED if floats else EXACT)
        return floats and min(gaps) <= BIG

    equal.by_relative_difference = True  # type: ignore[attr-defined]
    return equal


def difference(a: Any, b: Any) -> float | None:
    """Of two expressions, relative to the larger; None where they have no values. Symbols get values of their own."""
    from sympy import Float

    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    values = {symbol: Float(1) + Float(f"0.{i + 1}732050807568877") for i, symbol in enumerate(symbols)}
    try:
        x, y = (complex_value(expression.doit().subs(values)) for expression in (a, b))
        scale = max(abs(x), abs(y))
        return 0.0 if x == y else float(abs(x - y) / scale)
    except Exception:  # sympy raises what it likes, of expressions without a value
        return None


def complex_value(expression: Any) -> Any:
    """A number of 30 digits, as mpmath has it: exponents of any size. Raises TypeError where there is none."""
    import mpmath

    real, imaginary = expression.evalf(30).as_real_imag()
    if not (real.is_Number and imaginary.is_Number and real.is_finite):
        raise TypeError("no number")
    with mpmath.workdps(30):
        return mpmath.mpc(real._to_mpmath(100), imaginary._to_mpmath(100))


def serve_judging() -> None:
    """Serve until stdin ends."""
    logging.disable(logging.CRITICAL)

    def prepare() -> None:
        compare_by_relative_difference()
        judge("1", "1")  # imports, before the clock of the first request runs

    def reply(line: str) -> str:
        try:
            return json.dumps(judge(*json.loads(line)))
        except MemoryError:
            raise
        except Exception as error:  # sympy raises what it likes
            return json.dumps(("crashed", f"{type(error).__name__}: {error}"[:EXTRACTED_CHARS]))

    serve(sys.stdin, reply, MEMORY_BYTES, prepare)


if __name__ == "__main__":
    serve_judging()
