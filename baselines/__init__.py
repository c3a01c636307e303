"""Rivals of ReSA behind the same interface, one file each. Importing this package registers them all."""

from . import authors, flash_attn_2, flash_attn_3, flashinfer, oracle, quest, sdpa, sink_window

__all__ = ["authors", "flash_attn_2", "flash_attn_3", "flashinfer", "oracle", "quest", "sdpa", "sink_window"]
