"""What a run leaves: a JSON line an answer, on the disk as soon as it is judged, in files that several ranks share.

Each process appends to a file of its own, `records-<rank>of<world>.jsonl`; readers take all files of the folder, so a
run may go on with another number of processes. A line that a crash cut short is left out, and its answer made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.results import append_lines
from ..core.spec import Variant
from .judge import OUTCOMES, UNJUDGED

PATTERN = "records-*.jsonl"
REFUSED = "refused"  # the prompt leaves no room in the model's context


@dataclass(frozen=True, slots=True)
class Setting:
    """What all answers of a table have in common; part of what tells one record from another."""

    model: str
    dtype: str
    weights: str
    prompt: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    model_fingerprint: str | None = None  # of the checkpoint's files; a name alone does not tell two models apart

    @property
    def slug(self) -> str:
        """`smollm2-135m-fp32-16384-t0.6-p0.9-s0`, with weights and prompt style where they are not the default."""
        parts = [self.model, self.dtype, str(self.max_tokens), f"t{self.temperature:g}", f"p{self.top_p:g}"]
        parts += [self.weights] if self.weights != self.dtype else []
        parts += [self.prompt] if self.prompt != "chat" else []
        return "-".join([*parts, f"s{self.seed}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One answer, judged."""

    setting: Setting
    method: str
    columns: dict[str, Any]  # the method's settings, as in result rows
    set: str
    problem: str
    digest: str
    sample: int
    outcome: str  # of judge.OUTCOMES, or REFUSED
    expected: str
    extracted: str = ""
    finished: bool = False  # the model ended it; else it was cut
    tokens: int = 0  # generated, the end token included
    prompt_tokens: int
    seconds: float = 0.0  # between prompt and end, shared with the others of its batch
    text: str = ""  # the end of it
    reason: str | None = None
    source: str | None = None  # a hash of the code that answered, as in result rows

    def __post_init__(self) -> None:
        if self.outcome not in (*OUTCOMES, REFUSED):
            raise ValueError(f"outcome: got {self.outcome!r}, allowed are {', '.join((*OUTCOMES, REFUSED))}")

    @property
    def variant(self) -> Variant:
        """The method with its settings."""
        return Variant.make(self.method, self.columns)

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is the answer to."""
        return (self.setting, self.variant, self.set, self.problem, self.digest, self.sample)


def read_records(folder: Path) -> list[Record]:
    """The records of all files in a folder, one a key; torn last lines are left out.

    Of several of a key the newest of a file's stands, but a verdict before a judging that was cut short.

    Raises:
        ValueError: a whole line that is no record, named with its number.
    """
    records: dict[tuple[Any, ...], Record] = {}
    for path in sorted(folder.glob(PATTERN)):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                raw = json.loads(line)
                record = Record(**(raw | {"setting": Setting(**raw["setting"])}))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a record ({error}); delete the line to go on") from error
            held = records.get(record.key)
            if held is None or record.outcome not in UNJUDGED or held.outcome in UNJUDGED:
                records[record.key] = record
    return list(records.values())


class RecordFile:
    """A process's own file."""

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        """Makes the folder; takes off what a crash left of a last line."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"records-{rank}of{world}.jsonl"
        if self.path.exists():
            data = self.path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)

    def append(self, records: Iterable[Record]) -> None:
        """By one write, which is on the disk afterwards. Raises OSError."""
        append_lines(self.path, "".join(json.dumps(asdict(record)) + "\n" for record in records).encode())
