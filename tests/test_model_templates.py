"""Chat templates: rendered as transformers renders them, and held in their sandbox, time and memory."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from resa_bench.suites.maths.prompting import INSTRUCTION, prompt_ids, render_chat
from resa_bench.suites.model import chat_template
from resa_bench.suites.model.chat_template import render_template
from resa_bench.suites.model.line_server import LineProcess
from resa_bench.suites.model.tokenizer import Tokenizer, folder_tokenizer

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
ADDED_ALONE = json.dumps({
    "added_tokens": [ADDED | {"id": 0, "content": "<s>"}], "model": {"type": "BPE", "vocab": {}, "merges": []},
})  # fmt: skip
EACH = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATES = {
    "generation-tag": "{% for m in messages %}{% if m.role=='assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    "generation-around": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}!{% endfor %}",
    "tools": "{% if tools is not none %}TOOLS:{{ tools|length }}{% endif %}" + EACH,
    "documents": "{%- if documents is none %}no docs {% endif %}" + EACH,
    "tools-undefined": "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
    "{%- if tools is not none %}T{% endif %}" + EACH,
    "date-guarded": "{%- if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}" + EACH,
    "date": "{{ strftime_now('%Y') }}" + EACH,
    "tojson": "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "tojson-unescaped": "{{ {'a': 'é < b & c'} | tojson }}" + EACH,
    "tojson-indent": "{{ messages | tojson(indent=2) }}",
    "pad-token": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{{ pad_token }}",
    "unk-token": "{{ unk_token }}|{{ cls_token }}|" + EACH,
    "break": "{% for m in messages %}{{ m.content }}{% break %}{% endfor %}",
    "eos-in-template": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    "split": "{% set c = messages[0].content.split('</think>')[-1].lstrip('\\n') %}{{ c }}",
    "namespace": "{% set ns = namespace(x=0) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
    "dict": "{% set d = dict(a=1) %}{{ d.a }}" + EACH,
    "trailing-newline": EACH + "\n",
    "list-content": "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{{ m.content[0]['text'] }}{% endif %}{% endfor %}",
    "tool-calls": "{% for m in messages %}{% if m.tool_calls %}x{% endif %}{{ m['content'] }}{% endfor %}",
    "blocks-trimmed": "{% for m in messages %}\n  {%- if true %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "prompt": EACH + "{% if add_generation_prompt %}<assistant>{% endif %}",
}
REFUSING = "{% if messages[0].role != 'system' %}{{ raise_exception('need system') }}{% endif %}"

SETTINGS: dict[str, dict[str, Any]] = {
    "texts": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    "objects": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                      "__type": "AddedToken"},
        "eos_token": "</s>", "pad_token": "</s>",
    },
    "none": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "</s>"},
    "undefined": {"tokenizer_class": "PreTrainedTokenizerFast"},
}  # fmt: skip


def write_folder(folder: Path, template: str | None, settings: dict[str, Any]) -> Path:
    """A tokenizer of bytes with two special tokens, and what goes with it."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>")])
    library.save(str(folder / "tokenizer.json"))
    config = {"model_type": "llama", "bos_token_id": 256, "eos_token_id": 257}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def read(folder: Path) -> Tokenizer:
    tokenizer = folder_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_templates_render_as_in_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    write_folder(tmp_path, None, settings)
    message = [{"role": "user", "content": "What is 1 + 1?"}]
    for name, template in TEMPLATES.items():
        (tmp_path / "chat_template.jinja").write_text(template)
        reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
        try:
            expected = reference.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        except Exception:  # `+ eos_token` where it is undefined
            with pytest.raises(ValueError, match="cannot be rendered"):
                render_chat(read(tmp_path), "What is 1 + 1?")
            continue
        assert render_chat(read(tmp_path), "What is 1 + 1?") == expected, name


def test_a_template_may_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model's chat template cannot be rendered: need system"):
        render_chat(read(write_folder(tmp_path, REFUSING, SETTINGS["texts"])), "hi")


def test_the_date_is_todays() -> None:
    assert render_template("{{ strftime_now('%Y') }}", [], {}) == f"{datetime.now():%Y}"


def test_the_template_of_its_own_file_comes_first(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}]
    write_folder(tmp_path, None, SETTINGS["texts"] | {"chat_template": named})
    assert read(tmp_path).chat_template == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert read(tmp_path).chat_template == "file"


def test_older_files_name_their_special_tokens_apart(tmp_path: Path) -> None:
    write_folder(tmp_path, "{{ bos_token }}{{ pad_token }}", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "pad_token": "</s>"})
    )
    assert render_chat(read(tmp_path), "hi") == "<s></s>"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokenizer_config.json", "[]", "expected an object"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template is 5, expected a template"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "expected a template, or a list of objects"),
        ("tokenizer_config.json", '{"bos_token": 5}', "bos_token is 5, expected a token's text"),
        ("tokenizer_config.json", "[" * 100_000, "nested too deeply"),
        ("config.json", '{"eos_token_id": {"a": 1}}', "expected a token id, or a list"),
        ("config.json", '{"eos_token_id": -5}', "eos_token_id is -5, expected"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x', expected"),
        ("tokenizer.json", '{"model": {"type": "Zzz"}}', "tokenizer.json cannot be read"),
        ("tokenizer.json", ADDED_ALONE, "no tokens but those that were added"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, name: str, value: str, message: str) -> None:
    write_folder(tmp_path, None, SETTINGS["texts"])
    (tmp_path / name).write_text(value)
    with pytest.raises(ValueError, match=message) as caught:
        folder_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_plain_prompt_begins_as_the_authors_code_has_it(tmp_path: Path) -> None:
    """R1-Distill's configuration names another bos than its tokenizer, whose own it is that comes first."""
    write_folder(tmp_path, None, SETTINGS["texts"])
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 257, "eos_token_id": 257}))
    tokenizer = read(tmp_path)
    assert not tokenizer.adds_bos
    ids = prompt_ids(tokenizer, "2 + 2?", "plain")
    assert tokenizer.decode(ids) == f"<s>{INSTRUCTION} 2 + 2?\n\n<think>\n"
    write_folder(tmp_path, None, SETTINGS["none"])
    assert read(tmp_path).decode(prompt_ids(read(tmp_path), "2 + 2?", "plain")).startswith(INSTRUCTION)


HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "exception-globals": "{{ raise_exception.__globals__.a }}",
    "date-globals": "{{ strftime_now.__globals__.a }}",
    "dict-class": "{{ dict.__class__.a }}",
    "filter-globals": "{{ lipsum.__globals__['os'] }}",
    "namespace-names": "{% set n = namespace(__class__=1) %}",
    "append": "{% set _ = messages.append(1) %}",
    "include": "{% include '/etc/passwd' %}",
    "zero-division": "{{ 1/0 }}",
    "overflow": "{{ 2.0**10000 }}",
    "encoding": "{{ 'a'.encode('idna_x') }}",
    "key": "{{ {}['a'].b }}",
    "index": "{{ messages[5].content }}",
    "value": "{{ ''.index('x') }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "syntax": "{% if %}",
    "repetition": "{{ 'a' * 10**10 }}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "long": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "list": "{{ [0] * 10**9 }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="the model's chat template cannot be rendered") as caught:
        render_template(template, [{"role": "user", "content": "hi"}], {})
    assert "\n" not in str(caught.value)
    assert render_template("{{ messages[0].content }}", [{"role": "user", "content": "hi"}], {}) == "hi"


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}ok", "{{ 7 ** (10 ** 8) }}"],
    ids=["loops", "powers"],
)
def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    process = LineProcess(chat_template.COMMAND, 0.5)
    monkeypatch.setattr(chat_template, "_process", lambda: process)
    with pytest.raises(ValueError, match="cannot be rendered: it takes "):
        render_template(template, [], {})
    process.stop()
