"""The page itself: one HTML file that asks nothing of a network, in which rows are data and never markup."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .payload import payload

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "dom.js", "format.js", "data.js", "marks.js", "tooltip.js", "chart.js", "table.js", "filters.js",
    "head.js", "speed.js", "stages.js", "timeline.js", "quality.js", "compare.js", "rows.js", "main.js",
)  # fmt: skip
"""One script in this order: a file uses what files before it declare."""


def write_report(paths: Sequence[Path], output: Path) -> Path:
    """Write the page of result files, at once or not at all, and make its folder if need be.

    Raises:
        FileNotFoundError: no such file. ValueError: a file that is no result file.
    """
    page = render(payload(paths))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".part")
    temporary.write_text(page, encoding="ascii")
    temporary.replace(output)
    return output


def render(data: dict[str, Any]) -> str:
    """The page of a payload, ASCII."""
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    parts = {"policy": _policy(script, style), "style": style, "data": as_data(data), "script": script}
    before, *slots = _asset("page.html").split("{{")
    page = [before]
    for slot in slots:  # once over: what was put in is not looked into
        name, _, after = slot.partition("}}")
        page += [parts[name], after]
    return "".join(page)


def as_data(data: Any) -> str:
    """JSON that ends no script element and opens no comment, whatever strings it holds; ASCII."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="ascii")


def _policy(script: str, style: str) -> str:
    """Content-Security-Policy: this script and this style by their hashes, no request at all."""

    def sha256(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    rules = {
        "default-src": "'none'", "script-src": sha256(script), "style-src": sha256(style), "base-uri": "'none'",
        "form-action": "'none'",
    }  # fmt: skip
    return "; ".join(f"{name} {value}" for name, value in rules.items())
