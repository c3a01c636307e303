"""From a problem to the token ids that a model is asked with: its chat template, or the authors' plain text."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..model.tokenizer import Tokenizer

STYLES = ("chat", "plain")
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def prompt_ids(tokenizer: Tokenizer, problem: str, style: str = "chat") -> list[int]:
    """Token ids of one problem.

    `chat` puts instruction and problem into the model's chat template. `plain` is the text that the authors of ReSA
    give R1-Distill models (microsoft/unilm, ReSA/llm/utils/math_utils.py, prompt type r1), which uses no template.

    Raises:
        ValueError: the model brings no chat template, or one that cannot be rendered.
    """
    asked = f"{INSTRUCTION} {problem}"
    if style == "plain":
        return tokenizer.encode(f"{asked}\n\n<think>\n")
    return tokenizer.encode(render_chat(tokenizer, asked), bos=False)  # the template writes what begins a text


def render_chat(tokenizer: Tokenizer, message: str) -> str:
    """A user's message as the model's template writes it, up to where the model's answer begins.

    Templates come with models, so they run in jinja's sandbox, set up as transformers does. Raises ValueError.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the model brings no chat template; --prompt plain does without")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    names: dict[str, Any] = {
        "messages": [{"role": "user", "content": message}],
        "add_generation_prompt": True,
        "bos_token": tokenizer.text_of(tokenizer.bos),
        "eos_token": tokenizer.text_of(tokenizer.eos[0] if tokenizer.eos else None),
    }
    try:
        return environment.from_string(tokenizer.chat_template).render(**names)
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the model's chat template cannot be rendered: {error}") from error
