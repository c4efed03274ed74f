"""A quick look at whether a benchmark works: `--quick`, whose figures are none and go to a file of their own."""

from __future__ import annotations

import argparse
from pathlib import Path


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with `--quick` and `--out`, the file of the results; the first needs the second."""
    parser.add_argument("--quick", action="store_true", help="a little of it, to see that it works; needs --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.quick and options.out is None:
        parser.error("--quick makes no results; name another file with --out")
    return options
