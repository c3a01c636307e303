"""From the parts' folders to published files and back: one compressed file a suite, cut by the manifest's counts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from ..core.manifest import Manifest, PartRecord, Sources, file_entry, is_intact
from ..core.results import read_file
from ..core.rows import to_record
from .parts import Step


def lines_of(step: Step, work: Path) -> list[bytes]:
    """The rows that a part has left, as lines; whole cases alone."""
    folder = work / step.name
    if step.part.rows is not None:
        rows = step.part.rows(folder)
    else:
        path = step.results(work)
        rows = read_file(path).rows if path.is_file() else []
    return [json.dumps(to_record(row), allow_nan=False).encode() + b"\n" for row in rows]


def published_lines(manifest: Manifest, output: Path, file: str) -> dict[str, list[bytes]]:
    """The lines of a published file by part; empty where the file is not what the manifest says."""
    if not is_intact(manifest, output, file):
        return {}
    lines = gzip.decompress((output / file).read_bytes()).splitlines(keepends=True)
    cut, start = {}, 0
    for name, record in manifest.parts.items():
        if record.file == file:
            cut[name] = lines[start : start + record.rows]
            start += record.rows
    return cut


def write_published(output: Path, file: str, lines: list[bytes]) -> None:
    """Write a compressed file; equal rows give equal bytes."""
    output.mkdir(parents=True, exist_ok=True)
    partial = output / f".{file}.part"
    partial.write_bytes(gzip.compress(b"".join(lines), compresslevel=9, mtime=0))
    partial.replace(output / file)


def publish(
    manifest: Manifest, output: Path, name: str, record: PartRecord, lines: list[bytes], order: Iterable[Step] = ()
) -> None:
    """A part's rows in place of its earlier ones; other parts' rows of the same file stay. The manifest is not saved.

    Args:
        order: all parts, in the order in which files hold them; unknown ones come last.
    """
    held = published_lines(manifest, output, record.file) | {name: lines}
    parts = manifest.parts | {name: record}
    lost = [part for part, other in parts.items() if other.file == record.file and part not in held]
    for part in lost:  # their file was changed or removed by another hand
        del parts[part]
    names = [*(step.name for step in order), *parts]
    manifest.parts = {part: parts[part] for part in dict.fromkeys(names) if part in parts}
    own = [part for part, other in manifest.parts.items() if other.file == record.file]
    write_published(output, record.file, [line for part in own for line in held[part]])
    manifest.files[record.file] = file_entry(output / record.file)


def publish_kept(step: Step, work: Path, output: Path, manifest: Manifest) -> None:
    """Copy the files that a part keeps; tables are compressed."""
    target = output / step.owner / step.part.name
    for name in step.part.keeps:
        source = work / step.name / name
        if not source.is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        data, path = source.read_bytes(), target / name
        if path.suffix == ".csv":
            data, path = gzip.compress(data, compresslevel=9, mtime=0), path.with_name(name + ".gz")
        path.write_bytes(data)
        manifest.files[path.relative_to(output).as_posix()] = file_entry(path)


def restore(step: Step, manifest: Manifest, sources: Sources, output: Path, work: Path) -> None:
    """Put a part's published rows where its command looks for what is done: another machine goes on from there."""
    record, path = manifest.parts.get(step.name), step.results(work)
    if record is None or record.sources != sources or step.part.rows is not None or path.exists():
        return
    lines = published_lines(manifest, output, record.file).get(step.name, [])
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(lines))
