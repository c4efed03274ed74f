"""What the commands share: parsers of their options, and how each of them ends."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from syngrad.cli.config import Option, listed
from syngrad.errors import ConfigError, TrainingError, first_line
from syngrad.experiments import BUILT_IN, RECURRENT

if TYPE_CHECKING:
    from syngrad.experiments.experiment import Experiment
    from syngrad.recurrent import RecurrentExperiment

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def whole(option: str) -> Any:
    """The parser of a whole number; what Typer says of another depends on its version and does not name the value."""
    return _parser(option, int, "whole number", "3")


def number(option: str) -> Any:
    """The parser of a number."""
    return _parser(option, float, "number", "0.5")


def _parser(option: str, kind: Callable[[Any], Any], said: str, example: str) -> Any:
    def parse(text: Any) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{option} {text!r:.40} is no {said}; write one, as in {option} {example}") from None

    return parse


#: what is said of an experiment instead of its own, to every command that runs one; `experiment_of` reads them
INSTEAD = {
    "stages": Option("whole"),
    "cuts": Option("texts"),
    "epochs": Option("whole"),
    "batch_size": Option("whole"),
    "optimizer": Option("text"),
}
#: what an experiment may be, for the commands' help
EXPERIMENT = f"{', '.join(BUILT_IN)}, or path/to/file.py:function returning an Experiment."
#: the same to `syngrad compare`, which takes recurrent ones too
ANY_EXPERIMENT = f"{', '.join([*BUILT_IN, *RECURRENT])}, or path/to/file.py:function returning an Experiment."


def experiment_of(options: Mapping[str, Any]) -> Experiment:
    """The experiment that a command's options name, with what they say instead of its own; no recurrent one."""
    from syngrad.experiments import load

    return load(options["experiment"], **_instead(options))


def any_experiment_of(options: Mapping[str, Any]) -> Experiment | RecurrentExperiment:
    """The same, or a recurrent one."""
    from syngrad.experiments import load_any

    return load_any(options["experiment"], **_instead(options))


def _instead(options: Mapping[str, Any]) -> dict[str, Any]:
    cuts = options["cuts"]
    return dict(
        epochs=options["epochs"],
        batch_size=options["batch_size"],
        optimizer=options["optimizer"],
        stages=options["stages"],
        cuts=None if cuts is None else listed(cuts),
    )


def ending(command: Callable[..., int]) -> Callable[..., int]:
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
