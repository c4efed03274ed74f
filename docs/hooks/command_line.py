"""The page of commands and options, made from the program itself so that it cannot go stale.

`python docs/hooks/command_line.py` writes docs/command-line.md; a test, and the build of the site, fail where the page
says something else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "command-line.md"

HEAD = """# Command line

<!-- Written by docs/hooks/command_line.py; change the commands' own help and run that again. -->

`python -m syngrad` is the same program. What a user can put right ends in one line on standard error and exit code 2;
Ctrl-C ends with 130. `SYNGRAD_TRACE=1` in the environment lets unforeseen errors through with their trace.

An experiment is a built-in name or `path/to/file.py:function`, where the function returns a
[`syngrad.Experiment`](reference.md#syngrad.Experiment). Options may also stand in a TOML file given as `--config`,
under their own names without the dashes; see [Long runs](long-runs.md#the-configuration-of-a-run).
"""


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    below = getattr(command, "commands", {})
    if not below:
        yield name, command
    for word, each in below.items():
        yield from commands(each, f"{name} {word}")


def typed(parameter: Any) -> str:
    """How an option is written, as in `--epochs N`."""
    if parameter.param_type_name == "argument":
        word = (parameter.metavar or parameter.name).upper()
        return f"{word} …" if parameter.nargs == -1 else word
    both = "/".join([*parameter.opts, *parameter.secondary_opts])
    return both if parameter.is_flag else f"{both} {parameter.metavar or 'TEXT'}"


def default(parameter: Any) -> str:
    """What holds where an option is not given, if anybody said so."""
    shown = parameter.show_default
    if not isinstance(shown, str):
        shown = parameter.default if parameter.default is not None and not parameter.required else None
    return f" Default: `{shown}`." if shown is not None else ""


def row(parameter: Any) -> str:
    """One line of a command's table."""
    help_ = " ".join(parameter.help.split()).replace("*", "\\*")
    cells = [f"`{typed(parameter)}`", help_ + default(parameter)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    import typer

    from syngrad.cli import app

    parts = [HEAD]
    for name, command in commands(typer.main.get_command(app), "syngrad"):
        lines = [row(parameter) for parameter in command.params]
        table = "\n".join(["| option | what it does |", "| --- | --- |", *lines])
        parts.append(f"## {name}\n\n{command.help.strip()}\n\n{table}\n")
    return "\n".join(parts)


def on_config(config: Any) -> Any:
    """Fail the build of the site where the page is stale."""
    from mkdocs.exceptions import PluginError

    if PAGE.read_text(encoding="utf-8") != page():
        raise PluginError(f"{PAGE.name} is stale; run: python docs/hooks/command_line.py")
    return config


if __name__ == "__main__":
    sys.exit(None if PAGE.write_text(page(), encoding="utf-8") else 1)
