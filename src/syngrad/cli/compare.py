"""`syngrad compare`: the main job."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from syngrad.cli.common import INTERRUPTED, ending, whole

if TYPE_CHECKING:
    from syngrad.compare import Comparison


@ending
def compare(
    experiment: Annotated[
        str, typer.Argument(help="fashion-mlp, fashion-cnn, or path/to/file.py:function returning an Experiment.")
    ] = "fashion-mlp",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Rows, method[:estimator], with commas between. Without it: backprop, synthetic, synthetic:linear, "
            "synthetic:local, zero."
        ),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="The estimator of rows that name none, as in 'mlp(hidden=2)'.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--epochs"), help="Instead of the experiment's own.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--batch-size"), help="Instead of the experiment's own.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", parser=whole("--seed"), help="The first seed.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=whole("--seeds"),
            help="How many seeds, from the first on; each row is run with every one.",
        ),
    ] = 1,
    threads: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=whole("--threads"),
            help="PyTorch's threads. One is the least noisy; give a large model the machine's cores.",
        ),
    ] = 1,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write all figures there, as JSON.")] = None,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="A bar; on a terminal unless told otherwise.")
    ] = None,
) -> int:
    """Train one experiment in several ways, side by side, and say whether synthetic gradients pay.

    Step times are taken with the rows taking turns step by step; saved activations are what autograd and the interfaces
    keep for backward passes, without the minibatch itself.
    """
    from syngrad import results
    from syngrad.compare import ROWS, Comparison
    from syngrad.experiments import load
    from syngrad.report.progress import shown

    if json is not None:
        results.check_writable(json)
    loaded = load(experiment, epochs=epochs, batch_size=batch_size)
    comparison = Comparison(
        loaded,
        ROWS if methods is None else split_rows(methods),
        estimator=estimator,
        seed=seed,
        seeds=seeds,
        threads=threads,
    )
    interrupted, failure = False, None
    with shown(progress) as comparison.observer:
        try:
            comparison.run()
        except KeyboardInterrupt:
            interrupted = True
        except (Exception, SystemExit) as error:
            failure = error
    if interrupted:
        print(f"interrupted; finished rows: {len(comparison.rows)}", file=sys.stderr)
    if any(row.ok for row in comparison.rows) or (interrupted and comparison.rows):
        _publish(comparison, json)  # what is finished is not lost with what failed after it
    if failure is not None:
        raise failure
    return INTERRUPTED if interrupted else 0


def split_rows(text: str) -> list[str]:
    """The rows between the commas; those inside brackets, as in `synthetic:mlp(hidden=2,width=64)`, part nothing."""
    rows, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            rows.append("")
        else:
            rows[-1] += character
    return [row.strip() for row in rows if row.strip()]


def _publish(comparison: Comparison, json: str | None) -> None:
    """Write the results file first: what is printed can be lost, what was measured must not be."""
    from syngrad import results
    from syngrad.report.table import report
    from syngrad.report.verdict import verdict

    aggregated = results.aggregate(comparison.rows)
    said = verdict(aggregated)
    environment = results.environment(comparison.threads)
    document = results.document(environment, comparison.description, comparison.rows, said.to_dict())
    if json is not None:
        results.write(json, document)
    print(report(document, aggregated, said.text))
