"""Rivals of ReSA behind the same interface, one file each: a file dropped in here is imported and so registered."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f".{_module.name}", __name__)
