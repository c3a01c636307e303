"""The lists of cases that `resa-bench tasks` runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..model.config import ModelConfig
from .cases import TaskCase
from .registry import task_kinds


def default_list(
    scale: str, device: torch.device, model: str, config: ModelConfig, *, tasks: Sequence[str] = (),
    contexts: Sequence[int] = (), samples: int | None = None, steps: int | None = None,
    temperatures: Sequence[float] = (0.0,), dtype: str = "fp32", seed: int = 0,
) -> list[TaskCase]:  # fmt: skip
    """The cases of `quick`, `default` (`gpu` on one) or `full`.

    Args:
        tasks: those that are named; without any, those that the scale lists.
        contexts: prompts of so many tokens instead of the list's, for every task.
        samples: groups of every task, instead of the list's.
        steps: decoded freely, instead of the list's.
        temperatures: of free decoding, a case each.

    Raises:
        ValueError: a context that the model does not handle.
    """
    scale = "gpu" if scale == "default" and device.type == "cuda" else scale
    cases: list[TaskCase] = []
    for kind in task_kinds().values():
        listed = kind.scales[scale]
        if kind.name not in tasks and (tasks or not listed.listed):
            continue
        settings: dict[str, Any] = {"model": model, "config": config, "dtype": dtype, "seed": seed, **listed.settings}
        settings |= {"groups": samples} if samples is not None else {}
        variants: list[dict[str, Any]] = [{}]
        if "steps" in settings:  # decoded freely, so that the temperature matters
            variants = [{"temperature": t, "steps": steps or settings["steps"]} for t in temperatures]
        for variant in variants:
            room = kind.case(**(settings | variant), prompt=1).room
            for prompt in contexts or kind.prompts(scale, config, room):
                cases.append(kind.case(**(settings | variant), prompt=prompt))
    return sorted(cases, key=lambda case: (list(task_kinds()).index(case.task), case.prompt))
