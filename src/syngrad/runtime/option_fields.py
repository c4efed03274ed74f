"""What is known of an option beside its type and default, written down once: at the field of the class that takes it.

A class of options is a frozen dataclass. :func:`about` is the metadata of one of its fields; from these follow what
`configuration()` says, what a resumed run and the other workers must have the same, and the flags of the command line.
An option that is itself a class of options (`feedback=Feedback(every=4)`) is spelled flat there, as `feedback_every`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from syngrad.errors import ConfigError, short


@dataclass(frozen=True)
class Flag:
    """How an option is typed on the command line.

    Args:
        kind: what its value is: "whole", "number", "text", "texts" (with commas between) or "flag".
        help: one line.
        shown: the default as the help shows it, "" where it shows none.
        metavar: what stands for the value in the help, None for the kind's own.
        name: the flag where it is not called as the option is, as `group` for `groups`.
        repeated: whether it may be typed several times.
    """

    kind: str
    help: str = ""
    shown: str = ""
    metavar: str | None = None
    name: str | None = None
    repeated: bool = False


@dataclass(frozen=True)
class About:
    """What is known of an option; see :func:`about`."""

    name: str | None = None
    plain: Callable[[Any], Any] = lambda value: value
    recorded: bool = True
    resumed: bool = True
    shared: bool = True
    flag: Flag | None = None
    part: Any = None


def about(
    *,
    name: str | None = None,
    plain: Callable[[Any], Any] = lambda value: value,
    recorded: bool = True,
    resumed: bool | None = None,
    shared: bool | None = None,
    flag: Flag | None = None,
    part: Any = None,
) -> dict[str, Any]:
    """The metadata of an option's field.

    Args:
        name: as `configuration()`, files and flags spell it; the field's own unless given.
        plain: the option as plain data, for `configuration()`.
        recorded: whether `configuration()` says it.
        resumed: whether a run goes on only with the same; as `recorded` unless given.
        shared: whether all workers of a run have to have the same; as `recorded` unless given.
        flag: how it is typed, None where the command line does not have it.
        part: the class of options that it is itself.
    """
    resumed, shared = recorded if resumed is None else resumed, recorded if shared is None else shared
    return {"about": About(name, plain, recorded, resumed, shared, flag, part)}


@dataclass(frozen=True)
class FlatOption:
    """An option under its flat name.

    Args:
        name: flat, as in `feedback_every`.
        field: its name in its class.
        part: (keyword, class) of the option that it belongs to, as in ("feedback", Feedback); None for none.
        about: what is known of it.
    """

    name: str
    field: str
    part: tuple[str, Any] | None
    about: About

    def moved(self, value: Any) -> str:
        """What to write instead where one that belongs to a part is given as a keyword of its own, in one line."""
        assert self.part is not None
        keyword, kind = self.part
        written = f"{value!r:.40}" if value is None or isinstance(value, str | int | float | list | tuple) else "…"
        return f"{self.name} is now an option of {keyword}=: write {keyword}={kind.__name__}({self.field}={written})"

    def given(self, options: Any) -> bool:
        """Whether it is there: a part that is None has no options."""
        return self.part is None or getattr(options, self.part[0]) is not None

    def value(self, options: Any) -> Any:
        """As the options have it."""
        return getattr(options if self.part is None else getattr(options, self.part[0]), self.field)

    def plain(self, options: Any) -> Any:
        """As plain data."""
        return self.about.plain(self.value(options))


def flat_options(kind: Any, part: tuple[str, Any] | None = None) -> Iterator[FlatOption]:
    """Every option of a class of options by its flat name, in the order of its fields."""
    for each in dataclasses.fields(kind):
        known: About = each.metadata["about"]
        if known.part is None:
            yield FlatOption(known.name or each.name, each.name, part, known)
        else:
            yield from flat_options(known.part, (each.name, known.part))


def moved(kind: Any) -> dict[str, FlatOption]:
    """Those that are no keyword of the class, as they belong to one of its parts: by flat name."""
    own = {each.name for each in dataclasses.fields(kind)}
    return {each.name: each for each in flat_options(kind) if each.part is not None and each.name not in own}


def override(kind: Any, keywords: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a class of options, with those replaced that are given by flat names, as flags and files do.

    A part keeps the options that `flat` does not name: {"feedback": Feedback(every=4)} overridden by {"warmup": 10} is
    {"feedback": Feedback(every=4, warmup=10)}.
    """
    made: dict[str, Any] = {**keywords}
    changes: dict[Any, dict[str, Any]] = {}
    parts = {each.name: each for each in flat_options(kind) if each.part is not None}
    for name, value in flat.items():
        if name in parts and not isinstance(value, parts[name].part[1]):  # type: ignore[index]  # those in `parts` have one
            changes.setdefault(parts[name].part, {})[parts[name].field] = value
        else:
            made[name] = value
    for (keyword, part), given in changes.items():
        made[keyword] = dataclasses.replace(part.of(made.get(keyword)) or part(), **given)
    return made


def check_device(device: str | torch.device | None) -> torch.device | None:
    """The device, None for where the model is; refused where it is not known or not there."""
    if device is None:
        return None
    try:
        made = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {device!r} is not known to PyTorch; write 'cpu', 'cuda' or 'cuda:0'") from None
    if made.type == "meta":
        raise ConfigError("device 'meta' has no numbers to train with; use 'cpu' or 'cuda'")
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but no CUDA device is available; use 'cpu'")
    try:
        torch.empty(1, device=made)
    except Exception as error:  # each kind of device says in a way of its own that it is not there
        raise ConfigError(f"device {device!r} cannot be used here ({short(error)}); use 'cpu'") from error
    return made
