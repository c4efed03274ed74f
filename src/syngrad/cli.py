"""The command line. Whatever a user gets wrong ends in one line on standard error and exit code 2, never in a trace."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syngrad import SyngradError, __version__
from syngrad.errors import ConfigError, TrainingError, first_line

if TYPE_CHECKING:
    from syngrad.compare import Comparison

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141

app = typer.Typer(
    name="syngrad",
    help="Decoupled training with synthetic gradients: does it pay for me?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Typer shows its own errors in one way per version and library installed; ours are one line, so `main` prints them.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _whole(option: str) -> Any:
    """The parser of a whole number; what Typer says of another depends on its version and does not name the value."""

    def parse(text: str | int) -> int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{option} {text!r:.40} is no whole number; write one, as in {option} 3") from None

    return parse


def _version(value: bool) -> None:
    if value:
        print(f"syngrad {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Decoupled training with synthetic gradients: does it pay for me?"""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _ending(command: Callable[..., int]) -> Callable[..., int]:
    """A command that says itself how it was ended: what Typer makes of Ctrl-C depends on its version, and an exit from
    the user's code must not pass for one of ours.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> int:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as error:
            ended = f"the experiment's code ended the program ({first_line(error)}); let it return or raise instead"
            raise TrainingError(ended) from error

    return run


@app.command()
@_ending
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
        int | None, typer.Option(metavar="N", parser=_whole("--epochs"), help="Instead of the experiment's own.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", parser=_whole("--batch-size"), help="Instead of the experiment's own.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", parser=_whole("--seed"), help="The first seed.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=_whole("--seeds"),
            help="How many seeds, from the first on; each row is run with every one.",
        ),
    ] = 1,
    threads: Annotated[
        int,
        typer.Option(
            metavar="N",
            parser=_whole("--threads"),
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can put right, 130 after Ctrl-C.

    The environment variable SYNGRAD_TRACE=1 lets through, with its trace, what nobody thought of.
    """
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="syngrad", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SyngradError as error:
        return _fail(str(error))
    except _UsageError as error:
        said = getattr(error, "format_message", error.__str__)()
        return _fail(f"{said.rstrip('.')}; see 'syngrad --help'")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has left, as `head` does; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("SYNGRAD_TRACE") == "1":
            raise
        return _fail(f"unexpected {first_line(error)}; set SYNGRAD_TRACE=1 for the trace")


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return USAGE
