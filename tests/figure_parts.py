"""What tests of figures ask of a figure: its words, its lines' names, whether all of it can be read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from resa_bench.plots.style import END_LABEL, SMALL_PT


def texts(fig: Figure) -> str:
    """Title, legend, ends of lines and caption of a figure, on one line."""
    legend = [text.get_text() for box in fig.legends for text in box.get_texts()]
    words = [*legend, *(label for i in range(len(fig.axes)) for label in labels(fig, i))]
    words += [text.get_text() for text in fig.texts]
    return " ".join(" ".join(words).replace("\u00a0", " ").split())


def labels(fig: Figure, panel: int = 0) -> list[str]:
    """The names at the ends of a panel's lines."""
    return [text.get_text() for text in fig.axes[panel].texts if text.get_gid() == END_LABEL]


def bars(ax: Axes) -> list[Rectangle]:
    """The bars of a panel."""
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def points(line: Line2D) -> list[tuple[float, float]]:
    """What a line goes through."""
    xs, ys = (np.asarray(values, dtype=float).tolist() for values in line.get_data())
    return list(zip(xs, ys, strict=True))


def readable(fig: Figure) -> None:
    """Nothing lies outside the figure or over something else, and all type can be read."""
    fig.draw_without_rendering()
    panels = [ax for ax in fig.axes if ax.get_visible()]
    heading, words = fig.texts
    tight = [box for ax in panels if (box := ax.get_tightbbox()) is not None]
    extents = [artist.get_window_extent() for artist in (heading, words, *fig.legends)]
    for extent in (*extents, *tight):  # pixels
        assert min(extent.x0, extent.y0) >= -1
        assert extent.x1 <= fig.bbox.x1 + 1
        assert extent.y1 <= fig.bbox.y1 + 1
    assert extents[0].y0 >= max(e.y1 for e in tight) - 1
    assert max(e.y1 for e in extents[1:]) <= min(e.y0 for e in tight) + 1
    texts = [*words.figure.texts, *(t for box in fig.legends for t in box.get_texts())]
    texts += [t for ax in panels for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts)]
    assert min(float(text.get_fontsize()) for text in texts) >= SMALL_PT
    for ax in panels:
        ends = sorted(text.get_window_extent().y0 for text in ax.texts if text.get_gid() == END_LABEL)
        boxes = sorted((Text.get_window_extent(t) for t in ax.texts if t.get_gid() == END_LABEL), key=lambda b: b.y0)
        assert len(ends) <= 5
        assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
        assert crossed(ax) == []


def crossed(ax: Axes) -> list[tuple[str, str]]:
    """Names at points or lines' ends whose thin line runs through another name, and that name. After drawing."""
    names = [text for text in ax.texts if isinstance(text, Annotation)]
    pairs = []
    for name in names:
        if name.arrow_patch is None:
            continue
        line = name.arrow_patch.get_transform().transform_path(name.arrow_patch.get_path())
        for other in names:
            box = Text.get_window_extent(other).padded(-1)
            if other is not name and line.intersects_bbox(box, filled=False):
                pairs.append((name.get_text(), other.get_text()))
    return pairs
