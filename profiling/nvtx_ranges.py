"""Ranges as NVTX ranges of one domain, for Nsight Systems and Nsight Compute.

Each name's annotation is built once; a range opened is one push and one pop, with a payload: the context of a step, the
number of a layer, the blocks that a stage selects or reads.
"""

from __future__ import annotations

from typing import Any

from .ranges import SPANS, Blocks, Open, Span

DOMAIN = "resa"


class _Range:
    """One prebuilt range. Ranges of a name do not nest, so one object serves them all."""

    __slots__ = ("_attributes", "_domain")

    def __init__(self, domain: Any, attributes: Any) -> None:
        self._domain, self._attributes = domain, attributes

    def with_payload(self, value: int | None) -> _Range:
        """Itself, with the number that its next opening carries."""
        if self._attributes is not None:  # None where no tool is attached
            self._attributes.payload = value
        return self

    def __enter__(self) -> None:
        self._domain.push_range(self._attributes)

    def __exit__(self, *_: object) -> None:
        self._domain.pop_range()


class NvtxRanges:
    """A listener (`profiling.ranges`) that opens NVTX ranges."""

    def __init__(self) -> None:
        """Raises ImportError without the `nvtx` package."""
        import nvtx

        self._domain = nvtx.get_domain(DOMAIN)
        self._spans: dict[str, _Range] = {name: self._build(name, "span") for name in SPANS}
        self._stages: dict[str, _Range] = {}
        self._context: int | None = None

    def _build(self, name: str, category: str) -> _Range:
        attributes = self._domain.get_event_attributes(message=name, category=category, color=None)
        return _Range(self._domain, attributes)

    def stage(self, name: str, blocks: Blocks | None) -> Open:
        """The stage's range; its payload is `blocks` of the context of the step around it, in tokens."""
        opened = self._stages.get(name)
        if opened is None:
            opened = self._stages[name] = self._build(name, "stage")
        if blocks is None or self._context is None:
            return opened.with_payload(None)
        return opened.with_payload(blocks(self._context))

    def span(self, name: Span, value: int | None) -> Open:
        """The span's range; `value` is its payload: the context in tokens, or a layer's number."""
        if name != "layer":
            self._context = value
        return self._spans[name].with_payload(value)
