"""The process that renders chat templates: `[template, values]` a line on stdin, `[rendered, error]` on stdout.

Templates are programs that come with models. They run in jinja's sandbox, set up as transformers sets it up
(utils/chat_template_utils.py), and in a process whose time and memory are limited, which the sandbox does not do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .line_server import serve

MEMORY_BYTES = 2**29  # address space, of which Python and jinja take 0.1 x 2^30
MOST_CHARS = 2**24  # of a rendered prompt
MESSAGE_CHARS = 200


class Generation(Extension):
    """`{% generation %}`, which marks an answer for training, as the plain text that it holds."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements between the tags."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)]

    def _text(self, caller: Any) -> str:
        return caller()


class Dictionary:
    """`dict` without the methods and attributes of the class."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, *keys: Any) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(*keys)


class Namespace(jinja2.utils.Namespace):
    """jinja's own, without names that begin with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:  # `namespace(self=...)` is a template's right
        values = dict(*args[1:], **named)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace's {name!r} begins with an underscore")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers has it: jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox with transformers' tags, filters and functions."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    sandbox.globals["dict"] = Dictionary()
    sandbox.globals["namespace"] = Namespace
    return sandbox


def render(template: str, values: Mapping[str, Any]) -> tuple[str | None, str]:
    """The template's text with these values, and an empty error; or None and what is wrong with the template."""
    try:
        parts, length = [], 0
        for part in environment().from_string(template).generate(**values):
            parts.append(part)
            length += len(part)
            if length > MOST_CHARS:
                return None, f"it writes more than {MOST_CHARS} characters"
        return "".join(parts), ""
    except (MemoryError, RecursionError) as error:
        return None, "it takes too much memory" if isinstance(error, MemoryError) else "it is nested too deeply"
    except Exception as error:  # what a template does wrong may raise anything
        text = " ".join(str(error).split())
        return None, (text or type(error).__name__)[:MESSAGE_CHARS]


def serve_templates() -> None:
    """Serve until stdin ends."""
    render("{{ a }}", {"a": 1})  # imports, before the clock of the first request runs
    serve(sys.stdin, lambda line: json.dumps(render(*json.loads(line))), MEMORY_BYTES)


if __name__ == "__main__":
    serve_templates()
