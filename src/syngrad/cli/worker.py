"""One worker of `syngrad train --workers N`: started by a launcher, see train.py."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from typing import Any

from syngrad import startup
from syngrad.cli import one_line, print_anywhere
from syngrad.cli.options import USAGE
from syngrad.cli.train import run
from syngrad.errors import TrainingError
from syngrad.launch.parent_death import die_with_parent
from syngrad.links.world import world
from syngrad.pipeline.failures import introduced, report_failure
from syngrad.replicas.place import place as replica_place
from syngrad.startup import INTERRUPTED


def main(text: str) -> int:
    """Train as these options ask for; what fails is left for the launcher to print."""
    options, resume = json.loads(text)
    print_anywhere()
    with warnings.catch_warnings():
        replica = None if options["replicas"] is None else replica_place()
        first = world().rank == 0 and (replica is None or replica.index == 0)
        warnings.showwarning = one_line if first else of_its_own
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = run(options, resume)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            report_failure(error)
            return USAGE
    if code == INTERRUPTED:  # where the launcher was interrupted too, it does not look
        report_failure(TrainingError("it was interrupted by a signal, so the run is not started again"), for_good=True)
    return code


def of_its_own(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning of any process but the first: what it gives before it trains, that one has given too."""
    if who := introduced():
        one_line(f"{who}: {message}")


if __name__ == "__main__":
    die_with_parent()
    startup.keep()
    startup.command = True  # its last line, too, is not to be cut off
    sys.exit(main(sys.argv[1]))
