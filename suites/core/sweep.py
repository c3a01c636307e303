"""From flags to methods: the settings that were given, and every variant that they ask for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import product
from typing import Any, TypeVar

from ...kernels import SparseConfig, registered
from ...kernels.config import SETTINGS as STEP_SETTINGS
from .bench import Case
from .flags import Options
from .settings import MODEL_SETTINGS, SETTINGS, summary_settings
from .spec import DEFAULTS, MethodSpec, make_spec, unique

C = TypeVar("C", bound=Case)


def matching(cases: Iterable[C], globs: Sequence[str], command: str) -> list[C]:
    """Cases whose slug matches any glob, or contains the text, each once; all where none is given.

    Raises:
        ValueError: none is left.
    """
    chosen = [c for c in cases if not globs or any(fnmatch(c.slug, glob) or glob in c.slug for glob in globs)]
    if not chosen:
        raise ValueError(f"--case {' '.join(globs)}: no case matches; see `resa-bench {command} --list`")
    return list(dict.fromkeys(chosen))  # 4K and 4096 are one


def swept(name: str) -> tuple[str, ...]:
    """The settings that may be given of a method: of a step, and those of a whole model that it has."""
    kind = registered()[name]
    # How lists are shared is part of what a method is, as ReSA's mean query, where its name does not say it.
    fixed = () if "gqa_policy" in kind.named else ("gqa_policy",)
    has = (*kind.uses, *(n for n in MODEL_SETTINGS if n in kind.defaults))
    return tuple(n for n in SETTINGS if n in has and n not in fixed)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Methods asked for by name, and values of settings, one or more each.

    Attributes:
        names: of `--method`; empty for a suite's default list.
        given: values by setting; a setting that was not given is left out.
        summaries: pairs of settings that `--summary` stands for.
    """

    names: tuple[str, ...] = ()
    given: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    summaries: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, options: Options) -> Sweep:
        """What the flags say. Raises ValueError for a method that is not known."""
        known = registered()
        names = tuple(getattr(options, "method", ()))  # a suite may run methods of its own alone
        for name in names:
            if name not in known:
                raise ValueError(f"--method {name[:60]}: unknown; known are {', '.join(known)}")
        values = {n: tuple(getattr(options, n, ()) or ()) for n in SETTINGS}
        summaries = tuple(summary_settings(name) for name in options.summary)
        return cls(names, {n: v for n, v in values.items() if v}, summaries)

    def values(self, name: str, *default: Any) -> tuple[Any, ...]:
        """The values of a setting: those given, else the default ones, else SparseConfig's."""
        return self.given.get(name) or default or (SETTINGS[name].default,)

    def base(self, **defaults: Any) -> SparseConfig:
        """The first value given of each setting of a step; `defaults`, then SparseConfig's, where none was.

        How lists are shared is a method's own matter, and stays out.
        """
        shared = [n for n in self.given if n in STEP_SETTINGS and n != "gqa_policy"]
        first = {n: self.given[n][0] for n in shared}
        first |= self.summaries[0] if self.summaries else {}
        return replace(DEFAULTS, **(defaults | first))

    def bases(self, apart: Collection[str] = ()) -> list[SparseConfig]:
        """`base` at every combination of the values given; `apart`: settings that a list takes the values of itself."""
        given = {n: v for n, v in self.given.items() if n in STEP_SETTINGS and n not in ("gqa_policy", *apart)}
        return [
            replace(self.base(), **dict(zip(given, values, strict=True)), **pair)
            for pair in self.summaries or ({},)
            for values in product(*given.values())
        ]

    def variants(self, name: str, /, **defaults: Any) -> list[MethodSpec]:
        """A method at every combination of the values given of settings that it uses, each variant once.

        Args:
            defaults: settings at which a suite runs it where none were given; a tuple stands for several.
        """
        kind, takes = registered()[name], swept(name)
        chosen = {n: v if isinstance(v, tuple) else (v,) for n, v in defaults.items() if n in takes}
        chosen |= {n: v for n, v in self.given.items() if n in takes}
        chosen = {n: chosen[n] for n in takes if n in chosen}
        pairs = self.summaries if "summary_kind" in kind.uses and self.summaries else ({},)
        specs = [
            make_spec(name, DEFAULTS, **dict(zip(chosen, values, strict=True)), **pair)
            for pair in pairs
            for values in product(*chosen.values())
        ]
        if kind.is_dense and "rectify_every" in self.given:  # all methods of a case time the same periods
            every = self.given["rectify_every"][0]
            specs = [replace(spec, config=replace(spec.config, rectify_every=every)) for spec in specs]
        return unique(specs)

    def named(self, **defaults: Any) -> list[MethodSpec]:
        """The methods of `--method`, in that order, each at all its variants.

        Raises:
            ValueError: a setting was given that none of them has.
        """
        self._check_settings()
        return [spec for name in self.names for spec in self.variants(name, **defaults)]

    def _check_settings(self) -> None:
        kinds = [registered()[name] for name in self.names]
        taken = {setting for name in self.names for setting in swept(name)}
        if any(kind.is_dense for kind in kinds):
            taken.add("rectify_every")  # whose period dense methods time
        idle = [SETTINGS[name].flag for name in self.given if name not in taken]
        if self.summaries and not any("summary_kind" in kind.uses for kind in kinds):
            idle.append("--summary")
        if idle and self.names:
            raise ValueError(f"{', '.join(map(str, idle))}: no method here has this setting ({', '.join(self.names)})")

    @property
    def plain(self) -> bool:
        """Whether nothing was asked for but a list as it is."""
        return not (self.names or self.given or self.summaries)
