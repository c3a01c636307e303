"""Problem files, records, a judge that is none and a chat template, for tests of the maths suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.core.spec import make_spec
from resa_bench.suites.maths.records import Record, Setting
from resa_bench.suites.model.tokenizer import Tokenizer

CPU = torch.device("cpu")


def write(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n    {%- if message['role'] == 'user' %}\n"
    "<user>{{ message['content'] | trim }}{% break %}\n    {%- endif %}{% endfor %}\n"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
FAKE = """import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    expected, text = json.loads(line)
    if text == "hang": time.sleep(60)
    if text == "die": os._exit(3)
    print(json.dumps(["right", text]), flush=True)
"""
SETTING = Setting("tiny", "fp32", "fp32", "chat", 0.6, 0.9, 64, 0)


def letter_tokenizer() -> Tokenizer:
    """A letter a token; 0 ends, 1 begins."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    letters = ["<end>", "<begin>", *(chr(i) for i in range(32, 127)), "\n"]
    library = Library(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    library.decoder = decoders.Fuse()
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in letters[:2]])
    return Tokenizer(library, bos=1, eos=(0,), chat_template=TEMPLATE)


def record(problem: str, outcome: str = "right", sample: int = 0, method: str = "torch-dense", **more: Any) -> Record:
    common: dict[str, Any] = {"set": "s", "expected": "1", "prompt_tokens": 5, "tokens": 10, "finished": True}
    return Record(
        setting=SETTING, method=method, columns=make_spec(method).columns(), problem=problem, digest="d",
        sample=sample, outcome=outcome, **(common | more),
    )  # fmt: skip
