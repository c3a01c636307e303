"""Chat templates rendered by the rules of transformers, in a process with limits of time and memory."""

from __future__ import annotations

import atexit
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache

from .line_server import LineProcess

LIMIT_S = 5.0  # for one prompt, which takes a millisecond
COMMAND = (sys.executable, "-m", "resa_bench.suites.model.template_process")


@cache
def _process() -> LineProcess:
    """The process of all templates, kept from prompt to prompt."""
    process = LineProcess(COMMAND, LIMIT_S)
    atexit.register(process.stop)
    return process


def render_template(template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    """The text of `messages` (objects with `role` and `content`) up to where the model's answer begins.

    Args:
        template: jinja, as it comes with a model.
        messages: the talk so far.
        tokens: texts of special tokens by name (`bos_token`, `pad_token`); a name that is absent is undefined.

    Raises:
        ValueError: the template is wrong, refuses the messages, or takes more than the limits.
    """
    values = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **tokens}
    reply = _process().ask(json.dumps([template, values]))
    if reply is None:
        raise ValueError(f"the model's chat template cannot be rendered: it takes more than {LIMIT_S:g} s")
    if not reply:
        raise ValueError("the model's chat template cannot be rendered: it takes too much memory")
    rendered, error = json.loads(reply)
    if rendered is None:
        raise ValueError(f"the model's chat template cannot be rendered: {error}")
    return rendered
