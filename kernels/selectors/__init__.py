"""What chooses the blocks of a sparse step: one file a selector; a file dropped in here is imported and so registered.

`--selector` names one for every method that scores blocks. Selectors from outside: `register_selector`.
"""

from importlib import import_module
from pkgutil import iter_modules

from .base import Blocks, Compare, Following, Selector, best, register_selector, selector_of, selectors

for _module in iter_modules(__path__):
    import_module(f".{_module.name}", __name__)

__all__ = ["Blocks", "Compare", "Following", "Selector", "best", "register_selector", "selector_of", "selectors"]
