"""The published experiments at a scale, into results/; goes on where it was stopped. See README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from syngrad.cli import main as syngrad
from syngrad.reproduce import SCALES
from syngrad.reproduce.studies.registry import STUDIES

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--scale", default="standard", choices=list(SCALES))
    parser.add_argument("--seeds", type=int, help="instead of the scale's own")
    options = parser.parse_args()
    seeds = [] if options.seeds is None else ["--seeds", str(options.seeds)]
    return syngrad(["reproduce", *options.names, "--scale", options.scale, "--out", str(RESULTS), *seeds])


if __name__ == "__main__":
    sys.exit(main())
