"""One of two processes that measure this machine, started by :func:`syngrad.planner.machine.measure_machine`.

    python -m syngrad.planner SPEC OUT

SPEC is JSON: experiment, what stands instead of its own, seconds. The first process writes to OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from syngrad.experiments import registry
from syngrad.launch.parent_death import die_with_parent
from syngrad.pipeline.failures import report_failure
from syngrad.planner.machine_worker import measured


def main(spec: str, out: str) -> None:
    """Measure, and let the first process write."""
    told = json.loads(spec)
    found = measured(registry.load(told["experiment"], **told["instead"]), told["seconds"])
    if found:
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    die_with_parent()
    try:
        main(*sys.argv[1:])
    except BaseException as error:
        report_failure(error)
        sys.exit(2)
