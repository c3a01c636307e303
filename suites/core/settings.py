"""Every setting of a method, declared once: those of a step (kernels/config.py), and those of a whole model.

A flag, a column, its place in a row's identity and the word that names a variant all derive from these entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...kernels.config import SETTINGS as STEP_SETTINGS
from ...kernels.config import SUMMARY_DTYPES, SUMMARY_KINDS
from ...kernels.setting import Setting

MODEL_SETTINGS = {
    entry.name: entry
    for entry in (
        Setting(
            name="dense_layers", default=None, kind=int, flag="--dense-layers", symbol="N", least=0, most=1024,
            help="first layers of a model that stay dense", word="{} dense layers",
        ),
        Setting(
            name="draft_length", default=None, kind=int, flag="--draft-length", symbol="m", least=1, most=256,
            help="tokens that lossless decoding drafts a round", word="m{}",
        ),
    )
}  # fmt: skip
"""Settings of a method in a whole model; what has none leaves the column empty."""

SETTINGS: dict[str, Setting] = {
    name: entry for name, entry in (STEP_SETTINGS | MODEL_SETTINGS).items() if entry.flag or entry.role
}
"""All settings that are columns, by name, in the order of columns."""

SELECTION = tuple(name for name, entry in SETTINGS.items() if entry.role)
"""The settings that change which blocks are read."""

SUMMARIES = (*SUMMARY_KINDS, *(f"{kind}-{dtype}" for dtype in SUMMARY_DTYPES for kind in SUMMARY_KINDS))


def summary_settings(name: str) -> dict[str, Any]:
    """One of SUMMARIES as the two settings that it stands for."""
    kind, _, dtype = name.partition("-")
    return {"summary_kind": kind, "summary_dtype": dtype or None}


def filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What columns hold of these settings: empty where a value says nothing."""
    values = {}
    for name, value in settings.items():
        entry = SETTINGS[name]
        needs = entry.only_with
        idle = needs is not None and settings.get(needs[0], needs[1]) != needs[1]
        values[name] = None if idle or value == entry.blank else value
    return values
