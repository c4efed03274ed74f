"""`python -m syngrad` is `syngrad`."""

import sys

from syngrad.startup import INTERRUPTED


def run() -> int:
    """The command line's exit code; Ctrl-C while it is still being imported ends it as quietly as later on."""
    try:
        from syngrad.cli import main

        return main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
