"""How a problem is put to a model: its chat template, or the authors' plain text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from maths_cases import TEMPLATE, letter_tokenizer, write
from resa_bench import baselines  # noqa: F401  (registers the rivals)
from resa_bench.suites.maths.prompting import INSTRUCTION, prompt_ids, render_chat
from resa_bench.suites.model.tokenizer import Tokenizer, folder_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return letter_tokenizer()


def test_template_as_transformers_renders_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer, bos_token="<begin>", eos_token="<end>", chat_template=TEMPLATE
    )
    fast.save_pretrained(tmp_path)
    write(tmp_path / "config.json", {"bos_token_id": 1, "eos_token_id": 0})
    read = folder_tokenizer(tmp_path)
    assert read is not None
    rendered = fast.apply_chat_template(
        [{"role": "user", "content": " hi "}], add_generation_prompt=True, tokenize=False
    )
    assert render_chat(read, " hi ") == rendered
    assert rendered.startswith("<begin>")
    ids = prompt_ids(read, "2 + 2?")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert read.decode(ids).endswith(f"<user>{INSTRUCTION} 2 + 2?<bot>")


def test_prompts_without_a_template(tokenizer: Tokenizer) -> None:
    bare = replace(tokenizer, chat_template=None)
    with pytest.raises(ValueError, match="no chat template"):
        prompt_ids(bare, "2 + 2?")
    with pytest.raises(ValueError, match="no token for a problem's text"):
        prompt_ids(replace(tokenizer, chat_template="{# nothing #}"), "2 + 2?")
    assert bare.decode(prompt_ids(bare, "2 + 2?", "plain")) == f"{INSTRUCTION} 2 + 2?\n\n<think>\n"
    with pytest.raises(ValueError, match="cannot be rendered: no system"):
        render_chat(replace(tokenizer, chat_template="{{ raise_exception('no system') }}"), "hi")
    with pytest.raises(ValueError, match="cannot be rendered"):  # templates come with models: jinja's sandbox
        render_chat(replace(tokenizer, chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"), "hi")
