"""What every process that a benchmark has a launcher start does last: `PROGRAM SPEC OUT`, SPEC in JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from syngrad.launch.parent_death import die_with_parent
from syngrad.pipeline.failures import report_failure


def work(main: Callable[[dict[str, Any], str], None]) -> None:
    """`main` with the two arguments that the process was started with; it ends with its launcher, and tells it why."""
    die_with_parent()
    try:
        main(json.loads(sys.argv[1]), sys.argv[2])
    except BaseException as error:
        report_failure(error)
        raise
