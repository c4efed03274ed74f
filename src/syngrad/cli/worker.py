"""One worker of `syngrad train --workers N`: `python -m syngrad.cli.worker OPTIONS`, started by a launcher."""

from __future__ import annotations

import json
import sys
import warnings

from syngrad.cli import one_line
from syngrad.cli.common import USAGE
from syngrad.cli.train import run
from syngrad.errors import TrainingWarning
from syngrad.execution.reporting import report_failure
from syngrad.execution.world import die_with_parent
from syngrad.links.world import world


def main(text: str) -> int:
    """Train as these options ask for; what fails is left for the launcher to print."""
    options, resume = json.loads(text)
    with warnings.catch_warnings():
        warnings.showwarning = one_line
        if world().rank > 0:  # what is said of the script and its libraries has been said by the first one
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TrainingWarning)  # of this one's own stages and links
        try:
            return run(options, resume)
        except Exception as error:
            report_failure(error)
            return USAGE


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1]))
