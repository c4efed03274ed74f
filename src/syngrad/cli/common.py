"""What the commands share: parsers of their options, and how each of them ends."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from syngrad.errors import ConfigError, TrainingError, first_line

USAGE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141


def whole(option: str) -> Any:
    """The parser of a whole number; what Typer says of another depends on its version and does not name the value."""

    def parse(text: str | int) -> int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{option} {text!r:.40} is no whole number; write one, as in {option} 3") from None

    return parse


def number(option: str) -> Any:
    """The parser of a number."""

    def parse(text: str | float) -> float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{option} {text!r:.40} is no number; write one, as in {option} 0.5") from None

    return parse


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
