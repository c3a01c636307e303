"""Where a folder of results came from, by its manifest, and how far the runs of several chips differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...suites.core.spread import read_run, spreads
from .numbers import PlaceError
from .tables import markdown

MANIFEST = "manifest.json"
NO_MANIFEST = "These files are of several commits: each row names its own, and the command that repeats it."
NOT_MEASURED = "Not measured yet."
ONE_CHIP = "Only one chip of this kind has been measured."


def render_run(folder: Path) -> str:
    """Commit, chip, versions and minutes, then a line a part. Raises PlaceError for a file that is no manifest."""
    path = folder / MANIFEST
    if not folder.is_dir():
        return NOT_MEASURED
    if not path.is_file():
        return NO_MANIFEST
    try:
        record = json.loads(path.read_text())
        commits = dict.fromkeys(part["commit"] for part in record["parts"].values())
        facts = [f"Commit {_list(str(commit)[:10] for commit in commits)}", *map(_chip, record["chips"])]
        facts.append(_list(f"{name} {version}" for name, version in record["versions"].items()))
        lines = [["part", "file", "rows", "minutes", "ended", "command"]]
        for name, part in record["parts"].items():
            minutes, rows = f"{part['minutes']:.1f}", str(part["rows"])
            lines.append([name, f"`{part['file']}`", rows, minutes, part["status"], f"`{part['command']}`"])
        total = f"{record['minutes']:.1f} minutes in all."
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlaceError(f"{path}: not a manifest of this version ({type(error).__name__}: {error})") from None
    return ". ".join(facts) + f". {total}\n\n{markdown(lines)}"


def _chip(chip: dict[str, object]) -> str:
    facts = [str(chip["name"])]
    if "multiprocessors" in chip:
        facts.append(f"{chip['multiprocessors']} multiprocessors")
    clusters = chip.get("clusters")
    if isinstance(clusters, dict):
        facts += [f"{count} clusters of {size} CTAs at once" for size, count in clusters.items()]
    return _list(facts)


def _list(words: object) -> str:
    return ", ".join(words)  # type: ignore[arg-type]


def render_spread(folders: Sequence[Path]) -> str:
    """A line for each suite and kind of rows; a sentence where fewer than two of the folders are there."""
    there = [folder for folder in folders if (folder / MANIFEST).is_file()]
    if len(there) < 2:
        return ONE_CHIP
    try:
        measured = spreads([read_run(folder) for folder in there])
    except (OSError, ValueError) as error:
        raise PlaceError(str(error)) from None
    lines = [["suite", "rows of", "count", "median", "90 % within", "worst", "which"]]
    for spread in measured:
        shares = [f"{100 * value:.1f} %" for value in (spread.median, spread.most_of_90, spread.worst)]
        lines.append([spread.suite, spread.kind, str(spread.count), *shares, spread.worst_row])
    return markdown(lines)
