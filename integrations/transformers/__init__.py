"""Sparse decoding inside `transformers`: `attach(model, "resa")`, then `model.generate` as ever.

The prompt is dense, every step after it is the method's, and a method that rectifies does so every f tokens. Keys and
values live in this project's caches, once. What cannot be served is refused by name (`kernels.Unsupported`).
"""

from .adapter import Adapter, attach, detach
from .cache import SparseCache

__all__ = ["Adapter", "SparseCache", "attach", "detach"]
