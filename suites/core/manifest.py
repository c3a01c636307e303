"""`manifest.json`: what was run, where, from which sources, for how long, and the hash of every file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

NAME = "manifest.json"
SCHEMA = 1
OK, INCOMPLETE, FAILED, STOPPED = "ok", "incomplete", "failed", "stopped"


@dataclass(frozen=True, slots=True)
class Sources:
    """Which sources ran: the commit, whether they were changed since, and their hash."""

    commit: str | None
    dirty: bool | None
    source: str


@dataclass(frozen=True, slots=True)
class PartRecord:
    """How one part ended.

    Attributes:
        status: ok; incomplete: some rows failed; failed: no rows; stopped: by the time limit, or by hand.
        rows: lines of `file` that are this part's; parts of one file stand in the order of the manifest.
        chip: place in the manifest's list of chips.
        side_by_side: whether other parts ran on the device at the same time.
    """

    command: str
    file: str
    rows: int
    minutes: float
    status: str
    reason: str | None
    commit: str | None
    dirty: bool | None
    source: str
    chip: int
    started_at: str
    side_by_side: bool = False

    @property
    def sources(self) -> Sources:
        """Which sources ran."""
        return Sources(self.commit, self.dirty, self.source)


@dataclass(slots=True)
class Manifest:
    """Of one folder of results.

    Attributes:
        chips: what the parts ran on; more than one entry only if a run went on on another machine.
        versions: of software, of the last part that ran.
        files: hash and bytes of each published file, by its path in the folder.
    """

    chips: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    parts: dict[str, PartRecord] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def chip_index(self, chip: dict[str, Any]) -> int:
        """The chip's place in the list, to which it is added if need be."""
        if chip not in self.chips:
            self.chips.append(chip)
        return self.chips.index(chip)

    @property
    def commit(self) -> str | None:
        """The commit of all parts; None where they differ."""
        commits = {record.commit for record in self.parts.values()}
        return commits.pop() if len(commits) == 1 else None

    @property
    def dirty(self) -> bool | None:
        """Whether any part ran from changed sources; None where that is not known."""
        states = [record.dirty for record in self.parts.values()]
        return True if True in states else None if None in states else False

    @property
    def minutes(self) -> float:
        """How long the parts took in all: those side by side as long as the longest of them."""
        apart = sum(record.minutes for record in self.parts.values() if not record.side_by_side)
        return apart + max((record.minutes for record in self.parts.values() if record.side_by_side), default=0.0)

    def save(self, folder: Path) -> None:
        """Write it into a folder, at once or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "schema": SCHEMA,
            "commit": self.commit,
            "dirty": self.dirty,
            "minutes": round(self.minutes, 2),
            "chips": self.chips,
            "versions": self.versions,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "files": dict(sorted(self.files.items())),
        }
        partial = folder / f".{NAME}.part"
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(folder / NAME)


def read_manifest(folder: Path) -> Manifest:
    """That of a folder; an empty one where it has none. Raises ValueError for a file that is no manifest."""
    path = folder / NAME
    if not path.is_file():
        return Manifest()
    try:
        record = json.loads(path.read_text())
        parts = {name: PartRecord(**part) for name, part in record["parts"].items()}
        return Manifest(record["chips"], record["versions"], parts, record["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: not a manifest of this version ({text}); move the folder away") from None


def file_entry(path: Path) -> dict[str, Any]:
    """Hash and size of a file, as a manifest holds them."""
    data = path.read_bytes()
    return {"sha256": sha256(data).hexdigest(), "bytes": len(data)}


def is_intact(manifest: Manifest, folder: Path, name: str) -> bool:
    """Whether a published file is there, and is what the manifest says."""
    path = folder / name
    return name in manifest.files and path.is_file() and file_entry(path) == manifest.files[name]
