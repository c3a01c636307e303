"""Flags of the command line, each declared once: what a suite takes is a list of these, and of its own.

Values travel as values: a command gets what was given, and every suite fills in its own defaults (`options`).
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...kernels.config import DTYPES, KV_DTYPES
from .settings import SETTINGS, SUMMARIES

K = 1024
CASES, METHODS, RUN = "which cases", "which methods, and how they are set", "the run"
MOST_TOKENS = 1 << 24  # of any context: beyond what any model or device here holds

Options = SimpleNamespace


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of a command.

    Attributes:
        names: as typed, one or several; the first of them names the value unless `to` does.
        kind: makes a value of a word; raises ValueError with what was expected.
        default: what a suite takes where the flag is not given.
        many: takes one value or more, as a tuple; a value given twice is one unless it `repeats`.
        constant: a switch that stands for this value, and takes none.
        bare: what the flag stands for where it is given without a value; None: it needs one.
    """

    names: str | tuple[str, ...]
    help: str
    group: str = RUN
    _: KW_ONLY
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
    def words(self) -> tuple[str, ...]:
        """Each of the names."""
        return (self.names,) if isinstance(self.names, str) else self.names

    @property
    def name(self) -> str:
        """The name of the value in `Options`."""
        return self.to or self.words[0].lstrip("-").replace("-", "_")

    def but(self, **changes: Any) -> Flag:
        """The same flag where a suite has another default, or says more of it."""
        return replace(self, **changes)

    def add(self, group: Any) -> None:
        """Add it to a group of an argparse parser; what is not given stays out of the namespace."""
        common: dict[str, Any] = {"help": self.help.replace("%", "%%"), "dest": self.name, "default": argparse.SUPPRESS}
        if self.constant is not None:
            group.add_argument(*self.words, action="store_const", const=self.constant, **common)
            return
        common |= {"choices": self.choices or None, "nargs": "+" if self.many else None}
        common |= {"metavar": self.metavar} if self.metavar else {}
        common |= {"nargs": "?", "const": self.bare} if self.bare is not None else {}
        group.add_argument(*self.words, type=argument(self.kind), **common)


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
    try:
        is_path = b"\0" not in os.fsencode(word) and word != ""
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise ValueError(f"got {word!r}, expected a path")
    return Path(word)


def size_word(count: int) -> str:
    """Tokens as names of cases have them: `256k`, or `1000`."""
    return f"{count // K}k" if count % K == 0 else str(count)


def switch(names: str | tuple[str, ...], help: str, group: str = RUN) -> Flag:
    """A flag that takes no value: true where it is given."""
    return Flag(names, help, group, constant=True, default=False)


def several(name: str, help: str, group: str = CASES, **options: Any) -> Flag:
    """A flag that takes one value or more; none where it is not given."""
    return Flag(name, help, group, **(dict[str, Any](many=True, default=()) | options))


# ---- which cases

QUICK = Flag("--quick", "few short cases", CASES, to="scale", constant="quick")
FULL = Flag("--full", "the whole grid, resumable", CASES, to="scale", constant="full")
CASE = several("--case", "only cases whose name matches", metavar="GLOB")
CONTEXT = several("--context", "e.g. 4K 262144", kind=tokens, metavar="TOKENS")
BATCH = several("--batch", "sequences at once", kind=whole(1, 4096), metavar="B")
GPU = Flag("--gpu", "whose committed rows: the name of a folder of results/", CASES, default="h200", metavar="NAME")
MODEL = Flag("--model", "a preset, a Hugging Face folder, a .gguf file", CASES, metavar="NAME|PATH")
WEIGHTS = several(
    "--weights",
    "of the layers' projections: int4 in groups, fp8 (e4m3) with a scale a row; default bf16, on a CPU fp32",
    choices=("bf16", "fp16", "fp32", "int4", "fp8"),
)
DTYPE = Flag("--dtype", "of activations and K/V: default bf16, on a CPU fp32", CASES, choices=tuple(DTYPES))
KV_DTYPE = Flag(
    "--kv-dtype", "of K and V in the cache: fp8 is e4m3 with a scale a KV head (default: as --dtype)", CASES,
    choices=KV_DTYPES,
)  # fmt: skip
PROMPT_TOKENS = Flag("--prompt-tokens", "prefilled densely", CASES, kind=tokens, metavar="TOKENS")
STEPS = Flag("--steps", "tokens decoded after the prompt", CASES, kind=tokens, metavar="TOKENS")
PROMPT = Flag("--prompt", "what the caches hold: noise, or real text", CASES, choices=("synthetic", "text"))
PATTERN = Flag("--pattern", "ragged: sequences of many lengths", CASES)
PAGE_SIZE = Flag("--page-size", "paged caches; 0: contiguous", CASES, kind=whole(0, 1 << 20), metavar="TOKENS")
SHARED_KV = switch("--shared-kv", "one K/V cache for all layers (speed only, not text)", CASES)
SEED = Flag("--seed", "of random inputs", CASES, kind=whole(0, 2**63 - 1), default=0)
TEMPERATURE = Flag("--temperature", "0 is greedy", CASES, kind=number(0.0, 100.0), default=0.0, metavar="T")
TOP_P = Flag(
    "--top-p", "share of probability that is sampled from", CASES, kind=number(0.0, 1.0, above=0.0), default=1.0,
    metavar="P",
)  # fmt: skip

# ---- which methods

METHOD = several(
    "--method", "each as its name alone means, at the settings below; `resa-bench doctor` lists them", METHODS,
    metavar="NAME",
)  # fmt: skip
SUMMARY = several(
    "--summary",
    "the summary of its keys by which a block is scored. minmax: least and greatest of each channel; meanstd: mean and "
    "deviation; -fp8: kept in 8 bits (half the bytes, slightly other blocks; docs/notes/quality.md)",
    METHODS, choices=SUMMARIES,
)  # fmt: skip


def _setting_flag(name: str) -> Flag:
    """The flag that a setting declares; one value or more, each a variant."""
    entry = SETTINGS[name]
    assert entry.flag is not None
    if entry.kind is str:
        kind: Callable[[str], Any] = str
    elif entry.kind is int:
        kind = whole(int(entry.least or 0), int(entry.most or 10**9))
    else:
        kind = number(entry.least or 0.0, entry.most or 1e9, above=entry.above)
    return several(
        entry.flag, entry.help, METHODS, to=name, kind=kind, choices=entry.choices if entry.kind is str else (),
        metavar="NAME" if entry.names is not None else None if entry.kind is str else entry.symbol,
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

DEVICE = Flag("--device", "cuda, cuda:1 or cpu (default: a GPU if there is one)")
OUTPUT = Flag("--output", "default runs/<device>/<version>[/quick]", kind=path, metavar="DIR")
FRESH = switch("--fresh", "measure again what the output holds already")
PLAN = switch(("--plan", "--list"), "print cases and methods, and stop")
NO_PLOTS = switch("--no-plots", "leave out the figures")
NO_EAGER = switch("--no-eager", "leave out the eager rows")
SECONDS = Flag("--seconds", "decode at least that long", kind=number(0.0, 3600.0), default=2.0, metavar="S")
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
        if value != flag.default:
            typed.append(flag.words[0])
            typed += [] if flag.constant is not None else map(str, value if flag.many else (value,))
    return typed
