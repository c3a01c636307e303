"""Modules of a user's own: methods, models, metrics, figures and suites that register themselves when imported.

`RESA_BENCH_PLUGINS` names modules, or Python files, separated by commas; every process of a run imports them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

VARIABLE = "RESA_BENCH_PLUGINS"


def load_plugins() -> list[str]:
    """Import what the variable names, each once; their names.

    Raises:
        ValueError: a module that is not there, or that cannot be imported.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        try:
            _load(name)
        except Exception as error:
            raise ValueError(f"{VARIABLE}: {name} cannot be imported ({type(error).__name__}: {error})") from error
    return names


def _load(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).resolve()
    if path.stem in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
