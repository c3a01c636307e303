"""Text to token ids and back, with the `tokenizers` library: from a tokenizer.json, or from GGUF's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from .checkpoint import read_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer and the ids that a generation begins and ends with."""

    tokenizer: tokenizers.Tokenizer
    bos: int | None = None
    eos: tuple[int, ...] = ()
    adds_bos: bool = False  # whether the model was trained with `bos` before every text
    chat_template: str | None = None  # jinja, from messages to the text that a chat model was trained on

    @property
    def vocab(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids; special tokens written in the text become theirs. `bos` before it, by default as trained."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        wanted = self.adds_bos if bos is None else bos
        return [self.bos, *ids] if wanted and self.bos is not None else ids

    def text_of(self, token: int | None) -> str:
        """How a token is written, a special one too; empty for None."""
        return "" if token is None else self.tokenizer.id_to_token(token) or ""

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text of these tokens, with or without the special ones."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special)


def folder_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, None where it has no tokenizer.json.

    Raises:
        ValueError: tokenizer.json cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} cannot be read: {error}") from error
    said = read_json(folder, "config.json")
    if (folder / "generation_config.json").exists():  # which is what generation goes by, and may name several ends
        said |= read_json(folder, "generation_config.json")
    bos, eos = said.get("bos_token_id"), said.get("eos_token_id")
    ends = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    adds_bos = bos is not None and tokenizer.encode("").ids[:1] == [bos]
    return Tokenizer(tokenizer, bos, ends, adds_bos, _chat_template(folder))


def _chat_template(folder: Path) -> str | None:
    """The folder's template: a file of its own, or in tokenizer_config.json; of several named ones, `default`."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").exists():
        return None
    told = read_json(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(told, list):
        told = next((each.get("template") for each in told if each.get("name") == "default"), None)
    return told


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    kinds: Sequence[int],
    pre: str,
    *,
    bos: int | None,
    eos: tuple[int, ...],
    adds_bos: bool,
    chat_template: str | None = None,
) -> Tokenizer:
    """A byte-level BPE from GGUF's metadata.

    Args:
        tokens: by id, in GPT-2's spelling of bytes.
        merges: pairs apart by a space, the first to be done first.
        kinds: GGUF's type of each token: 3 is a special one, 4 is found in texts as a whole.
        pre: llama.cpp's name of how text is split before merging.

    Raises:
        ValueError: `pre` is not known here.
    """
    ways = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)],
        "gpt-2": [_byte_level(use_regex=True)],
        "llama-bpe": _split(_LLAMA3),
        "qwen2": _split(_QWEN2),
    }
    ways |= {"default": ways["gpt-2"], "llama3": ways["llama-bpe"], "deepseek-r1-qwen": ways["qwen2"]}
    if pre not in ways:
        raise ValueError(f"GGUF pre-tokenizer: got {pre!r}, known are {', '.join(ways)}")
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=ways[pre] is ways["llama-bpe"]))
    if ways[pre] is ways["qwen2"]:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(ways[pre])
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in typed if kind == 3])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == 4])
    return Tokenizer(tokenizer, bos, eos, adds_bos, chat_template)


def _byte_level(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), _byte_level(use_regex=False)]
