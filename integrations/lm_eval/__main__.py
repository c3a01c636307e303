"""`lm_eval` that knows the model `resa` and our tasks: its command line, with `--include_path` where none is given."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from . import TASKS, model  # noqa: F401  (registers the model)


def lm_eval() -> None:
    """Run lm_eval's command line."""
    if "--include_path" not in sys.argv and "--tasks" in sys.argv:
        sys.argv += ["--include_path", str(TASKS)]
    cli_evaluate()


if __name__ == "__main__":
    lm_eval()
