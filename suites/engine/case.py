"""What cases of whole models have in common."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...kernels import AttentionShape, NotHere
from ...kernels.config import DTYPES, KV_DTYPES, ceil_div
from ...kernels.linear.best import OURS
from ..core.ranks import Ranks
from ..model.config import MODELS, ModelConfig
from ..model.fingerprint import fingerprint
from ..model.load import FOREIGN, foreign, model_config
from ..model.parallel.shard import Shard
from ..model.smollm import CONFIG as SMOLLM_CONFIG
from ..model.smollm import NAME as SMOLLM
from ..model.weights import QUANTISED

WEIGHTS = ("bf16", "fp16", "fp32", *QUANTISED)
GPU_DENSE = ("sdpa-cudnn", "triton-dense")  # the best two of the micro suite; the second follows the length
GPU_TEXT_DENSE = ("triton-dense", "flash-attn-3", "flash-attn-2")  # that follow the length of a growing text
RAGGED = "ragged"  # sequences of many lengths
SHORTEST = 16  # times shorter than the longest sequence of a ragged batch


class ModelCase:
    """A case of a whole model; it brings what is only named here."""

    __slots__ = ()

    suite: ClassVar[str]
    at_a_time: ClassVar[int | None] = None  # methods that are measured and written together; None: all
    model: str  # a preset, `smollm2-135m`, or the path of a checkpoint
    config: ModelConfig
    dtype: str
    seed: int

    if TYPE_CHECKING:  # at run time a dataclass would take a property of its base for a field's default

        @property
        def slug(self) -> str: ...
        @property
        def batch(self) -> int: ...
        @property
        def context(self) -> int: ...

    @property
    def weights(self) -> str:
        """Of the activations' type, unless a case says otherwise."""
        return self.dtype

    @property
    def products(self) -> str:
        """What its projections run by: this project's kernels, unless a case says otherwise."""
        return OURS

    @property
    def sequence_tokens(self) -> list[int]:
        """Tokens of each sequence at the end of what is timed: of all the context, unless a case is ragged."""
        return [self.context] * self.batch

    @property
    def shape(self) -> AttentionShape:
        """Of one layer's attention."""
        return self.config.attention(self.batch)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of activations and K/V."""
        return DTYPES[self.dtype]

    @property
    def stored_kv(self) -> str | None:
        """Element type of keys and values in the caches, where it is not that of activations."""
        stored: str | None = getattr(self, "kv_dtype", None)
        return stored

    @property
    def one_cache(self) -> bool:
        """Whether all layers share one K/V cache."""
        return bool(getattr(self, "shared_kv", False))

    def columns(self) -> dict[str, Any]:
        """What a row says about its case."""
        return {
            "suite": self.suite,
            "model": self.config.name,
            "case": self.slug,
            "context": self.context,
            "batch": self.batch,
            "q_heads": self.config.q_heads,
            "kv_heads": self.config.kv_heads,
            "head_dim": self.config.head_dim,
            "layers": self.config.layers,
            **shares(self.config),
            "model_fingerprint": fingerprint_of(self.model),
            "dtype": self.dtype,
            "kv_dtype": self.stored_kv,
            "weight_dtype": self.weights,
            "kv_layout": "head-major",
            "paged": False,
            "seed": self.seed,
        }


def ragged_tokens(context: int, batch: int) -> list[int]:
    """Tokens of each sequence of a ragged batch: in even steps from a sixteenth of the context up to it.

    16 sequences up to 32K are 2K, 4K, ... 32K: as many tokens as 16 of 17K.

    Raises:
        ValueError: fewer than two sequences.
    """
    if batch < 2:
        raise ValueError(f"pattern: {RAGGED} batches have two sequences at least; give --batch")
    shortest = ceil_div(context, SHORTEST)
    return [shortest + (context - shortest) * i // (batch - 1) for i in range(batch)]


def shares(config: ModelConfig) -> dict[str, Any]:
    """What a row says of ranks that share a model; heads beside it are one rank's."""
    if config.ranks == 1:
        return {}
    return {"ranks": config.ranks, "simulated": config.simulated, "kv_replicas": config.kv_replicas}


def share_of(config: ModelConfig, simulated: int | None = None) -> ModelConfig:
    """What one rank has of a model: of those that torchrun started, or of as many simulated ones; else the whole.

    (Of unequal shares it is the first rank's, the largest.)

    Raises:
        ValueError: both, or a model that so many ranks cannot share.
    """
    world = Ranks.from_environment().world
    if simulated and world > 1:
        raise ValueError(f"--simulate-ranks {simulated}: torchrun has started {world} real ones; run it alone")
    if (simulated or world) == 1:
        return config
    return Shard(0, simulated or world, bool(simulated)).config(config)


def shard_of(config: ModelConfig) -> Shard | None:
    """This process's share of a model; None for the whole. Alone, where ranks are simulated, it is the first's."""
    if config.ranks == 1:
        return None
    rank = 0 if config.simulated else torch.distributed.get_rank()
    return Shard(rank, config.ranks, config.simulated)


@cache
def fingerprint_of(model: str) -> str | None:
    """Of a checkpoint's files, which its name leaves out; None for random weights, and where there are no files."""
    if model in MODELS:
        return None
    try:
        return fingerprint(model)
    except (ValueError, NotHere):  # loading it says what is wrong
        return None


def check_types(weights: str, dtype: str) -> None:
    """Raises ValueError for weights that are neither quantised nor of the activations' type."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, allowed are {', '.join(DTYPES)}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights: got {weights!r}, allowed are {', '.join(WEIGHTS)}")
    if weights not in (*QUANTISED, dtype):
        allowed = ", ".join((*QUANTISED, dtype))
        raise ValueError(f"weights: got {weights} beside {dtype} activations, allowed are {allowed}")


def check_kv(kv_dtype: str | None) -> None:
    """Raises ValueError for an element type that caches do not have."""
    if kv_dtype not in (None, *KV_DTYPES):
        raise ValueError(f"kv_dtype: got {kv_dtype!r}, allowed are {', '.join(KV_DTYPES)}")


def check_counts(**counts: int) -> None:
    """Raises ValueError for a count below 1."""
    if min(counts.values()) < 1:
        names, values = ", ".join(counts), ", ".join(map(str, counts.values()))
        raise ValueError(f"{names}: got {values}, must be at least 1")


def check_context(case: ModelCase, what: str, remedy: str) -> None:
    """Raises ValueError for a case longer than its model handles; `what` says of what its tokens are."""
    if case.context > case.config.context:
        raise ValueError(
            f"{what}: {case.context} tokens, over the {case.config.context} that {case.config.name} handles; {remedy}"
        )


def capacity(case: ModelCase) -> int:
    """Tokens that each cache has room for."""
    return ceil_div(case.context, 64) * 64


def config_of(model: str) -> ModelConfig:
    """The shape of a model by name or path; SmolLM2's package is fetched only when it is needed."""
    return SMOLLM_CONFIG if model == SMOLLM else model_config(model)


def real_model(model: str, why: str) -> ModelConfig:
    """The shape of a model that has seen text. Raises ValueError for presets, whose weights are random: `why`."""
    if model in MODELS:
        raise ValueError(f"--model {model}: {why}; give a checkpoint")
    return config_of(model)


def model_notes(model: str) -> list[str]:
    """What a person is told of a model before a run: that another library runs it."""
    return [f"{model}: {FOREIGN}"] if foreign(model) else []


def default_dtype(device: torch.device) -> str:
    """Of activations and K/V where nothing was asked for."""
    return "bf16" if device.type == "cuda" else "fp32"
