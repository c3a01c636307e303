"""Rival matrix products of few rows; importing this registers them. Libraries are imported when they are bound."""

from . import gemlite, humming, marlin, torch_products

__all__ = ["gemlite", "humming", "marlin", "torch_products"]
