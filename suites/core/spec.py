"""A method with its settings, and what follows from both: its columns, its name, who runs where."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ...kernels import (
    AttentionShape,
    DecodeMethod,
    ResaFused,
    SparseConfig,
    get_method,
    registered,
)
from ...kernels.config import SETTINGS as STEP_SETTINGS
from .settings import MODEL_SETTINGS, SETTINGS, filled

DEFAULTS = SparseConfig()
PINNED: dict[str, Any] = {"pinned_blocks": 1}  # the attention sink's block is always read


@dataclass(frozen=True, slots=True)
class Variant:
    """A method and the settings that make a difference to it, as columns hold them; what one line of a table is."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()  # in the order of SETTINGS, those that are not empty

    @classmethod
    def make(cls, method: str, columns: Mapping[str, Any]) -> Variant:
        """Of a method's columns."""
        return cls(method, tuple((n, columns[n]) for n in SETTINGS if columns.get(n) is not None))

    def get(self, name: str) -> Any:
        """The value of a setting; None where it has none."""
        return dict(self.settings).get(name)

    @property
    def is_dense(self) -> bool:
        """Whether everything is read; of a method that is not here any more, whether it had no blocks."""
        kind = registered().get(self.method)
        return kind.is_dense if kind is not None else self.get("block_size") is None


class HasVariant(Protocol):
    """What has a variant: rows, records of answers, specs."""

    @property
    def variant(self) -> Variant: ...


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method by its registered name, with the settings it runs at."""

    name: str
    config: SparseConfig = field(default_factory=SparseConfig)
    dense_layers: int | None = None  # first layers of a model that stay dense, where the method has such
    draft_length: int | None = None  # tokens that lossless decoding drafts a round

    def __post_init__(self) -> None:
        for name, entry in MODEL_SETTINGS.items():
            entry.check(getattr(self, name))

    @property
    def kind(self) -> type[DecodeMethod]:
        """The registered class. Raises KeyError."""
        return get_method(self.name)

    def columns(self) -> dict[str, Any]:
        """The columns that tell this variant from others: only settings that the method uses."""
        columns = filled({name: getattr(self.config, name) for name in self.kind.uses if name in SETTINGS})
        further = {name: getattr(self, name) for name in MODEL_SETTINGS}
        return columns | {name: value for name, value in further.items() if value is not None}

    @property
    def variant(self) -> Variant:
        """What rows of this spec have in common."""
        return Variant.make(self.name, self.columns())

    @property
    def label(self) -> str:
        """`resa b16`, `quest b16 per-head`: what a person reads."""
        return variant_name(self.variant)

    @property
    def is_dense(self) -> bool:
        """Whether everything is read."""
        return self.kind.is_dense

    @property
    def rectifies(self) -> bool:
        """Whether a dense pass corrects the last tokens every f of them."""
        return "rectify_every" in self.kind.uses

    @property
    def window(self) -> int:
        """Tokens of each sequence that a step runs."""
        return self.config.window if "window" in self.kind.uses else 1

    @property
    def period(self) -> int:
        """Tokens of a period: f, for methods without rectification too, so that all time the same steps.

        Of lossless decoding, the most that a round yields.
        """
        return self.config.rectify_every if self.draft_length is None else self.draft_length + 1


def make_spec(name: str, base: SparseConfig = DEFAULTS, /, **settings: Any) -> MethodSpec:
    """A method as its name alone means, over `base`, then at the settings given (of a step or of a whole model).

    Raises:
        KeyError: no such method. ValueError: no such setting, or a value out of range.
    """
    for unknown in settings.keys() - STEP_SETTINGS.keys() - MODEL_SETTINGS.keys():
        known = ", ".join((*STEP_SETTINGS, *MODEL_SETTINGS))
        raise ValueError(f"{unknown}: no setting of a method; settings are {known}")
    own = {**default_settings(name), **settings}
    step = {n: value for n, value in own.items() if n in STEP_SETTINGS}
    budgets = (n for n, entry in STEP_SETTINGS.items() if entry.role == "budget" and n not in get_method(name).uses)
    step |= dict.fromkeys(budgets)  # else a base's budget would take the place of this method's ratio
    return MethodSpec(name, replace(base, **step), **{n: own[n] for n in MODEL_SETTINGS if n in own})


def rival_notes(specs: Iterable[MethodSpec]) -> list[str]:
    """What is said before a run of methods none of which is dense."""
    if any(spec.is_dense for spec in specs):
        return []
    return ["no dense method is among these: rows have no speed-up; name one, too, for them to be compared in a run"]


def unique(specs: Iterable[MethodSpec]) -> list[MethodSpec]:
    """Each variant once, in order, as it came first."""
    first: dict[Variant, MethodSpec] = {}
    for spec in specs:
        first.setdefault(spec.variant, spec)
    return list(first.values())


def default_settings(method: str) -> dict[str, Any]:
    """What a method's name alone means beyond SparseConfig's defaults; empty for one that is not here any more."""
    return dict(registered()[method].defaults) if method in registered() else {}


def is_dense(method: str) -> bool:
    """Whether a method by this name is known to read everything."""
    return method in registered() and registered()[method].is_dense


def steps_of(method: str) -> str:
    """The method whose steps this one computes: its own name, or that of which it is another form."""
    kind = registered().get(method)
    return (kind.steps_like if kind is not None else None) or method


def resa_here(device: torch.device) -> str:
    """ReSA's form that runs on a device."""
    return "resa" if device.type == "cuda" else "resa-torch"


def other_ways(shape: AttentionShape, specs: Iterable[MethodSpec], device: torch.device) -> list[MethodSpec]:
    """The way that `resa` does not take on a shape, at each setting at which `specs` hold `resa`; none on a CPU.

    Default lists time it beside `resa`: rows then show whether the rule holds, and no kernel is timed twice.
    """
    if device.type != "cuda":
        return []
    able = not torch.cuda.is_available() or ResaFused.unavailable(shape, torch.bfloat16, device) is None
    other = "resa-chain" if able else "resa-fused"
    return [replace(spec, name=other) for spec in specs if spec.name == "resa"]


def dense_here(device: torch.device) -> str:
    """The dense method of ours that follows a growing text on a device."""
    return "triton-dense" if device.type == "cuda" else "torch-dense"


def runs_by_default(kind: type[DecodeMethod], suite: str, device: torch.device) -> bool:
    """Whether a method joins a suite's default list on this device."""
    return kind.in_default and suite in kind.joins and kind.device_type in (None, device.type)


def joining(suite: str, device: torch.device, listed: Iterable[MethodSpec], base: SparseConfig) -> list[MethodSpec]:
    """Sparse methods that join a default list which does not name them: each as its name alone means."""
    present = {steps_of(spec.name) for spec in listed} | {spec.name for spec in listed}
    return [
        make_spec(name, base)
        for name, kind in registered().items()
        if not kind.is_dense and name not in present and runs_by_default(kind, suite, device)
    ]


# ---- names of variants


def _words(variant: Variant, also: Collection[str] = ()) -> list[str]:
    """The settings that a name says: always, where they differ from what the method's name means, and `also`."""
    kind = registered().get(variant.method)
    always = kind.named if kind is not None else ("block_size",)
    meant = default_settings(variant.method)
    words = []
    for name, value in variant.settings:
        entry = SETTINGS[name]
        differs = value != meant.get(name, entry.default) and not entry.quiet
        if entry.word and (name in always or name in also or differs):
            words.append(entry.word.format(value))
    return words


def variant_name(variant: Variant, also: Collection[str] = (), title: str | None = None) -> str:
    """`resa b16 f64`: the method (or its title) and the settings that differ from what its name means.

    Args:
        also: settings that are named whatever their value.
    """
    return " ".join([title or variant.method, *_words(variant, also)])


class Names:
    """Names of variants side by side: the only namer of tables, figures and comparisons.

    A number that one of a method's variants names, all of them name. Where two variants would have one name, the
    settings that differ are added.
    """

    def __init__(self, rows: Iterable[HasVariant], titles: Mapping[str, str] | None = None) -> None:
        """`titles`: of methods, in place of their registered names."""
        titles = titles or {}
        variants = list(dict.fromkeys(row.variant for row in rows))
        self._names: dict[Variant, str] = {}
        for method in dict.fromkeys(v.method for v in variants):
            group = [v for v in variants if v.method == method]
            numbers = {
                name
                for name, entry in SETTINGS.items()
                if entry.kind is not str and not entry.quiet and len({v.get(name) for v in group}) > 1
            }
            plain = {v: variant_name(v, numbers) for v in group}
            for v in group:
                alike = [other for other in group if plain[other] == plain[v]]
                differing = {n for n in SETTINGS if len({other.get(n) for other in alike}) > 1}
                self._names[v] = variant_name(v, numbers | differing, titles.get(method))

    def __getitem__(self, row: HasVariant) -> str:
        return self._names[row.variant]

    def of(self, variant: Variant) -> str:
        """The name of a variant that one of the rows has."""
        return self._names[variant]
