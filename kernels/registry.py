"""Classes by name: the decorator by which methods and chunk kernels make themselves known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=type[Any])

SELECTORS: dict[str, Any] = {}
"""Selectors by name (selectors/base.py), here so that a setting can name them."""


def entry(registry: dict[str, C], kind: str, name: str) -> Callable[[C], C]:
    """Class decorator: enter a class into `registry` by `name`, which becomes its attribute `name`.

    A class may be entered again under its own name: a file that is run twice defines it anew.

    Raises:
        ValueError: another class has that name; `kind` says of what.
    """

    def add(cls: C) -> C:
        if registry.get(name, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"{kind} {name!r} is registered already, by {registry[name].__qualname__}")
        cls.name = name
        registry[name] = cls
        return cls

    return add
