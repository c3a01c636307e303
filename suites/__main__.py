"""`resa-bench`, which is `python -m resa_bench.suites`: what it imports may be missing, or be interrupted."""

import sys

UNUSABLE, INTERRUPTED = 2, 130  # as core.exits has them, whose import takes as long as all others
PROJECT = "resa_bench"


def main() -> int:
    """The exit status."""
    try:
        return run()
    except KeyboardInterrupt:
        print("resa-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


def run() -> int:
    """The command line, once it could be imported."""
    try:
        from .cli import main as command_line
    except ModuleNotFoundError as error:
        if (error.name or PROJECT).startswith(PROJECT):
            raise
        print(f"resa-bench: {error.name} is not here; pip install -e . brings what is needed", file=sys.stderr)
        return UNUSABLE
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
