"""The options of a command, described once: its flags and their help, the keys of a TOML file, and what is recorded.

A command is made by :func:`as_command` from a mapping of names to :class:`Option`; those of the Trainer are derived
from the fields of its own options. What comes of flags and file together is a plain mapping that goes into the results
file as it is, which can be given as `--config` again.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from syngrad.errors import ConfigError, TrainingError, clean, first_line, unknown
from syngrad.experiments import BUILT_IN, RECURRENT
from syngrad.runtime.option_fields import Flag, flat_options
from syngrad.startup import INTERRUPTED, ending_by_signal

USAGE, BROKEN_PIPE = 2, 141
#: characters of a line on standard error
LONGEST = 8000
#: kind → what to write instead of a value that is not of it
KINDS = {
    "whole": "a whole number",
    "number": "a number",
    "text": 'a text, in "quotation marks"',
    "texts": 'a list of texts, as in ["a", "b"]',
    "flag": "true or false",
}


@dataclass(frozen=True)
class Option(Flag):
    """One option of a command; of kind "texts" it may also be one text with commas.

    Args:
        default: where neither flag nor file says anything.
        kept: whether it belongs to the configuration that a results file holds; what only says where output goes does
            not.
        argument: typed without its name.
        filed: whether a file may say it too.
    """

    default: Any = None
    kept: bool = True
    argument: bool = False
    filed: bool = True


Options = Mapping[str, Option]
#: options of which one at most is given
Exclusive = Iterable[tuple[str, str]]

#: what is said of an experiment instead of its own, to every command that runs one
INSTEAD = ("epochs", "batch_size", "optimizer", "stages", "cuts")
#: what an experiment may be, for the commands' help; `syngrad compare` takes recurrent ones too
EXPERIMENT = f"{', '.join(BUILT_IN)}, or path/to/file.py:function returning an Experiment."
ANY_EXPERIMENT = f"{', '.join([*BUILT_IN, *RECURRENT])}, or path/to/file.py:function returning an Experiment."


def instead(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a command's options say of an experiment instead of its own."""
    cuts = options["cuts"]
    return {name: options[name] for name in INSTEAD} | {"cuts": None if cuts is None else listed(cuts)}


def derived(kind: Any, **changes: Mapping[str, Any]) -> dict[str, Option]:
    """The options of a command that are those of a class of options, by their flat names.

    Args:
        kind: a class of options, see :mod:`syngrad.runtime.option_fields`; its fields without a flag are left out.
        changes: name → what this command says otherwise, as in `seed={"default": 0}`.
    """
    flags = {(each.about.flag.name or each.name): each.about.flag for each in flat_options(kind) if each.about.flag}
    return {name: Option(**{**vars(flag), **changes.get(name, {})}) for name, flag in flags.items()}


def arranged(order: str, *groups: Options) -> dict[str, Option]:
    """The options of several groups as the help lists them; one that `order` does not name comes last."""
    options = {name: option for group in groups for name, option in group.items()}
    return {name: options[name] for name in dict.fromkeys([*order.split(), *options])}


# As Typer has them.


def as_command(options: Options) -> Callable[[Callable[[dict[str, Any]], int]], Callable[..., int]]:
    """A function of what was typed (None where an option was not) as a command with these options.

    The command says itself how it was ended: what Typer makes of Ctrl-C depends on its version, and an exit from the
    user's code must not pass for one of ours.
    """
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_typed(name, option))
        for name, option in options.items()
    ]

    def decorate(function: Callable[[dict[str, Any]], int]) -> Callable[..., int]:
        made: Any = ending(functools.wraps(function)(lambda **typed: function(typed)))
        made.__signature__ = inspect.Signature(parameters)
        return made  # type: ignore[no-any-return]

    return decorate


def ending(function: Callable[..., int]) -> Callable[..., int]:
    """A command that says itself how it was ended, see :func:`as_command`."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> int:
        try:
            return function(*args, **options)
        except KeyboardInterrupt:
            return interrupted("interrupted")
        except SystemExit as error:
            ended = f"the experiment's code ended the program ({first_line(error)}); let it return or raise instead"
            raise TrainingError(ended) from error

    return run


def interrupted(line: str) -> int:
    """The exit code of a command that was asked to end, once that is said."""
    ending_by_signal()
    complain(line)
    return INTERRUPTED


def complain(line: str) -> None:
    """A line on standard error, if there is one: print itself would take standard output for one that is closed."""
    if sys.stderr is not None:
        print(clean(line, LONGEST), file=sys.stderr, flush=True)


def _typed(name: str, option: Option) -> Any:
    """The annotation from which Typer makes a flag."""
    typed = "--" + name.replace("_", "-")
    given: dict[str, Any] = {"help": option.help}
    if option.shown:
        given["show_default"] = option.shown
    if option.metavar is not None:
        given["metavar"] = option.metavar
    if option.argument:
        return Annotated[str | None, typer.Argument(**given)]
    if option.kind == "flag":
        return Annotated[bool | None, typer.Option(f"{typed}/--no-{typed[2:]}", **given)]
    if option.kind == "whole":
        return Annotated[int | None, typer.Option(**{"metavar": "N", **given}, parser=whole(typed))]
    if option.kind == "number":
        return Annotated[float | None, typer.Option(**{"metavar": "X", **given}, parser=number(typed))]
    return Annotated[list[str] | None if option.repeated else str | None, typer.Option(**given)]


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


# Flags and file together.


def resolve(
    command: str, options: Options, flags: Mapping[str, Any], file: str | Path | None, exclusive: Exclusive = ()
) -> dict[str, Any]:
    """Every option's value: the flag's where it is not None, else the file's, else the default.

    Of two exclusive options, the one given as a flag silences the other in the file.
    """
    options = {name: option for name, option in options.items() if option.filed}
    read_ = read(file, command, options) if file is not None else {}
    typed = {name: value for name, value in flags.items() if value is not None and name in options}
    for one, other in exclusive:
        for where in (typed, read_):
            if one in where and other in where:
                raise ConfigError(f"give either {one} or {other}, not both")
        for name, opposite in ((one, other), (other, one)):
            if name in typed:
                read_.pop(opposite, None)
    merged = {**read_, **typed}
    return {name: merged.get(name, option.default) for name, option in options.items()}


def read(file: str | Path, command: str, options: Options) -> dict[str, Any]:
    """What a file says of a command's options, checked.

    Raises:
        ConfigError: in one line, for a file that cannot be read, is neither TOML nor a results file (with the line),
            names an unknown option (the nearest valid one said), or gives a value of the wrong kind.
    """
    path = Path(file)
    said = f"config {str(path)!r}"
    if not path.is_file():
        raise ConfigError(f"{said} does not exist (or is no file)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{said} is no text in UTF-8; give a TOML file, or a results file") from error
    except OSError as error:
        raise ConfigError(f"{said} cannot be read: {first_line(error)}") from error
    found = _from_results(text, said, command, options) if text.lstrip().startswith("{") else _from_toml(text, said)
    checked: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in options:
            raise ConfigError(f"{said}: {unknown('option', key, options)}")
        if name in checked:
            raise ConfigError(f"{said}: {name} is given twice; write it once")
        checked[name] = _checked(said, key, value, options[name].kind)
    return checked


def _from_toml(text: str, said: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOML's own error, and numbers of too many digits
        # it ends in "(at line 3, column 5)", which is said in front
        message, _, place = first_line(error).partition(": ")[2].rpartition(" (at ")
        line = re.match(r"line (\d+)", place)
        last = text.rstrip().count("\n") + 1 if place.startswith("end of document") else None
        number = line[1] if line else last
        where = f", line {number}," if number else ""
        raise ConfigError(f"{said}{where} is no TOML: {message or first_line(error)}") from error


def _from_results(text: str, said: str, command: str, options: Options) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}," if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"{said}{line} is no JSON: {first_line(error)}") from error
    config = document.get("config")
    if not isinstance(config, dict):
        raise ConfigError(f"{said} holds no 'config'; give a results file of this version, or a TOML file")
    given = {key: value for key, value in config.items() if value is not None}
    for key in given:
        if key in options and not options[key].kept:
            raise ConfigError(f"{said} names {key!r}, where output goes, which a results file does not; type --{key}")
    made_by = given.pop("command", command)
    if made_by != command:
        raise ConfigError(
            f"{said} was written by 'syngrad {made_by!s:.20}'; give it to that, or 'syngrad {command}' its own"
        )
    return given


def _checked(said: str, key: str, value: Any, kind: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        "whole": whole,
        "number": whole or (isinstance(value, float) and math.isfinite(value)),
        "text": isinstance(value, str),
        "texts": isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)),
        "flag": isinstance(value, bool),
    }[kind]
    if not fits:
        raise ConfigError(f"{said}: {key} is {value!r:.40}; write {KINDS[kind]}")
    return value


def listed(value: str | list[str]) -> list[str]:
    """The texts of an option of kind "texts". Commas inside brackets, as in `synthetic:mlp(hidden=2,width=64)`, part
    nothing.
    """
    if isinstance(value, list):
        return [each.strip() for each in value if each.strip()]
    parts, depth = [""], 0
    for character in value:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def kept(command: str, options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as the results file has it: the command, and every option that is kept."""
    return {
        "command": command,
        **{name: values.get(name) for name, option in options.items() if option.kept and option.filed},
    }


def command_line(config: Mapping[str, Any], options: Options) -> str:
    """What to type to run a configuration again, quoted for a shell; defaults are left out."""
    words = ["syngrad", str(config.get("command", "compare"))]
    for name, option in options.items():
        value = config.get(name)
        if value is None or (value == option.default and not option.argument):
            continue
        flag = "--" + name.replace("_", "-")
        if option.argument:
            words.append(str(value))
        elif option.kind == "flag":
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join(words)
