"""Parts that ran side by side, on other cards of the kind, taken into one published folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.manifest import OK, Manifest, file_entry, is_intact, read_manifest
from .publish import publish, published_lines


def join(folders: Sequence[Path], output: Path) -> dict[Path, list[str]]:
    """Take the parts that ended well in other folders into one. A part that the folder has done already stays.

    All parts are of one commit and of one kind of chip; the manifest lists the chip of each.

    Returns:
        Names of the parts that were taken, by folder.

    Raises:
        ValueError: a folder without a run, of another kind of chip, of other sources, or with a changed file.
    """
    manifest = read_manifest(output)
    return {folder: _take(folder, read_manifest(folder), manifest, output) for folder in folders}


def _take(folder: Path, other: Manifest, manifest: Manifest, output: Path) -> list[str]:
    done = {name: record for name, record in other.parts.items() if record.status == OK}
    if not done:
        raise ValueError(f"--join {folder}: holds no part of a reference run that ended well")
    for what, kinds in (
        ("chips", {chip["name"] for chip in (*manifest.chips, *other.chips)}),
        ("commits", {record.commit or "unknown" for record in (*manifest.parts.values(), *done.values())}),
    ):
        if len(kinds) > 1:
            raise ValueError(f"--join {folder}: parts of one run are of one kind, these are of {what} {sorted(kinds)}")
    taken = []
    for name, record in done.items():
        before = manifest.parts.get(name)
        if before is not None and before.status == OK:
            continue
        kept = [file for file in other.files if file.startswith(f"{name.replace('-', '/', 1)}/")]
        for file in (record.file, *kept):
            if not is_intact(other, folder, file):
                raise ValueError(f"--join {folder}: {file} is not what the manifest says; run {name} again")
        lines = published_lines(other, folder, record.file)[name]
        publish(manifest, output, name, replace(record, chip=manifest.chip_index(other.chips[record.chip])), lines)
        for file in kept:
            (output / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, output / file)
            manifest.files[file] = file_entry(output / file)
        taken.append(name)
    manifest.versions = manifest.versions or other.versions
    manifest.save(output)
    return taken
