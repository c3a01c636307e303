"""`nox -s docs`: fill in the marked places of README and docs, and draw their figures; `--check` changes nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .drawn import draw, faults, is_pinned, redrawn_faults
from .pages import check_pages, fill_pages, read_places

HELP = """Without --check: draws the figures whose rows or files have changed (--figures: all of them), and fills in
every marked place. docs/places.toml says what stands where."""


def docs(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is as the rows give it, 1 it is not, 2 a place cannot be filled in."""
    parser = argparse.ArgumentParser(prog="nox -s docs --", description=__doc__, epilog=HELP)
    parser.add_argument(
        "--check", action="store_true", help="say what differs from the rows; exit status 1 if anything"
    )
    parser.add_argument("--figures", action="store_true", help="draw all figures anew; with --check compare them all")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the project's folder (default: here)")
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    try:
        places = read_places(root)
        sets = places.entries.get("figures", {}).values()
        if not given.check:
            for entry in sets:
                if given.figures or faults(entry, root):
                    for path in draw(entry, root):
                        print(path.relative_to(root))
            changed = fill_pages(places)
            print("\n".join(f"filled in {page.relative_to(root)}" for page in changed) or "pages: nothing changed")
        differences = check_pages(places) + [fault for entry in sets for fault in faults(entry, root)]
        if given.check and not differences and (given.figures or is_pinned(root)):
            differences += [fault for entry in sets for fault in redrawn_faults(entry, root)]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for fault in differences:
        print(fault, file=sys.stderr)
    if not differences:
        print("pages and figures are as their rows give them")
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(docs())
