"""The command line. Whatever a user gets wrong ends in one line on standard error and exit code 2, never in a trace."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

from syngrad import SyngradError, __version__, startup
from syngrad.cli.compare import compare
from syngrad.cli.data import app as data
from syngrad.cli.list_cuts import cuts
from syngrad.cli.options import BROKEN_PIPE, USAGE, complain, interrupted
from syngrad.cli.plan import plan
from syngrad.cli.reproduce import reproduce
from syngrad.cli.train import train
from syngrad.errors import first_line
from syngrad.launch import fork_server
from syngrad.startup import imported

app = typer.Typer(
    name="syngrad",
    help="Decoupled training with synthetic gradients: does it pay for me?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Typer shows its own errors in one way per version and library installed; ours are one line, so `main` prints them.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


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


app.command()(compare)
app.command()(train)
app.command()(cuts)
app.command()(plan)
app.command()(reproduce)
app.add_typer(data, name="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can put right, 130 after Ctrl-C.

    The environment variable SYNGRAD_TRACE=1 lets through, with its trace, what nobody thought of.
    """
    imported()
    print_anywhere()
    try:
        with _fork_server(sys.argv[1:] if arguments is None else arguments), warnings.catch_warnings():
            warnings.showwarning = one_line
            code = app(args=None if arguments is None else list(arguments), prog_name="syngrad", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SyngradError as error:
        return _fail(str(error))
    except _UsageError as error:
        said = getattr(error, "format_message", error.__str__)()
        return _fail(f"{said.rstrip('.')}; see 'syngrad --help'")
    except (KeyboardInterrupt, typer.Abort):
        return interrupted("interrupted")
    except BrokenPipeError:
        # Who read our output has left, as `head` does; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get("SYNGRAD_TRACE") == "1":
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(f"{str(error.filename)!r:.60}… is too long for the name of a file; give a shorter one")
        return _fail(f"unexpected {first_line(error)}; set SYNGRAD_TRACE=1 for the trace")


def _fork_server(words: Sequence[str]) -> AbstractContextManager[None]:
    """What makes workers, where there may be some: put aside now, before anything is computed."""
    several = startup.command and any(
        word.startswith(("--workers", "--answer", "--replicas", "--config", "--resume")) for word in words
    )
    return fork_server.put_aside() if several else nullcontext()


def print_anywhere() -> None:
    """Let both streams replace what their encoding has no character for: what was computed must not be lost by it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code that gave it."""
    complain(f"warning: {message}")


def _fail(message: str) -> int:
    complain(f"error: {message}")
    return USAGE
