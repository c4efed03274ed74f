"""`syngrad compare`: the main job, in one process or over several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from syngrad.cli.options import (
    ANY_EXPERIMENT,
    Option,
    as_command,
    command_line,
    derived,
    instead,
    kept,
    listed,
    resolve,
)
from syngrad.cli.running import check_files, documented, finish
from syngrad.cli.whole_answer import REFUSED, answer
from syngrad.errors import ConfigError
from syngrad.pipeline.options import Distributed

if TYPE_CHECKING:
    from syngrad.compare import Comparison, RecurrentComparison
    from syngrad.compare.over_workers import WorkersComparison

_FLAGS = derived(
    Distributed,
    queue_depth={"help": "With --workers: minibatches under way at most."},
    message_dtype={
        "help": "With --workers: bfloat16 or int8; for both ways, or forward,backward.",
        "shown": "float32",
    },
)
#: options that say nothing to one process alone
OF_WORKERS = ("link", "memory", "queue_depth", "message_dtype", "trace")
#: every option, in the order of the help
OPTIONS = {
    "experiment": Option("text", ANY_EXPERIMENT, "fashion-mlp", default="fashion-mlp", argument=True),
    "methods": Option(
        "texts",
        "Rows, method[:estimator], with commas between. Without it: backprop, synthetic, synthetic:linear, "
        "synthetic:local, zero; of a recurrent net those that its experiment names, of bptt(T), synthetic(T), "
        "auxiliary(T), online(λ), zero.",
    ),
    "estimator": Option("text", "The estimator of rows that name none, as in 'mlp(hidden=2)'."),
    "stages": Option("whole", "So many stages of like cost, instead of its cuts."),
    "cuts": Option("texts", "The modules that start a new stage, with commas between, instead of its own."),
    "epochs": Option("whole", "Instead of the experiment's own."),
    "batch_size": Option("whole", "Instead of the experiment's own."),
    "seed": Option("whole", "The first seed; 0 unless told otherwise.", default=0),
    "seeds": Option(
        "whole",
        "How many, 1 unless told otherwise, from the first on; each row is run with every one, and two or more give "
        "95 % intervals.",
        default=1,
    ),
    "threads": Option(
        "whole",
        "PyTorch's threads. One, as without it, is the least noisy; give a large model the machine's cores.",
        default=1,
    ),
    "optimizer": Option(
        "text", "Any of torch.optim, as in 'sgd(lr=0.1,momentum=0.9)', instead of the experiment's own."
    ),
    "target": Option(
        "number", "The metric's value to time, as in 0.85; it is then taken at least four times an epoch."
    ),
    "workers": Option(
        "whole",
        "Compare runs over so many processes. Rows, without --methods: alone, alone(threads), ddp, ddp:bf16, "
        "ddp:periodic, gpipe, 1f1b, delayed, synthetic:local, synthetic. Others to name: diloco(every=100), "
        "ddp:powersgd(rank=4), zb1p (zero bubble), and messages in fewer bits, as in gpipe:bf16, 1f1b:int8.",
    ),
    "link": Option("text", "With --workers: between two emulated hosts, so far apart, as in 20ms,100mbit; needs root."),
    "memory": Option(
        "number",
        "With --workers: MiB that a process may have at most, by its measured peak; rows over it do not fit.",
    ),
    "answer": Option(
        "flag",
        "All in one, for the machine at hand: in one process, over as many workers as there are cores, and what a plan "
        "says of slow links; one answer at the end.",
    ),
    "queue_depth": _FLAGS["queue_depth"],
    "message_dtype": _FLAGS["message_dtype"],
    "trace": Option(
        "text", "With --workers: a timeline of all processes, for Perfetto or Chrome.", metavar="FILE", kept=False
    ),
    "json": Option("text", "Write all figures there, as JSON.", metavar="FILE", kept=False),
    "html": Option("text", "Write a report there, one page that needs no network.", metavar="FILE", kept=False),
    "progress": Option("flag", "A bar; on a terminal unless told otherwise.", kept=False),
    "config": Option(
        "text",
        "Options from a TOML file of these names, or from a results file; flags win.",
        metavar="FILE",
        filed=False,
    ),
}


@as_command(OPTIONS)
def compare(given: dict[str, Any]) -> int:
    """Train one experiment in several ways, side by side, and say whether synthetic gradients pay.

    Step times are taken with the rows taking turns step by step; saved activations are what autograd and the interfaces
    keep for backward passes, without the minibatch itself.
    """
    options = resolve("compare", OPTIONS, given, given["config"], exclusive=[("cuts", "stages")])
    if options["answer"]:
        for name in REFUSED:
            if options[name] is not None:
                raise ConfigError(f"--answer says itself what it compares; leave --{name.replace('_', '-')} out, or it")
        config = kept("compare", OPTIONS, options)
        return answer(options, config, command_line(config, OPTIONS))
    if options["workers"] is not None:
        return over_workers(options)
    for name in OF_WORKERS:
        if options[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]} needs --workers, the number of processes")
    return in_one_process(options)


def in_one_process(options: dict[str, Any]) -> int:
    """The comparison that these options ask for, published where they say."""
    from syngrad.compare import ROWS, Comparison, RecurrentComparison
    from syngrad.experiments import load_any
    from syngrad.recurrent import RecurrentExperiment

    check_files(options, ("json", "html"))
    experiment = load_any(options["experiment"], **instead(options))
    asked = None if options["methods"] is None else listed(options["methods"])
    common = {name: options[name] for name in ("estimator", "seed", "seeds", "threads", "target")}
    comparison: Comparison | RecurrentComparison
    if isinstance(experiment, RecurrentExperiment):
        comparison = RecurrentComparison(experiment, asked, **common)
    else:
        comparison = Comparison(experiment, ROWS if asked is None else asked, **common)
    return finish(
        comparison, options["progress"], lambda: _publish(comparison, options, _resolved(comparison, options))
    )


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


def _publish(
    comparison: Comparison | RecurrentComparison | WorkersComparison,
    options: dict[str, Any],
    config: dict[str, Any],
    accounts: Any = None,
    link: str | None = None,
) -> None:
    """Write the files first: what is printed can be lost, what was measured must not be. And print all the same where
    they cannot be written.

    Args:
        config: the command's options, as the file and the report keep them.
        accounts: what every worker says of itself, where there are several; link: what is emulated between them.
    """
    from syngrad import results
    from syngrad.report.table import report

    document, compared, said = documented(comparison, config, accounts, link)
    try:
        if options["json"] is not None:
            results.write(options["json"], document)
        if accounts is not None and options["trace"] is not None:
            from syngrad.report.tracks import chrome

            results.write(options["trace"], chrome(accounts))
        if options["html"] is not None:
            from syngrad.report.page import page

            results.write_text(options["html"], page(document, command_line(config, OPTIONS), accounts=accounts))
    finally:
        print(report(document, compared, said))
    if options["html"] is not None:
        print(f"\nthe report: {options['html']}")


def over_workers(options: dict[str, Any]) -> int:
    """The comparison over several processes, each row a run of its own."""
    from syngrad.compare.over_workers import WorkersComparison

    check_files(options, ("json", "html", "trace"))
    dtype = options["message_dtype"]
    laid = {
        "queue_depth": options["queue_depth"],
        "message_dtype": dtype if dtype is None or "," not in dtype else tuple(listed(dtype)),
        "trace": options["trace"] is not None or options["html"] is not None or None,
    }
    comparison = WorkersComparison(
        options["experiment"],
        options["workers"],
        None if options["methods"] is None else listed(options["methods"]),
        estimator=options["estimator"],
        instead=instead(options),
        options={name: value for name, value in laid.items() if value is not None},
        seed=options["seed"],
        seeds=options["seeds"],
        threads=options["threads"],
        target=options["target"],
        link=options["link"],
        memory=options["memory"],
    )
    return finish(comparison, options["progress"], lambda: _publish_workers(comparison, options))


def _publish_workers(comparison: WorkersComparison, options: dict[str, Any]) -> None:
    experiment = comparison.experiment
    filled = {"methods": comparison.labels, "epochs": experiment.epochs, "batch_size": experiment.batch_size}
    config = kept("compare", OPTIONS, {**options, **filled})
    _publish(comparison, options, config, comparison.accounts, str(comparison.link or "") or None)
