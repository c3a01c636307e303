"""Where versions of transformers differ: 5.24 renamed `past_key_values` to `cache`, and 5.40 drops the old name."""

from __future__ import annotations

import inspect
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")


def cache_name(model: Any) -> str:
    """What this model's forward calls its cache. Raises ValueError for a forward that takes none."""
    parameters = inspect.signature(model.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise ValueError(f"model: {type(model).__name__}.forward takes neither {' nor '.join(CACHE_NAMES)}")


def take_cache(options: dict[str, Any]) -> Any:
    """Remove the cache from keyword arguments, under whichever name; None where there is none."""
    given = [options.pop(name) for name in CACHE_NAMES if options.get(name) is not None]
    for name in CACHE_NAMES:
        options.pop(name, None)
    return given[0] if given else None


def cache_of(output: Any) -> Any:
    """The cache that a forward or `generate(return_dict_in_generate=True)` returned, under whichever name."""
    return next((output[name] for name in CACHE_NAMES if name in output), None)
