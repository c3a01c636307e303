"""How methods look and what figures call them: one table, so that Quest is one colour everywhere."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .spec import Variant, is_dense

# Okabe and Ito's palette, which colour-blind readers tell apart.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
DARK_RED = "#8E1B00"  # nearly VERMILLION's hue, darker: of `resa`, and of the one kernel, which it is in most cases
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
VIOLET, OLIVE = "#5D3A9B", "#8A7A00"  # beyond that palette
GREY, DARK_GREY, LIGHT_GREY = "#777777", "#444444", "#BBBBBB"
SOLID, DASHED, DASHDOT, DOTTED = "-", (0, (4, 1.5)), (0, (5, 1.2, 1, 1.2)), (0, (1, 1.2))


@dataclass(frozen=True, slots=True)
class Look:
    """Colour, marker and line of a method, and its name in figures."""

    colour: str
    marker: str
    linestyle: Any = SOLID
    title: str = ""


LOOKS = {
    "resa": Look(DARK_RED, "o", SOLID, "ReSA"),
    "resa-chain": Look(VERMILLION, "o", SOLID, "ReSA (chain)"),
    "resa-torch": Look(VERMILLION, "o", SOLID, "ReSA (torch)"),
    "resa-fused": Look(DARK_RED, "D", SOLID, "ReSA (one kernel)"),
    "resa-plus": Look(VIOLET, "o", DASHED, "ReSA plus"),
    "resa-authors": Look(PURPLE, "*", DASHED, "ReSA (authors)"),
    "resa-lossless": Look(GREEN, "h", DASHDOT, "ReSA lossless"),
    "sparse": Look(ORANGE, ">", DASHED, "sparse only"),
    "quest": Look(BLUE, "v", DASHED, "Quest"),
    "retro": Look(PURPLE, "p", DASHDOT, "RetroAttention"),
    "retro-cached": Look(PURPLE, "h", DOTTED, "RetroAttention (cached query)"),
    "sink-window": Look(SKY, "X", DASHDOT, "sink + window"),
    "snapkv": Look(OLIVE, "s", DOTTED, "SnapKV"),
    "r-kv": Look(OLIVE, "v", DOTTED, "R-KV"),
    "oracle": Look(GREEN, "P", DASHDOT, "oracle top-k"),
    "sdpa-cudnn": Look(BLACK, "o", SOLID, "cuDNN (SDPA)"),
    "sdpa-flash": Look(GREY, "v", DASHDOT, "SDPA flash"),
    "flash-attn-2": Look(GREY, "^", DASHED, "FlashAttention 2"),
    "flash-attn-3": Look(DARK_GREY, "s", DASHED, "FlashAttention 3"),
    "flashinfer": Look(DARK_GREY, "D", DASHDOT, "FlashInfer"),
    "triton-dense": Look("#999999", "P", DOTTED, "Triton dense"),
    "cuda-dense": Look("#666666", "X", DOTTED, "CUDA dense"),
    "torch-dense": Look(GREY, "d", DOTTED, "torch dense"),
}
TITLES = {method: look.title for method, look in LOOKS.items()}
_SPARE = (BLUE, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = "osD^v<>phX"  # each of them can be drawn hollow
_SHADES = (-0.4, 0.4, -0.65, 0.55, -0.2, 0.2)


def look_of(method: str) -> Look:
    """The look of a method; of one that the table does not hold, fixed by its name: dense ones are grey."""
    if method in LOOKS:
        return LOOKS[method]
    number = zlib.crc32(method.encode())
    colour = GREY if is_dense(method) else _SPARE[number % len(_SPARE)]
    return Look(colour, _MARKERS[number % len(_MARKERS)], DASHED, method)


def looks(variants: Iterable[Variant]) -> dict[Variant, Look]:
    """A look for each: the method's colour and line; its further variants are shades of it, with other markers."""
    chosen: dict[Variant, Look] = {}
    seen: Counter[str] = Counter()
    for variant in variants:
        look, again = look_of(variant.method), seen[variant.method]
        seen[variant.method] += 1
        if again:
            others = [marker for marker in _MARKERS if marker != look.marker]
            colour = shade(look.colour, _SHADES[(again - 1) % len(_SHADES)])
            look = replace(look, colour=colour, marker=others[(again - 1) % len(others)])
        chosen[variant] = look
    return chosen


def shade(colour: str, towards_white: float) -> str:
    """A `#RRGGBB` colour of the same hue: that share of white, or where it is negative of black, mixed in."""
    end = 255 if towards_white > 0 else 0
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(channel + (end - channel) * abs(towards_white)):02X}" for channel in channels)
