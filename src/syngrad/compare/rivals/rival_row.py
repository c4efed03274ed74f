"""A rival's row as it is typed: `ddp`, `gpipe:int8`, `diloco(every=64, dtype=int8)`, with its options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from syngrad.checks import check_choice, check_not_negative, check_positive, check_whole, real
from syngrad.errors import ConfigError, SyngradError, unknown
from syngrad.replicas.encoding import DTYPES
from syngrad.replicas.options import EVERY, Replicas

#: row → its options and what they are unless said otherwise
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ddp": {},
    "ddp:bf16": {},
    "ddp:powersgd": {"rank": 4},
    "ddp:periodic": {"every": 8},
    "diloco": {"every": EVERY, "rate": 0.7, "momentum": 0.9, "fragments": 1, "delay": 0, "dtype": DTYPES[0]},
    "gpipe": {},
    "gpipe:bf16": {},
    "gpipe:int8": {},
    "1f1b": {},
    "1f1b:bf16": {},
    "1f1b:int8": {},
    "zb1p": {},
    "zb1p:bf16": {},
    "zb1p:int8": {},
}
RIVALS = tuple(OPTIONS)
PIPELINES = ("gpipe", "1f1b", "zb1p")
#: numbers of microbatches that are tried, and multiples of the number of workers
TRIED, MULTIPLES = (1, 2, 4, 8, 16), (1, 2, 4)
#: the least of options that are whole numbers
_LEAST = {"rank": 1, "every": 1, "fragments": 1, "delay": 0}


@dataclass(frozen=True)
class Rival:
    """A row, taken apart.

    Args:
        kind: What stands before the colon.
        variant: What stands behind it: how ddp reduces gradients, or in what form a pipeline's messages travel; "" for
            nothing.
        given: Its options that were given other values than they have.
    """

    kind: str
    variant: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> str:
        """Without its options."""
        return f"{self.kind}:{self.variant}" if self.variant else self.kind

    @property
    def options(self) -> dict[str, Any]:
        """All of them."""
        return {**OPTIONS[self.row], **self.given}

    @property
    def pipelined(self) -> bool:
        """Whether each process has a part of the model, and not all of it."""
        return self.kind in PIPELINES

    @property
    def period(self) -> int:
        """Minibatches of each worker after which what it does begins anew."""
        return int(self.options.get("every", 1))

    @property
    def estimator(self) -> str:
        """What stands behind the kind: the variant and the options."""
        said = ", ".join(f"{name}={value}" for name, value in self.given.items())
        return f"{self.variant}({said})" if said else self.variant

    def __str__(self) -> str:
        return f"{self.kind}:{self.estimator}" if self.variant else f"{self.kind}{self.estimator}"

    def replicas(self) -> Replicas:
        """Of `diloco`: how its workers average."""
        options = self.options
        outer = f"nesterov({options['rate']!r}, {options['momentum']!r})"
        return Replicas(outer=outer, **{name: options[name] for name in ("every", "fragments", "delay", "dtype")})


def parse_rival(text: str) -> Rival:
    """The row of a text.

    Raises:
        ConfigError: An unknown row (the valid ones are listed), or an option that it does not take.
    """
    match = re.fullmatch(r"([a-z0-9]+(?::[a-z0-9]+)?)(?:\((.*)\))?", text.strip().lower(), re.DOTALL)
    if match is None or match[1] not in OPTIONS:
        raise unknown("row", text, RIVALS)
    kind, _, variant = match[1].partition(":")
    usual, given = OPTIONS[match[1]], dict[str, Any]()
    for part in (match[2] or "").split(",") if match[2] is not None else []:
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or name not in usual or name in given:
            example = ", ".join(f"{key}={own}" for key, own in usual.items())
            remedy = f"write {match[1]}({example})" if usual else f"it takes none; write {match[1]}"
            raise ConfigError(f"row {text!r:.60}: cannot read its option {part.strip()!r:.30}; {remedy}")
        given[name] = _value(f"row {text!r:.60}: {name}", value, name, usual[name])
    rival = Rival(kind, variant, {name: value for name, value in given.items() if value != usual[name]})
    if kind == "diloco":
        try:
            rival.replicas()
        except SyngradError as error:
            raise ConfigError(f"row {text!r:.60}: {str(error).replace('replicas_', '')}") from None
    return rival


def _value(what: str, text: str, name: str, usual: Any) -> Any:
    if isinstance(usual, str):
        check_choice(what, text, DTYPES)
        return text
    number = real(float(text)) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.ASCII) else None
    if isinstance(usual, float):
        check = check_positive if name == "rate" else check_not_negative
        return float(check(what, text if number is None else number))
    least = 2 if usual == OPTIONS["ddp:periodic"]["every"] else _LEAST[name]
    return check_whole(what, int(number) if number is not None and number == int(number) else text, least)


def numbers_of_parts(kind: str, batch_size: int, workers: int) -> list[int]:
    """Into how many microbatches a pipeline's minibatch is tried to be divided, whatever the number of workers.

    All schedules but `gpipe` need as many as there are workers, and PyTorch's zero bubble takes them in rounds of one a
    worker.

    Args:
        kind: Of `PIPELINES`.
        batch_size: Which they have to divide.
        workers: One after the other.

    Raises:
        ConfigError: There is none.
    """
    tried = sorted({*TRIED, *(workers * multiple for multiple in MULTIPLES if workers * multiple > TRIED[-1])})
    least = 1 if kind == "gpipe" else workers
    found = [count for count in tried if count >= least and batch_size % count == 0 and fits(kind, count, workers)]
    if not found:
        raise ConfigError(
            f"a batch of {batch_size} divides into none of {least} or more microbatches "
            f"({', '.join(map(str, tried))}); give a batch size that does"
        )
    return found


def fits(kind: str, count: int, workers: int) -> bool:
    """Whether the schedule can take so many microbatches."""
    return kind != "zb1p" or count % max(count // workers, 1) == 0
