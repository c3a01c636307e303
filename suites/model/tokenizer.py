"""Text to token ids and back, with the `tokenizers` library: from a tokenizer.json, or from GGUF's metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from .checkpoint import read_json
from .schema import Fields, one_line, read_text, shown

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"


SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Those that chat templates know by name."""

MOST_TEMPLATE_BYTES = 2**24

GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""transformers' classes that have no special tokens of their own: what the files do not name is undefined."""


class UnsupportedTokenizer(ValueError):
    """A tokenizer in order, but of a kind that is not built here: the model's speed can be measured without it."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer and the ids that a generation begins and ends with."""

    tokenizer: tokenizers.Tokenizer
    bos: int | None = None
    eos: tuple[int, ...] = ()
    adds_bos: bool = False  # whether the model was trained with `bos` before every text
    chat_template: str | None = None  # jinja, from messages to the text that a chat model was trained on
    special_tokens: Mapping[str, str] | None = None  # texts by SPECIAL_TOKENS, for the template; None: of bos and eos
    embedded: int | None = None  # token ids that the model has an embedding of, from 0; None: not known

    @property
    def vocab(self) -> int:
        """Tokens, added ones included."""
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids; special tokens written in the text become theirs. `bos` before it, by default as trained.

        Raises:
            ValueError: the text is none that UTF-8 can write, or holds a token that the model has no embedding of.
        """
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as error:
            raise ValueError(f"the text cannot be tokenized: {one_line(error)}") from None
        if self.embedded is not None and ids and max(ids) >= self.embedded:
            token = shown(self.tokenizer.id_to_token(max(ids)))
            raise ValueError(f"the text holds the token {token} of id {max(ids)}, the model embeds {self.embedded}")
        wanted = self.adds_bos if bos is None else bos
        return [self.bos, *ids] if wanted and self.bos is not None else ids

    def text_of(self, token: int | None) -> str:
        """How a token is written, a special one too; empty for None."""
        return "" if token is None else self.tokenizer.id_to_token(token) or ""

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text of these tokens, with or without the special ones."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special)

    def template_tokens(self) -> dict[str, str]:
        """The special tokens' texts by the names that chat templates use; one that the model lacks is absent."""
        if self.special_tokens is not None:
            return dict(self.special_tokens)
        named = {"bos_token": self.bos, "eos_token": self.eos[0] if self.eos else None}
        return {name: self.text_of(token) for name, token in named.items() if token is not None}

    def embedded_in(self, vocab: int, where: object) -> Tokenizer:
        """This tokenizer for a model that embeds `vocab` tokens.

        Raises:
            ValueError: its words, or what a text begins and ends with, lie beyond them. Words that were added to the
                tokenizer afterwards may: `encode` refuses a text that holds one.
        """
        words = self.tokenizer.get_vocab(with_added_tokens=False)
        largest = max(words.values(), default=-1)
        if largest >= vocab:
            raise ValueError(f"{where}: the tokenizer has a token of id {largest}, but the model embeds {vocab}")
        beyond = [token for token in (self.bos, *self.eos) if token is not None and not 0 <= token < vocab]
        if beyond:
            raise ValueError(f"{where}: bos or eos is the token {beyond[0]}, but the model embeds {vocab}")
        return replace(self, embedded=vocab)


def folder_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder, None where it has no tokenizer.json.

    Raises:
        ValueError: tokenizer.json, or a file that says what goes with it, is malformed.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    tokenizer = _parsed(path)
    settings = Fields(read_json(folder, "config.json"), str(folder / "config.json"))
    bos, eos = _ids(settings, "bos_token_id"), _ids(settings, "eos_token_id")
    if (folder / "generation_config.json").exists():  # which is what generation goes by, and may name several ends
        generation = Fields(read_json(folder, "generation_config.json"), str(folder / "generation_config.json"))
        bos = _ids(generation, "bos_token_id") if "bos_token_id" in generation.values else bos
        eos = _ids(generation, "eos_token_id") if "eos_token_id" in generation.values else eos
    special = _special_tokens(folder)
    bos_text = special.get("bos_token")
    named = tokenizer.token_to_id(bos_text) if bos_text else None
    first = named if named is not None else bos[0] if bos else None
    adds_bos = first is not None and tokenizer.encode("").ids[:1] == [first]
    built = Tokenizer(tokenizer, first, eos, adds_bos, _chat_template(folder))
    defaults = built.template_tokens() if _has_default_tokens(folder) else {}
    texts = {name: special.get(name, defaults.get(name)) for name in SPECIAL_TOKENS}
    return replace(built, special_tokens={name: text for name, text in texts.items() if text is not None})


def _parsed(path: Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except BaseException as error:  # the library raises Exception itself, and its panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise ValueError(f"{path} cannot be read: {one_line(error)}") from None
    if not tokenizer.get_vocab_size(with_added_tokens=False):
        raise ValueError(f"{path} cannot be read: it has no tokens but those that were added")
    return tokenizer


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    """The token ids in a field that holds one, a list or null. Raises ValueError for anything else."""
    value = fields.values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise fields.wrong(key, "a token id, or a list of them")
    return tuple(ids)


def _tokenizer_settings(folder: Path) -> Fields | None:
    if not (folder / "tokenizer_config.json").exists():
        return None
    return Fields(read_json(folder, "tokenizer_config.json"), str(folder / "tokenizer_config.json"))


def _special_tokens(folder: Path) -> dict[str, str | None]:
    """Special tokens' texts by name, as transformers reads them; None for a name that the files set to null.

    special_tokens_map.json counts where tokenizer_config.json lists no added tokens: older versions wrote it.
    """
    settings = _tokenizer_settings(folder)
    sources = [settings] if settings else []
    if (settings is None or not settings.has("added_tokens_decoder")) and (folder / "special_tokens_map.json").exists():
        path = folder / "special_tokens_map.json"
        sources.append(Fields(read_json(folder, path.name), str(path)))
    texts: dict[str, str | None] = {}
    for source in sources:
        for name in SPECIAL_TOKENS:
            if name in source.values:
                texts[name] = _token_text(source, name)
    return texts


def _token_text(source: Fields, name: str) -> str | None:
    """A token written as text, or as an object with its `content`. Raises ValueError for anything else."""
    value = source.values[name]
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise source.wrong(name, "a token's text")
    return text


def _has_default_tokens(folder: Path) -> bool:
    """Whether transformers' class of this tokenizer has a bos and eos of its own, which the ids then stand for."""
    settings = _tokenizer_settings(folder)
    return settings is None or settings.values.get("tokenizer_class") not in GENERIC_CLASSES


def _chat_template(folder: Path) -> str | None:
    """The folder's template: a file of its own, or in tokenizer_config.json; of several named ones, `default`."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja", MOST_TEMPLATE_BYTES)
    settings = _tokenizer_settings(folder)
    template = settings.values.get("chat_template") if settings else None
    if settings and isinstance(template, list):
        if not all(isinstance(entry, dict) for entry in template):
            raise settings.wrong("chat_template", "a template, or a list of objects with name and template")
        named = {str(entry.get("name")): entry.get("template") for entry in template}
        template = named.get("default")
    if settings and template is not None and not isinstance(template, str):
        raise settings.wrong("chat_template", "a template, or a list of objects with name and template")
    return template


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
        UnsupportedTokenizer: `pre` is not known here.
        ValueError: the lists do not fit together.
    """
    ways = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)],
        "gpt-2": [_byte_level(use_regex=True)],
        "llama-bpe": _split(_LLAMA3),
        "qwen2": _split(_QWEN2),
    }
    ways |= {"default": ways["gpt-2"], "llama3": ways["llama-bpe"], "deepseek-r1-qwen": ways["qwen2"]}
    if pre not in ways:
        raise UnsupportedTokenizer(f"GGUF pre-tokenizer: got {shown(pre)}, known are {', '.join(ways)}")
    if len(kinds) != len(tokens):
        raise ValueError(f"the tokenizer has {len(tokens)} tokens and {len(kinds)} token types, expected as many")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ValueError(f"the tokenizer has {len(tokens)} tokens, of which {len(tokens) - len(vocab)} stand twice")
    pairs = [_pair(merge, vocab) for merge in merges]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=ways[pre] is ways["llama-bpe"]))
    if ways[pre] is ways["qwen2"]:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(ways[pre])
    tokenizer.decoder = decoders.ByteLevel()
    typed = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in typed if kind == 3])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == 4])
    return Tokenizer(tokenizer, bos, eos, adds_bos, chat_template)


def _pair(merge: str, vocab: Mapping[str, int]) -> tuple[str, str]:
    """The two tokens of a merge. Raises ValueError where they are not two of the vocabulary that make a third."""
    left, _, right = merge.partition(" ")
    if not (left in vocab and right in vocab and left + right in vocab):
        raise ValueError(f"the tokenizer merges {shown(merge)}, expected two of its tokens that make a third")
    return left, right


def _byte_level(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), _byte_level(use_regex=False)]
