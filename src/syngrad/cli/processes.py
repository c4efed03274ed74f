"""`syngrad compare --workers N`: the comparison over several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syngrad.cli.comparing import check_files, finish
from syngrad.cli.config import command_line, kept, listed

if TYPE_CHECKING:
    from syngrad.compare.over_workers import WorkersComparison

#: what the processes of a row are told to use instead of the experiment's own
INSTEAD = ("epochs", "batch_size", "optimizer", "cuts", "stages")
#: options that name a file to write
FILES = ("json", "html", "trace")


def run(options: dict[str, Any]) -> int:
    """The comparison that these options ask for, published where they say."""
    from syngrad.compare.over_workers import WorkersComparison

    check_files(options, FILES)
    dtype = options["message_dtype"]
    laid = {
        "queue_depth": options["queue_depth"],
        "message_dtype": dtype if dtype is None or "," not in dtype else tuple(listed(dtype)),
        "trace": options["trace"] is not None or options["html"] is not None or None,
    }
    cuts = options["cuts"]
    instead = {name: options[name] for name in INSTEAD} | {"cuts": listed(cuts) if cuts is not None else None}
    comparison = WorkersComparison(
        options["experiment"],
        options["workers"],
        None if options["methods"] is None else listed(options["methods"]),
        estimator=options["estimator"],
        instead=instead,
        options={name: value for name, value in laid.items() if value is not None},
        seed=options["seed"],
        seeds=options["seeds"],
        threads=options["threads"],
        target=options["target"],
        link=options["link"],
    )
    return finish(comparison, options["progress"], lambda: _publish(comparison, options))


def _publish(comparison: WorkersComparison, options: dict[str, Any]) -> None:
    """Write the files first, and print all the same where they cannot be written."""
    from syngrad import results
    from syngrad.cli.compare import OPTIONS
    from syngrad.report.processes import over, report, verdict
    from syngrad.report.timeline import chrome

    environment = {**results.environment(comparison.threads), "link": str(comparison.link or "") or None}
    experiment = comparison.experiment
    filled = {"methods": comparison.labels, "epochs": experiment.epochs, "batch_size": experiment.batch_size}
    config = kept("compare", OPTIONS, {**options, **filled})
    document = results.finite(
        results.document(environment, comparison.description, comparison.rows, None, config),
    )
    compared = over(document, comparison.accounts)
    said = verdict(compared)
    document["verdict"] = said.to_dict()
    try:
        if options["json"] is not None:
            results.write(options["json"], document)
        if options["trace"] is not None:
            results.write(options["trace"], chrome(comparison.accounts))
        if options["html"] is not None:
            from syngrad.report.processes.page import page

            results.write_text(
                options["html"], page(document, command_line(config, OPTIONS), accounts=comparison.accounts)
            )
    finally:
        print(report(document, compared, said))
    if options["html"] is not None:
        print(f"\nthe report: {options['html']}")
