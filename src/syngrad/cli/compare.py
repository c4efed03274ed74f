"""`syngrad compare`: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from syngrad.cli.common import ANY_EXPERIMENT, INSTEAD, any_experiment_of, ending, number, whole
from syngrad.cli.comparing import check_files, finish
from syngrad.cli.config import Option, command_line, kept, listed, resolve
from syngrad.errors import ConfigError

if TYPE_CHECKING:
    from syngrad.compare import Comparison, RecurrentComparison

split_rows = listed

#: every option, as a configuration's file and the results file know it
OPTIONS = {
    "experiment": Option("text", "fashion-mlp", argument=True),
    "methods": Option("texts"),
    "estimator": Option("text"),
    **INSTEAD,
    "seed": Option("whole", 0),
    "seeds": Option("whole", 1),
    "threads": Option("whole", 1),
    "target": Option("number"),
    "workers": Option("whole"),
    "link": Option("text"),
    "queue_depth": Option("whole"),
    "message_dtype": Option("text"),
    "trace": Option("text", kept=False),
    "json": Option("text", kept=False),
    "html": Option("text", kept=False),
    "progress": Option("flag", kept=False),
}


@ending
def compare(
    experiment: Annotated[
        str | None,
        typer.Argument(
            help=ANY_EXPERIMENT,
            show_default="fashion-mlp",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Rows, method[:estimator], with commas between. Without it: backprop, synthetic, synthetic:linear, "
            "synthetic:local, zero; of a recurrent net those that its experiment names, of bptt(T), synthetic(T), "
            "auxiliary(T), online(λ), zero."
        ),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="The estimator of rows that name none, as in 'mlp(hidden=2)'.")
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole("--stages"), help="So many stages of like cost, instead of its cuts."),
    ] = None,
    cuts: Annotated[
        str | None, typer.Option(help="The modules that start a new stage, with commas between, instead of its own.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--epochs"), help="Instead of the experiment's own.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--batch-size"), help="Instead of the experiment's own.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--seed"), help="The first seed; 0 unless told otherwise.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole("--seeds"),
            help="How many, 1 unless told otherwise, from the first on; each row is run with every one, and two or "
            "more give 95 % intervals.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole("--threads"),
            help="PyTorch's threads. One, as without it, is the least noisy; give a large model the machine's cores.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="Any of torch.optim, as in 'sgd(lr=0.1,momentum=0.9)', instead of the experiment's own."),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            parser=number("--target"),
            help="The metric's value to time, as in 0.85; it is then taken at least four times an epoch.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole("--workers"),
            help="Compare runs over so many processes. Rows, without --methods: alone, alone(threads), ddp, ddp:bf16, "
            "ddp:periodic, gpipe, 1f1b, delayed, synthetic:local, synthetic.",
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="With --workers: between two emulated hosts, so far apart, as in 20ms,100mbit; needs root."),
    ] = None,
    queue_depth: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole("--queue-depth"),
            help="With --workers: minibatches under way at most.",
            show_default="8; 2 for delayed",
        ),
    ] = None,
    message_dtype: Annotated[
        str | None,
        typer.Option(
            help="With --workers: bfloat16 or int8; for both ways, or forward,backward.", show_default="float32"
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --workers: a timeline of all processes, for Perfetto or Chrome."),
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write all figures there, as JSON.")] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a report there, one page that needs no network.")
    ] = None,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="A bar; on a terminal unless told otherwise.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Options from a TOML file of these names, or from a results file; flags win."
        ),
    ] = None,
) -> int:
    """Train one experiment in several ways, side by side, and say whether synthetic gradients pay.

    Step times are taken with the rows taking turns step by step; saved activations are what autograd and the interfaces
    keep for backward passes, without the minibatch itself.
    """
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    options = resolve("compare", OPTIONS, given, config, exclusive=[("cuts", "stages")])
    return run(options)


def run(options: dict[str, Any]) -> int:
    """The comparison that these options ask for, published where they say."""
    if options["workers"] is not None:
        from syngrad.cli.processes import run as over_processes

        return over_processes(options)
    for name in ("link", "queue_depth", "message_dtype", "trace"):
        if options[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]} needs --workers, the number of processes")
    from syngrad.compare import ROWS, Comparison, RecurrentComparison
    from syngrad.recurrent import RecurrentExperiment

    check_files(options, ("json", "html"))
    experiment = any_experiment_of(options)
    asked = None if options["methods"] is None else listed(options["methods"])
    common = {name: options[name] for name in ("estimator", "seed", "seeds", "threads", "target")}
    comparison: Comparison | RecurrentComparison
    if isinstance(experiment, RecurrentExperiment):
        comparison = RecurrentComparison(experiment, asked, **common)
    else:
        comparison = Comparison(experiment, ROWS if asked is None else asked, **common)
    return finish(comparison, options["progress"], lambda: _publish(comparison, options))


def _resolved(comparison: Comparison | RecurrentComparison, options: dict[str, Any]) -> dict[str, Any]:
    """The configuration that was run: what the experiment itself decided filled in."""
    from syngrad.recurrent import RecurrentExperiment

    experiment, cuts = comparison.experiment, comparison.description["cuts"]
    filled = {
        "methods": comparison.labels,
        "epochs": experiment.epochs,
        "batch_size": experiment.batch_size,
        "cuts": cuts or None,
        "stages": None if cuts or isinstance(experiment, RecurrentExperiment) else 1,
    }
    return kept("compare", OPTIONS, {**options, **filled})


def _publish(comparison: Comparison | RecurrentComparison, options: dict[str, Any]) -> None:
    """Write the files first: what is printed can be lost, what was measured must not be. And print all the same where
    they cannot be written.
    """
    from syngrad import results
    from syngrad.report.table import report
    from syngrad.report.verdict import verdict

    baseline = comparison.description.get("baseline")
    aggregated = results.aggregate(comparison.rows, *([baseline] if baseline else []))
    said = verdict(aggregated, comparison.target, baseline=baseline)
    environment = results.environment(comparison.threads)
    config = _resolved(comparison, options)
    document = results.document(environment, comparison.description, comparison.rows, said.to_dict(), config)
    try:
        if options["json"] is not None:
            results.write(options["json"], document)
        if options["html"] is not None:
            from syngrad.report.html import page

            results.write_text(options["html"], page(document, command_line(config, OPTIONS)))
    finally:
        print(report(document, aggregated, said.text, said.reasons))
    if options["html"] is not None:
        print(f"\nthe report: {options['html']}")
