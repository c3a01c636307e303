"""Answers as sets and models write them, rewritten into what math-verify reads: e-notation, units, set-builders, words.

Text to text, without sympy: the problems' reader needs it, and the judging process starts fast.
"""

from __future__ import annotations

import re

MOST_DIGITS = 400  # an exponent beyond it is left as a power

_E_NOTATION = re.compile(r"(?<![\w.\\])([+-]?(?:\d+(?:\.\d*)?|\.\d+))[eE]([+-]?\d{1,4})(?![\w^{]|\.\d)")
_FUNCTIONS = r"(?:arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|exp|log|sqrt|pi)"
_UNIT = r"(?:\\(?:text|mathrm|rm|mbox)\s*\{\s*)?(?:mm|cm|dm|km|in|ft|yd)(?:\s*\})?"
_METRE = r"(?:\\[,;:! ]|~)\s*(?:\\(?:text|mathrm|rm|mbox)\s*\{\s*)?m(?:\s*\})?"
_SPACING = r"(?:\\[,;:! ]|\\quad|\\qquad|~|\s)"

_RULES = [
    (re.compile(r"[×✕]"), r"\\times "),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\{,\})(?=\d{3}(?!\d))"), ""),  # 2\,900
    (re.compile(r"(?<=\d)\.(?=\s*[/*+\-)}])"), ""),  # -1./3
    (re.compile(rf"\b(?:np|numpy|math)\.(?={_FUNCTIONS}\b)"), r"\\"),
    (re.compile(r"(?:\\(?:mathrm|text|rm)\{\s*C\s*\}|(?<![A-Za-z\\])C)_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(rf"(?<=[\d}}\s;]){_SPACING}*{_UNIT}\s*\^\s*\{{?[23]\}}?{_SPACING}*$"), ""),  # 22.1cm^{2}
    (re.compile(rf"(?<=[\d}}i]){_METRE}\s*\^\s*\{{?[23]\}}?{_SPACING}*$"), ""),  # 576\pi\;m^{2}
    (re.compile(r"(?i)(?<=[\d}])\s*(?:solution|answer)\s*:?\s*$"), ""),  # a heading that ran into the answer
    (re.compile(rf"^{_SPACING}+|(?:{_SPACING}|[.,;])+$"), ""),
]
_SET_BUILDER = re.compile(
    r"^\\?\\?(?:left)?\\?\{\s*([a-zA-Z])\s*(?:\||\\mid|\\vert|:)(.*?)(?:\\right)?\\?\}$", re.DOTALL
)
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}")
_UNSEEN = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[,;:! ]|[\s$~]")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:\\[,;:! ]|[\s~])+(?=\d)")
_SYNONYMS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\leqslant": "\\le", "\\leq": "\\le", "\\geqslant": "\\ge",
    "\\geq": "\\ge", "\\lt": "<", "\\gt": ">",
}  # fmt: skip


def expand_e_notation(text: str) -> str:
    """Every number in e-notation of a text as a plain decimal, which is read alike in LaTeX and outside of it."""

    def decimal(match: re.Match[str]) -> str:
        if abs(int(match[2])) > MOST_DIGITS:
            return _power(match)
        return _shifted(match[1], int(match[2]))

    return _E_NOTATION.sub(decimal, text)


def latex_numbers(text: str) -> str:
    """Every number in e-notation as LaTeX: `4.5e33` becomes `4.5 \\times 10^{33}`."""
    return _E_NOTATION.sub(_power, text)


def number_text(value: float) -> str:
    """A number of JSON without an exponent, with the digits it was written with: `2e-05` becomes `0.00002`."""
    return expand_e_notation(repr(value)).removesuffix(".0")


def rewritten(answer: str) -> str:
    """An answer (LaTeX, without its box) as math-verify reads it; the same text where nothing is to be changed."""
    text = expand_e_notation(answer.strip())
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    builder = _SET_BUILDER.match(text)
    if builder and re.search(rf"(?<![a-zA-Z\\]){builder[1]}(?![a-zA-Z])", builder[2]) and "\\in" not in builder[2]:
        text = builder[2].strip()
    return _without_plus_minus(text)


def same_words(expected: str, answer: str) -> bool:
    """Whether two answers are the same but for spacing, fonts and braces; a choice may be followed by its text."""
    wanted, given = _squashed(expected), _squashed(answer)
    if re.search(r"(?<!\\)\b[A-Za-z]{4,}", expected):
        wanted, given = wanted.casefold(), given.casefold()
    if wanted and wanted == given:
        return True
    choice = re.match(r"\(?([A-K])\)?(?:[.:)]|$)", given)
    return choice is not None and choice[1] == wanted


def _power(match: re.Match[str]) -> str:
    return rf"{match[1].removesuffix('.')} \times 10^{{{int(match[2])}}}"


def _shifted(mantissa: str, places: int) -> str:
    """A decimal number's text times 10^places, by moving its point."""
    sign = mantissa[0] if mantissa[0] in "+-" else ""
    whole, _, part = mantissa.removeprefix(sign).partition(".")
    digits, point = whole + part, len(whole) + places
    digits = "0" * (1 - point) + digits + "0" * (point - len(digits))
    point = max(point, 1)
    whole, part = digits[:point].lstrip("0") or "0", digits[point:]
    return sign + whole + (f".{part}" if part else "")


def _without_plus_minus(text: str) -> str:
    """Each of a list's items that holds one `\\pm` as two, where it is a coordinate or an equation."""
    if "\\pm" not in text:
        return text
    items = []
    for item in _split(text):
        if item.count("\\pm") == 1 and ("=" in item or item.startswith("(")):
            has_left = re.search(r"[\w})]\s*\\pm", item) is not None  # 3 \pm 2, where a plus must be written
            items += [re.sub(r"\\pm\s*", sign, item) for sign in ("+" if has_left else "", "-")]
        else:
            items.append(item)
    return ",".join(items)


def _split(text: str) -> list[str]:
    """The parts of a text between commas that stand in no bracket."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    return [*parts, text[begin:].strip()]


def _squashed(text: str) -> str:
    """The text without fonts, spacing, synonyms and braces around single letters."""
    previous = ""
    while previous != text:
        previous, text = text, _WRAPPERS.sub(r"\1", text)
    text = _COMMAND.sub(lambda match: _SYNONYMS.get(match[0], match[0]), text)
    text = _BETWEEN_DIGITS.sub("_", text)  # 1 2 is not 12
    return re.sub(r"\{(.)\}", r"\1", _UNSEEN.sub("", text)).rstrip(".,;:")
