"""Random command lines, many of which get as far as the plan: flags of every command, values that fit or do not."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from resa_bench.kernels import registered
from resa_bench.suites.cli import build_parser
from resa_bench.suites.micro.cases import PRESETS

GOOD_INTS = ("1", "2", "4", "16", "32", "64", "128", "256", "1K", "2K", "4K", "8K")
ODD_INTS = ("0", "3", "7", "100", "1000", "-1", "5", "64K", "1M", "16384K", "", "nan", "1e3", "abc", "2147483648",
            "-9223372036854775809", "9" * 5000, "٣", "1_000", " 8", "4k ", "0x10")  # fmt: skip
GOOD_FLOATS = ("0.1", "0.5", "1", "1.0", "0.05")
ODD_FLOATS = ("0", "2", "-0.1", "nan", "inf", "-inf", "1e-9", "1e-320", "1e400", "abc", "", "0.99999", "--")
WORDS = ("", "zzz", "[/red]", "a" * 300, "\x1b[2J", "漢", "../..", "%s", "{}", "a\0b", "\ud800", "-", "*", "~")
CASES = ("qwen2.5-7b-b1-4k", "decode-qwen2.5-7b-bf16-b1-4k", "qwen2.5-7b-b1-4k-clustered-page64", "*", "*4k*", "[a")
RARE = ("doctor", "plots", "flush-demo")  # slow, or of one answer


def odd_files(folder: Path) -> list[str]:
    """Files that a user may name, most of which are not what a command wants."""
    good = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "torch-dense", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "status": "ok", "median_us": 10.0,
        "ci_low_us": 9.0, "ci_high_us": 11.0, "cache_state": "cold", "launch": "eager",
    }  # fmt: skip
    contents = {
        "empty": b"", "empty.jsonl": b"", "nul.jsonl": b"\0\0\n", "bin.jsonl": bytes(range(256)), "num.jsonl": b"5\n",
        "list.jsonl": b"[1]\n", "latin.jsonl": '{"a": "é"}\n'.encode("latin-1"), "torn.jsonl.gz": b"\x1f\x8b\x08",
        "micro.jsonl": json.dumps(good).encode() + b"\n", "deep.jsonl": b"[" * 100_000, "model.gguf": b"GGUF\x03",
        "odd.jsonl": json.dumps(good | {"case": "../../x", "model": "[/b]\x1b[2J", "method": "zzz"}).encode() + b"\n",
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    return [*(str(folder / name) for name in (*contents, "folder", "model", "none", "micro.jsonl/x")), *WORDS]


class Drawer:
    """Draws command lines from a seed."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.commands: dict[str, argparse.ArgumentParser] = choices_of(build_parser())
        self.methods = list(registered())

    def draw(self, seed: int) -> list[str]:
        """A command line."""
        rng = random.Random(seed)
        frequent = [name for name in self.commands if name not in RARE]
        name = rng.choice(RARE) if rng.random() < 0.02 else rng.choice(frequent)
        words, parser = [name], self.commands[name]
        if name == "profile":
            words.append(tool := rng.choice(("nsys", "ncu", "run")))
            parser = choices_of(parser)[tool]
        odd = rng.random() < 0.5  # half of the lines have values that fit alone
        flags = [a for a in parser._actions if a.option_strings and a.dest != "help"]
        for flag in rng.sample(flags, min(len(flags), rng.choice((0, 1, 1, 2, 2, 3, 4, 6, 9)))):
            option = rng.choice(flag.option_strings)
            count = 0 if flag.nargs == 0 else rng.choice((1, 1, 2, 3, 0 if odd else 1)) if flag.nargs == "+" else 1
            values = [self.value(flag, rng, odd) for _ in range(count)]
            words += [f"{option}={values[0]}"] if count == 1 else [option, *values]
        for place in (a for a in parser._actions if not a.option_strings and a.dest != "help"):
            if name == "profile":
                words += rng.sample([*CASES, *WORDS] if odd else CASES, rng.choice((0, 1)))
            else:
                words += [rng.choice(self.files) for _ in range(1 if place.nargs is None else rng.choice((1, 2)))]
        return [word for word in words if "\0" not in word or odd]

    def value(self, flag: argparse.Action, rng: random.Random, odd: bool) -> str:
        """A value of a flag: one that fits, or where lines are odd at times another."""
        strange = odd and rng.random() < 0.5
        if flag.choices is not None and not strange:
            return str(rng.choice(list(flag.choices)))
        by_name: dict[str, tuple[Any, ...]] = {
            "device": ("cpu",), "model": (*PRESETS, "smollm2-135m"), "method": tuple(self.methods), "case": CASES,
            "output": ("out", "out/sub"),
        }  # fmt: skip
        if flag.dest in by_name and not strange:
            return str(rng.choice(by_name[flag.dest]))
        if flag.dest in ("output", "problems", "table", "replay", "facts", "model"):
            return rng.choice(self.files)
        pool = (*ODD_INTS, *ODD_FLOATS, *WORDS) if strange else (*GOOD_INTS, *GOOD_FLOATS)
        return rng.choice(pool)


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands by name."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)
