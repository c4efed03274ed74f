"""`syngrad compare --workers N`: the comparison over several processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from syngrad.cli.common import INTERRUPTED
from syngrad.config import kept, listed
from syngrad.errors import ConfigError

if TYPE_CHECKING:
    from syngrad.processes import Processes

#: what the processes of a row are told to use instead of the experiment's own
INSTEAD = ("epochs", "batch_size", "optimizer", "cuts", "stages")


def run(options: dict[str, Any]) -> int:
    """The comparison that these options ask for, published where they say."""
    from syngrad import results
    from syngrad.processes import Processes
    from syngrad.report.progress import shown

    for name in ("html", "estimator"):
        if options[name] is not None:
            raise ConfigError(f"--{name} {options[name]} does not go with --workers; leave it out")
    for name in ("json", "trace"):
        if options[name] is not None:
            results.check_writable(options[name])
    dtype = options["message_dtype"]
    laid = {
        "queue_depth": options["queue_depth"],
        "message_dtype": dtype if dtype is None or "," not in dtype else tuple(listed(dtype)),
        "trace": options["trace"] is not None or None,
    }
    cuts = options["cuts"]
    instead = {name: options[name] for name in INSTEAD} | {"cuts": listed(cuts) if cuts is not None else None}
    comparison = Processes(
        options["experiment"],
        options["workers"],
        None if options["methods"] is None else listed(options["methods"]),
        instead=instead,
        options={name: value for name, value in laid.items() if value is not None},
        seed=options["seed"],
        seeds=options["seeds"],
        threads=options["threads"],
        target=options["target"],
        link=options["link"],
    )
    interrupted = False
    with shown(options["progress"]) as comparison.observer:
        try:
            comparison.run()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        print(f"interrupted; finished rows: {len(comparison.rows)}", file=sys.stderr)
    if comparison.rows:
        _publish(comparison, options)
    return INTERRUPTED if interrupted else 0


def _publish(comparison: Processes, options: dict[str, Any]) -> None:
    from syngrad import results
    from syngrad.cli.compare import OPTIONS
    from syngrad.report.processes import table, verdict
    from syngrad.report.table import environment_line
    from syngrad.report.timeline import chrome

    environment = {**results.environment(comparison.threads), "link": str(comparison.link or "") or None}
    text = verdict(comparison.rows)
    document = results.document(
        environment, comparison.description, comparison.rows, {"text": text}, kept("compare", OPTIONS, options)
    )
    try:
        if options["json"] is not None:
            results.write(options["json"], document)
        if options["trace"] is not None:
            results.write(options["trace"], chrome(comparison.accounts))
    finally:
        print("\n".join([*table(comparison.rows, comparison.accounts), "", text]))
        print(environment_line(environment, comparison.description))
        if comparison.link is not None:
            print(f"two emulated hosts, {comparison.link} between them")
