"""Flags of the command line, each declared once: what a suite takes is a list of these, and of its own.

Values travel as values: a command gets what was given, and every suite fills in its own defaults (`options`).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...kernels.config import DTYPES
from .settings import SETTINGS, SUMMARIES

K = 1024
CASES, METHODS, RUN = "which cases", "which methods, and how they are set", "the run"
MOST_TOKENS = 1 << 24  # of any context: beyond what any model or device here holds

Options = SimpleNamespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option of a command.

    Attributes:
        names: as typed, the first of them names the value.
        kind: makes a value of a word; raises ValueError with what was expected.
        default: what a suite takes where the flag is not given.
        many: takes one value or more, as a tuple; a value given twice is one unless it `repeats`.
        constant: a switch that stands for this value, and takes none.
        bare: what the flag stands for where it is given without a value; None: it needs one.
    """

    names: tuple[str, ...]
    help: str
    group: str = RUN
    kind: Callable[[str], Any] = str
    default: Any = None
    many: bool = False
    repeats: bool = False
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    constant: Any = None
    bare: Any = None
    to: str | None = None

    @property
    def name(self) -> str:
        """The name of the value in `Options`."""
        return self.to or self.names[0].lstrip("-").replace("-", "_")

    def but(self, **changes: Any) -> Flag:
        """The same flag where a suite has another default, or says more of it."""
        return replace(self, **changes)

    def add(self, group: Any) -> None:
        """Add it to a group of an argparse parser; what is not given stays out of the namespace."""
        common: dict[str, Any] = {"help": self.help.replace("%", "%%"), "dest": self.name, "default": argparse.SUPPRESS}
        if self.constant is not None:
            group.add_argument(*self.names, action="store_const", const=self.constant, **common)
            return
        common |= {"choices": self.choices or None, "nargs": "+" if self.many else None}
        common |= {"metavar": self.metavar} if self.metavar else {}
        common |= {"nargs": "?", "const": self.bare} if self.bare is not None else {}
        group.add_argument(*self.names, type=argument(self.kind), **common)


def argument(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A kind for argparse, which shows its message."""

    def convert(word: str) -> Any:
        try:
            return kind(word)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole(least: int = 1, most: int = 10**9) -> Callable[[str], int]:
    """A kind: whole numbers in a range."""

    def parse(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise ValueError(f"got {word[:40]!r}, expected a whole number") from None
        if not least <= value <= most:
            raise ValueError(f"got {value}, must be {least} to {most}")
        return value

    return parse


def number(least: float = 0.0, most: float = 1e9, *, above: float | None = None) -> Callable[[str], float]:
    """A kind: finite numbers in a range; `above` leaves the lower end out."""

    def parse(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise ValueError(f"got {word[:40]!r}, expected a number") from None
        if not math.isfinite(value) or not least <= value <= most or (above is not None and value <= above):
            low = f"above {above:g}" if above is not None else f"{least:g}"
            raise ValueError(f"got {word[:40]}, must be {low} to {most:g}")
        return value

    return parse


def tokens(word: str) -> int:
    """A kind: `256K` or `262144` as tokens."""
    try:
        value = int(word[:-1]) * K if word[-1:].lower() == "k" else int(word)
    except ValueError:
        raise ValueError(f"got {word[:40]!r}, expected tokens such as 4096 or 4K") from None
    if not 1 <= value <= MOST_TOKENS:
        raise ValueError(f"got {word[:40]}, must be 1 to {MOST_TOKENS // K}K tokens")
    return value


def path(word: str) -> Path:
    """A kind: a file or folder."""
    if not word or "\0" in word:
        raise ValueError(f"got {word!r}, expected a path")
    return Path(word)


def size_word(count: int) -> str:
    """Tokens as names of cases have them: `256k`, or `1000`."""
    return f"{count // K}k" if count % K == 0 else str(count)


# ---- which cases

QUICK = Flag(names=("--quick",), to="scale", constant="quick", group=CASES, help="few short cases")
FULL = Flag(names=("--full",), to="scale", constant="full", group=CASES, help="the whole grid, resumable")
CASE = Flag(names=("--case",), many=True, group=CASES, metavar="GLOB", default=(), help="only cases whose name matches")
CONTEXT = Flag(
    names=("--context",), many=True, kind=tokens, group=CASES, metavar="TOKENS", default=(), help="e.g. 4K 262144"
)
BATCH = Flag(
    names=("--batch",), many=True, kind=whole(1, 4096), group=CASES, metavar="B", default=(), help="sequences at once"
)
MODEL = Flag(names=("--model",), group=CASES, metavar="NAME|PATH", help="a preset, a Hugging Face folder, a .gguf file")
WEIGHTS = Flag(
    names=("--weights",), many=True, choices=("bf16", "fp16", "fp32", "int4"), default=(), group=CASES,
    help="default bf16, on a CPU fp32",
)  # fmt: skip
DTYPE = Flag(
    names=("--dtype",), choices=tuple(DTYPES), group=CASES, help="of activations and K/V: default bf16, on a CPU fp32"
)
PROMPT_TOKENS = Flag(
    names=("--prompt-tokens",), kind=tokens, group=CASES, metavar="TOKENS", help="prefilled densely"
)  # fmt: skip
STEPS = Flag(names=("--steps",), kind=tokens, group=CASES, metavar="TOKENS", help="tokens decoded after the prompt")
PROMPT = Flag(
    names=("--prompt",), choices=("synthetic", "text"), group=CASES, help="what the caches hold: noise, or real text"
)
PAGE_SIZE = Flag(
    names=("--page-size",), kind=whole(0, 1 << 20), group=CASES, metavar="TOKENS", help="paged caches; 0: contiguous"
)
SHARED_KV = Flag(
    names=("--shared-kv",), constant=True, default=False, group=CASES,
    help="one K/V cache for all layers (speed only, not text)",
)  # fmt: skip
SEED = Flag(names=("--seed",), kind=whole(0, 2**63 - 1), default=0, group=CASES, help="of random inputs")
TEMPERATURE = Flag(
    names=("--temperature",), kind=number(0.0, 100.0), default=0.0, group=CASES, metavar="T", help="0 is greedy"
)
TOP_P = Flag(
    names=("--top-p",), kind=number(0.0, 1.0, above=0.0), default=1.0, group=CASES, metavar="P",
    help="share of probability that is sampled from",
)  # fmt: skip

# ---- which methods

METHOD = Flag(
    names=("--method",), many=True, default=(), metavar="NAME", group=METHODS,
    help="each as its name alone means, at the settings below; `resa-bench doctor` lists them",
)  # fmt: skip
SUMMARY = Flag(
    names=("--summary",), many=True, choices=SUMMARIES, default=(), group=METHODS,
    help="what a block is scored by; -fp8: half the bytes of 16-bit summaries, rounded (docs/notes/quality.md)",
)  # fmt: skip


def _setting_flag(name: str) -> Flag:
    """The flag that a setting declares; one value or more, each a variant."""
    entry = SETTINGS[name]
    assert entry.flag is not None
    if entry.choices and entry.kind is str:
        kind: Callable[[str], Any] = str
    elif entry.kind is int:
        kind = whole(int(entry.least or 0), int(entry.most or 10**9))
    else:
        kind = number(entry.least or 0.0, entry.most or 1e9, above=entry.above)
    return Flag(
        names=(entry.flag,), to=name, help=entry.help, group=METHODS, kind=kind, many=True, default=(),
        choices=entry.choices if entry.kind is str else (), metavar=None if entry.kind is str else entry.symbol,
    )  # fmt: skip


SETTING_FLAGS = {name: _setting_flag(name) for name, entry in SETTINGS.items() if entry.flag}
METHOD_FLAGS = (METHOD, *(flag for name, flag in SETTING_FLAGS.items() if name != "draft_length"), SUMMARY)
"""The same in every suite that runs methods."""


def method_flags(listed: Mapping[str, Iterable[Any]]) -> tuple[Flag, ...]:
    """METHOD_FLAGS whose help says the values at which a suite's default list runs its methods, by setting."""
    words = {name: " ".join(map(str, values)) for name, values in listed.items()}
    return tuple(
        flag.but(help=f"{flag.help} (default list: {words[flag.name]})") if flag.name in words else flag
        for flag in METHOD_FLAGS
    )


# ---- the run

DEVICE = Flag(names=("--device",), help="cuda, cuda:1 or cpu (default: a GPU if there is one)")
OUTPUT = Flag(names=("--output",), kind=path, metavar="DIR", help="default runs/<device>/<version>[/quick]")
FRESH = Flag(names=("--fresh",), constant=True, default=False, help="measure again what the output holds already")
PLAN = Flag(names=("--plan", "--list"), constant=True, default=False, help="print cases and methods, and stop")
NO_PLOTS = Flag(names=("--no-plots",), constant=True, default=False, help="leave out the figures")
NO_EAGER = Flag(names=("--no-eager",), constant=True, default=False, help="leave out the eager rows")
SECONDS = Flag(
    names=("--seconds",), kind=number(0.0, 3600.0), default=2.0, metavar="S", help="decode at least that long"
)
RUN_FLAGS = (DEVICE, OUTPUT, FRESH, PLAN, NO_PLOTS)


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag]) -> None:
    """Add flags to a parser, by group, in order; --quick and --full exclude each other."""
    groups: dict[str, Any] = {}
    scales: Any = None
    for flag in flags:
        group = groups.setdefault(flag.group, None) or parser.add_argument_group(flag.group)
        groups[flag.group] = group
        if flag.name == "scale":
            scales = scales or group.add_mutually_exclusive_group()
            flag.add(scales)
        else:
            flag.add(group)


def options(flags: Iterable[Flag], given: Mapping[str, Any]) -> Options:
    """Every flag's value: what was given, else its default. Values of flags that are not listed are left out.

    Lists become tuples.
    """
    values: dict[str, Any] = {}
    for flag in flags:
        value = given.get(flag.name, flag.default)
        if flag.name == "scale":
            value = given.get("scale", "default")
        values[flag.name] = tuple(value if flag.repeats else dict.fromkeys(value)) if flag.many else value
    return Options(**values)


def words(flags: Iterable[Flag], values: Options) -> list[str]:
    """The words of a command line that give these values; defaults are left out."""
    typed: list[str] = []
    for flag in flags:
        value = getattr(values, flag.name)
        if value == flag.default:
            continue
        if flag.constant is not None:
            typed += [flag.names[0]] if value == flag.constant else []
        else:
            typed += [flag.names[0], *map(str, value if flag.many else (value,))]
    return typed
