"""`resa-bench`, which is `python -m resa_bench.suites`: it may be interrupted while its libraries are imported, too."""

import sys

INTERRUPTED = 130  # as core.exits has it, whose import takes as long as all others


def main() -> int:
    """The exit status."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("resa-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
