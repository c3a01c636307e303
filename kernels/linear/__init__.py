"""A model's linear layers and rotary embedding for few rows: 16-, 8- and 4-bit weights, each beside its reference."""

from .dispatch import linear, linear_reference

__all__ = ["linear", "linear_reference"]
