"""A method of the registry for somebody else's model: which ones fit, and how they are made."""

from __future__ import annotations

from typing import Any

import torch

from .. import baselines  # noqa: F401  (registers the rivals)
from ..kernels import AttentionShape, DecodeMethod, SparseConfig, Unsupported, get_method, registered
from ..suites.core.registry import suites
from ..suites.core.settings import MODEL_SETTINGS
from ..suites.core.spec import DEFAULTS, MethodSpec, dense_here, make_spec, resa_here


def method_spec(name: str, device: torch.device, base: SparseConfig = DEFAULTS, **settings: Any) -> MethodSpec:
    """The method of that name at these settings, in the form that runs on the device.

    Raises:
        Unsupported: no such method, or one that a model of another library cannot run, with the reason; a setting
            that makes no difference to it.
        ValueError: no such setting, or a value out of range.
    """
    if name not in registered():
        suites()  # some register a method
    if name not in registered():
        raise Unsupported(f"method: got {name!r}, known are {', '.join(registered())}")
    spec = make_spec(resa_here(device) if name == "resa" else name, base, **settings)
    if spec.window > 1:
        raise Unsupported(f"method: {name} repairs the last {spec.window} tokens in every deeper layer; take resa")
    if spec.kind.evicts:
        raise Unsupported(f"method: {name} evicts by a prompt's last queries, which are not kept here; take resa")
    if spec.draft_length is not None:
        raise Unsupported(f"method: {name} drafts and verifies in rounds of its own; run `resa-bench lossless`")
    if spec.kind.fixes_length:
        raise Unsupported(f"method: {name} fixes its length when it is bound, and a text grows")
    for idle in settings.keys() - set(spec.kind.uses) - MODEL_SETTINGS.keys():
        uses = ", ".join((*spec.kind.uses, "dense_layers"))
        raise Unsupported(f"{idle}: makes no difference to {spec.name}, whose settings are {uses}; leave it out")
    return spec


def make_method(
    spec: MethodSpec, shape: AttentionShape, dtype: torch.dtype, device: torch.device, *, dense: bool = False
) -> DecodeMethod:
    """The method of a spec for layers of this shape; `dense`: the dense one that its first layers run.

    Raises:
        Unsupported: it cannot run here, with the reason.
    """
    kind = get_method(dense_here(device)) if dense else spec.kind
    if reason := kind.unavailable(shape, dtype, device):
        raise Unsupported(f"{kind.name}: {reason}")
    return kind(shape, spec.config, dtype=dtype, device=device)
