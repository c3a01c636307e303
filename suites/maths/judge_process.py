"""The process that judges: requests `[expected, text]` a line on stdin, replies `[outcome, extracted]` on stdout.

It holds math-verify (and sympy) and nothing else of this project, so that it starts fast and may be killed at will.
The library's own time limits are off: they work by signals, which arithmetic on huge numbers does not heed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys

MEMORY_BYTES = 4 * 2**30  # address space: 10^(10^10) must not take the machine's
EXTRACTED_CHARS = 200


def judge(expected: str, text: str) -> tuple[str, str]:
    """Whether the final answer of `text`, in `\\boxed{}` or plain, equals `expected`; and that answer as found."""
    from math_verify import parse, verify

    answer = parse(text, parsing_timeout=None)
    if not answer:
        return "no answer", ""
    wanted = parse(f"\\boxed{{{expected}}}", parsing_timeout=None)
    same = verify(wanted, answer, timeout_seconds=None)
    return "right" if same else "wrong", str(answer[-1])[:EXTRACTED_CHARS]


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    judge("1", "1")  # imports, before the clock of the first request runs
    replies.write("ready\n")
    for line in sys.stdin:
        try:
            reply = judge(*json.loads(line))
        except Exception as error:  # sympy raises what it likes
            reply = ("crashed", f"{type(error).__name__}: {error}"[:EXTRACTED_CHARS])
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
