"""From a problem to the token ids that a model is asked with: its chat template, or the authors' plain text."""

from __future__ import annotations

from ..model.chat_template import render_template
from ..model.tokenizer import Tokenizer

STYLES = ("chat", "plain")
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def prompt_ids(tokenizer: Tokenizer, problem: str, style: str = "chat") -> list[int]:
    """Token ids of one problem.

    `chat` puts instruction and problem into the model's chat template. `plain` is the text that the authors of ReSA
    give R1-Distill models (microsoft/unilm, ReSA/llm/utils/math_utils.py, prompt type r1), which uses no template;
    their code puts the tokenizer's `bos_token` before it, whatever the tokenizer itself does, where it names one.

    Raises:
        ValueError: the model brings no chat template, or one that cannot be rendered, or no token for the text.
    """
    asked = f"{INSTRUCTION} {problem}"
    if style == "plain":
        names_bos = "bos_token" in (tokenizer.special_tokens or ())
        ids = tokenizer.encode(f"{asked}\n\n<think>\n", bos=tokenizer.adds_bos or names_bos)
    else:
        ids = tokenizer.encode(render_chat(tokenizer, asked), bos=False)  # the template writes what begins a text
    if not ids:
        raise ValueError("the tokenizer has no token for a problem's text, so that the model cannot be asked")
    return ids


def render_chat(tokenizer: Tokenizer, message: str) -> str:
    """A user's message as the model's template writes it, up to where the model's answer begins.

    Raises:
        ValueError: the model brings no template, or one that cannot be rendered.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the model brings no chat template; --prompt plain does without")
    messages = [{"role": "user", "content": message}]
    return render_template(tokenizer.chat_template, messages, tokenizer.template_tokens())
