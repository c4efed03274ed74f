"""`syngrad train --workers N`: the same training in N processes, started here and started again when one is lost."""

from __future__ import annotations

import json
import sys
from typing import Any

from syngrad.cli.common import INTERRUPTED
from syngrad.errors import ConfigError
from syngrad.experiments.experiment import check_count
from syngrad.links.world import world

MOST, RESTARTS = 64, 3
#: a worker; Ctrl-C while it still imports PyTorch ends it without a trace
WORKER = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); import runpy; "
    "runpy.run_module('syngrad.cli.worker', run_name='__main__', alter_sys=True)"
)
#: options that say nothing to one process alone
OPTIONS = ("place", "queue_depth", "message_dtype", "link_key", "restarts")


def wanted(workers: int | None) -> bool:
    """Whether processes are to be started here: not where this is one of them already."""
    size = world().size
    if workers is None:
        return False
    check_count("workers", workers, 1, MOST)
    if size > 1 and workers not in (1, size):
        raise ConfigError(f"--workers {workers}, but torchrun has started {size} processes; leave --workers out")
    return size == 1 and workers > 1


def start(options: dict[str, Any], resume: bool, settings: dict[str, Any]) -> int:
    """Run `syngrad train` with these options in its workers until they are done; the exit code.

    settings: those of the options that say how the run is laid over them; refused here, before anything is started.
    """
    from syngrad.launch.launcher import launch
    from syngrad.pipeline.options import Distributed

    Distributed(**settings)

    command = [sys.executable, "-c", WORKER, json.dumps([options, resume])]
    try:
        restarts = RESTARTS if options["restarts"] is None else options["restarts"]
        launch(command, options["workers"], restarts=restarts, threads=options["threads"], say=_say_restart)
    except KeyboardInterrupt:  # what became of the run has been said by the first worker
        return INTERRUPTED
    return 0


def _say_restart(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
