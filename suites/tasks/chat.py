"""What stands around a user's message: the model's own chat template, or nothing for a model without one."""

from __future__ import annotations

from ..model.chat_template import render_template
from ..model.tokenizer import Tokenizer

MESSAGE = "[[the message]]"
PLAIN_TURN = "\n\n"  # between a question and the beginning of the answer, where there are no turns


def around_message(tokenizer: Tokenizer) -> tuple[list[int], str]:
    """Token ids before a user's message, and the text from there to where the model's answer begins.

    Raises:
        ValueError: the template cannot be rendered, or does not write a message as it is, once.
    """
    if tokenizer.chat_template is None:
        return tokenizer.encode(""), PLAIN_TURN
    messages = [{"role": "user", "content": MESSAGE}]
    text = render_template(tokenizer.chat_template, messages, tokenizer.template_tokens())
    before, *rest = text.split(MESSAGE)
    if len(rest) != 1:
        raise ValueError(f"the model's chat template writes a message {len(rest)} times, expected once")
    return tokenizer.encode(before, bos=False), rest[0]  # the template writes what begins a text
