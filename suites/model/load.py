"""A decoder by name or path: a preset with random weights, SmolLM2, a Hugging Face folder, a GGUF file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import smollm
from .checkpoint import UnknownFamily, checkpoint_config, load_checkpoint, read_config
from .config import MODELS, ModelConfig
from .decoder import Decoder
from .parallel.shard import Shard
from .schema import one_line, shown
from .tokenizer import Tokenizer, UnsupportedTokenizer, folder_tokenizer
from .weights import QUANTISED, random_decoder

if TYPE_CHECKING:
    from .gguf_file import GGUFModel


FALLBACK = "resa_bench.integrations.transformers.decoder"
FOREIGN = "run by transformers: our decoder does not know the family"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder, its tokenizer where it has one, and where the weights come from, in words for a table."""

    decoder: Decoder
    tokenizer: Tokenizer | None
    source: str
    no_tokenizer: str = ""  # why there is none, where a file has one that is not supported


def load_decoder(
    name_or_path: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    weight_dtype: str | None = None,
    seed: int = 0,
    shard: Shard | None = None,
) -> LoadedModel:
    """Load or draw a model.

    Args:
        name_or_path: a preset of `config.MODELS` (random weights, no tokenizer), `smollm2-135m`, a folder with
            config.json and *.safetensors, or a .gguf file.
        dtype: of activations, embedding, norms and head, and of projections unless `weight_dtype` quantises them.
        weight_dtype: of `weights.QUANTISED`, or `dtype`'s name, which None stands for.
        seed: of random weights.
        shard: this rank's share of the model.

    Raises:
        ValueError: nothing of that name, malformed files, or a model that `Decoder` does not compute.
        ModelNotHere: SmolLM2 is not in the cache and cannot be fetched.
    """
    if name_or_path in MODELS:
        config = MODELS[name_or_path]
        decoder = random_decoder(config, dtype=dtype, device=device, weight_dtype=weight_dtype, seed=seed, shard=shard)
        return LoadedModel(decoder, None, f"random weights, seed {seed}")
    model, source = _locate(name_or_path)
    if isinstance(model, Path):
        if foreign(name_or_path):
            if weight_dtype in QUANTISED:
                raise ValueError(f"{model}: {FOREIGN}, which has no {weight_dtype} weights of ours; take 16 bits")
            decoder = _transformers(model).folder_decoder(model, dtype=dtype, device=device)
            source = f"{source}, {FOREIGN}"
        else:
            decoder = load_checkpoint(model, dtype=dtype, device=device, weight_dtype=weight_dtype, shard=shard)
        tokenizer = folder_tokenizer(model)
        return LoadedModel(decoder, tokenizer and tokenizer.embedded_in(decoder.config.vocab, model), source)
    decoder = model.decoder(dtype=dtype, device=device, weight_dtype=weight_dtype, shard=shard)
    try:
        tokenizer = model.tokenizer()
    except UnsupportedTokenizer as error:  # which costs what asks in words, not what measures speed
        return LoadedModel(decoder, None, source, str(error))
    return LoadedModel(decoder, tokenizer and tokenizer.embedded_in(decoder.config.vocab, name_or_path), source)


def model_config(name_or_path: str) -> ModelConfig:
    """The shape of what `load_decoder` would load, without its weights (SmolLM2 is fetched first).

    Raises:
        ValueError, ModelNotHere: as `load_decoder`.
    """
    if name_or_path in MODELS:
        return MODELS[name_or_path]
    model, _ = _locate(name_or_path)
    if not isinstance(model, Path):
        return model.config
    try:
        return checkpoint_config(model)
    except UnknownFamily as error:
        module = _transformers(model, str(error))
        try:
            config: ModelConfig = module.folder_config(model)
        except ValueError as fault:
            raise ValueError(f"{error}; {fault}") from None
        return config


def foreign(name_or_path: str) -> bool:
    """Whether it is a folder whose family is not ours, which transformers runs in our decoder's place."""
    path = Path(name_or_path)
    try:
        if not path.is_dir():
            return False
        read_config(path)
    except UnknownFamily:
        return True
    except (OSError, ValueError):  # loading it says what is wrong
        pass
    return False


def _transformers(folder: Path, fault: str = "") -> Any:
    """The integration that runs other families. Raises ValueError where transformers is not installed."""
    try:
        return import_module(FALLBACK)
    except ModuleNotFoundError as error:
        asked = f"{error.name} would run it: pip install -e '.[transformers]'"
        raise ValueError(f"{fault or folder}; {asked}") from None


def _locate(name_or_path: str) -> tuple[Path | GGUFModel, str]:
    """The folder or open GGUF file of that name, and what to call the source."""
    if name_or_path == smollm.NAME:
        return _gguf(smollm.smollm_gguf(), smollm.NAME), f"{smollm.GGUF} of {smollm.PACKAGE}"
    path = Path(name_or_path)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or no name
        raise ValueError(f"model: got {shown(name_or_path)}: {one_line(error)}") from None
    if is_folder:
        return path, f"Hugging Face folder {path.resolve().name}"
    if path.suffix == ".gguf":
        return _gguf(path), f"GGUF file {path.name}"
    absent = ": no such file or folder" if is_path(name_or_path) and not path.exists() else ""
    raise ValueError(
        f"model: got {shown(name_or_path)}{absent}, allowed are {', '.join((*MODELS, smollm.NAME))}, "
        "a folder with config.json and *.safetensors, a .gguf file"
    )


def is_path(name: str) -> bool:
    """Whether it is meant as a path, not as the name of a preset."""
    return name.startswith((".", "~")) or os.sep in name


def _gguf(path: Path, name: str | None = None) -> GGUFModel:
    """Raises ValueError where the library is missing: only GGUF files need it."""
    try:
        from .gguf_file import GGUFModel
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading GGUF files needs the package {error.name}; pip install gguf") from None
    return GGUFModel(path, name)
