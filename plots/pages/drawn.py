"""Figures of the pages: drawn from result files, and checked to be what these give.

Beside the figures of a folder lies `figures.json`: the hash of the rows they were drawn from, the version of
matplotlib, and each figure's own hash. A figure is as its rows give it if these hashes hold. Where the
version of matplotlib is the pinned one, the figures are drawn again as well: a change of the drawing code shows, too.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.image import imread

from ..figures import draw_all, result_files
from ..timeline import draw_timeline

STAMP = "figures.json"
SEEN = 2 / 255
"""Mean difference of two images' values, up to which they look the same: rounding differs between machines."""


def content_hash(paths: Sequence[Path]) -> str:
    """Of the content of files, however they are compressed."""
    digest = sha256()
    for path in paths:
        data = path.read_bytes()
        digest.update(gzip.decompress(data) if path.suffix == ".gz" else data)
    return digest.hexdigest()


def inputs(entry: Mapping[str, Any], root: Path) -> list[Path]:
    """The files that a set of figures is drawn from: those of its list, or the trace's, that are there."""
    if "trace" in entry:
        return [path for path in _trace(entry, root) if path.is_file()]
    paths = [root / path for path in entry["from"] if (root / path).exists()]
    return result_files(paths)


def _trace(entry: Mapping[str, Any], root: Path) -> tuple[Path, Path]:
    return root / entry["trace"] / "timeline.csv.gz", root / entry["trace"] / "facts.json"


def draw_into(entry: Mapping[str, Any], root: Path, folder: Path) -> list[Path]:
    """Draw a set in a folder; of its figures those that `keep` names, where it is given."""
    if "trace" in entry:
        return draw_timeline(*_trace(entry, root), folder / "timeline")
    drawn = draw_all(inputs(entry, root), folder)
    kept = [path for path in drawn if any(fnmatch(path.name, pattern) for pattern in entry.get("keep", ["*"]))]
    for path in set(drawn) - set(kept):
        path.unlink()
    return kept


def stamp(folder: Path, sources: Sequence[Path], root: Path) -> dict[str, Any]:
    """What `figures.json` says of the figures that lie in a folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".svg"))
    return {
        "rows": content_hash(sources),
        "from": [path.relative_to(root).as_posix() for path in sources],
        "matplotlib": matplotlib.__version__,
        "files": {path.name: sha256(path.read_bytes()).hexdigest() for path in files},
    }


def draw(entry: Mapping[str, Any], root: Path) -> list[Path]:
    """Draw a set anew in place of all figures that its folder holds, and stamp it; nothing where it has no input."""
    folder, sources = root / entry["folder"], inputs(entry, root)
    if not sources:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in (".png", ".svg"):
            path.unlink()
    drawn = draw_into(entry, root, folder)
    (folder / STAMP).write_text(json.dumps(stamp(folder, sources, root), indent=1) + "\n")
    return drawn


def faults(entry: Mapping[str, Any], root: Path) -> list[str]:
    """What is not as the rows of a set give it, by the hashes alone."""
    folder = root / entry["folder"]
    name = entry["folder"]
    if not inputs(entry, root):
        return []
    if not (folder / STAMP).is_file():
        return [f"{name}: has no {STAMP}; nox -s docs draws the figures and writes it"]
    held, now = json.loads((folder / STAMP).read_text()), stamp(folder, inputs(entry, root), root)
    changed = [f"{name}: the rows have changed since the figures were drawn"] if held["rows"] != now["rows"] else []
    for file in sorted(held["files"].keys() | now["files"].keys()):
        if held["files"].get(file) != now["files"].get(file):
            changed.append(f"{name}/{file}: not the file that was drawn")
    return changed


def redrawn_faults(entry: Mapping[str, Any], root: Path) -> list[str]:
    """Which figures the code of today draws otherwise; needs the pinned matplotlib."""
    folder = root / entry["folder"]
    if not inputs(entry, root):
        return []
    with tempfile.TemporaryDirectory() as temporary:
        drawn = {path.name: path for path in draw_into(entry, root, Path(temporary)) if path.suffix == ".png"}
        there = {path.name: path for path in folder.glob("*.png")}
        return [
            f"{entry['folder']}/{name}: not what the rows and the code give"
            for name in sorted(drawn.keys() | there.keys())
            if name not in drawn or name not in there or not look_alike(drawn[name], there[name])
        ]


def look_alike(a: Path, b: Path) -> bool:
    """Whether two PNG files are the same bytes, or images that nobody tells apart."""
    if a.read_bytes() == b.read_bytes():
        return True
    first, second = imread(a), imread(b)
    return first.shape == second.shape and float(np.abs(first - second).mean()) <= SEEN


def is_pinned(root: Path) -> bool:
    """Whether matplotlib is the version of constraints.txt."""
    pin = re.search(r"^matplotlib==(\S+)$", (root / "constraints.txt").read_text(), flags=re.MULTILINE)
    return pin is not None and pin[1] == matplotlib.__version__
