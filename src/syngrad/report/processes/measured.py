"""What is told of every row of a comparison over processes: its seeds taken together, from a results document.

The processes' own accounts of their time are no part of a results file. They come beside it; without them, as for a
file that is read again, nothing is said of idle time, and everything else is the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from syngrad.report.timeline import idle
from syngrad.results import BACKPROP, Aggregate

#: by the row's label and its seed: what every process says of itself, see :class:`syngrad.trainer.history.History`
Accounts = Mapping[tuple[str, int], Sequence[dict[str, Any]]]

ALONE, ALL_THREADS = "alone", "alone(threads)"
#: Syngrad's own methods; `zero` is the floor and competes with nobody
OWN = ("synthetic", "mixed", "delayed", "zero")


class Shown(Aggregate):
    """A row under the name that it has here: back-propagation in one process is "alone"."""

    @property
    def label(self) -> str:
        """As it is typed."""
        return ALONE if self.method == BACKPROP else super().label


@dataclass
class Line:
    """A row over its seeds, those that ran to their end. rate_spread: the deviation of the samples a second.

    sent_bytes: over the links, a minibatch. staleness: minibatches, of the interface that is stalest. processes: of the
    first of the seeds, their accounts; idle: the share of its time that the busiest process waited, over the seeds.
    """

    row: Aggregate
    seeds: list[dict[str, Any]] = field(default_factory=list)
    rate: float | None = None
    rate_spread: float | None = None
    sent_bytes: float | None = None
    staleness: float | None = None
    idle: float | None = None
    processes: Sequence[dict[str, Any]] = ()

    @property
    def label(self) -> str:
        """The row as it is typed."""
        return self.row.label

    @property
    def own(self) -> bool:
        """Whether it is Syngrad's over several processes."""
        return self.row.method.partition("(")[0] in OWN

    @property
    def single(self) -> bool:
        """Whether it is one process alone."""
        return self.row.method in (BACKPROP, ALL_THREADS, "plain")

    @property
    def rare(self) -> bool:
        """Whether its processes do not share every minibatch's update, but average their models now and then."""
        return self.row.method == "ddp" and self.row.estimator.startswith("periodic")


@dataclass
class Over:
    """All rows. workers: processes of those over several. target: the metric's value that was timed, if one was."""

    lines: list[Line]
    workers: int
    target: float | None = None

    @property
    def done(self) -> list[Line]:
        """Those that ran to their end with at least one seed."""
        return [line for line in self.lines if line.row.ok]

    @property
    def alone(self) -> Line | None:
        """One process alone, with as many threads as each of several has."""
        return next((line for line in self.done if line.row.method == BACKPROP), None)

    def ratio(self, line: Line) -> float | None:
        """Its samples a second as a multiple of one process's alone."""
        base = self.alone.rate if self.alone is not None else None
        return line.rate / base if line.rate and base else None


def over(document: Mapping[str, Any], accounts: Accounts | None = None) -> Over:
    """The rows of a results document; older files' aggregates have fewer fields."""
    known = {each.name for each in fields(Aggregate)}
    lines = []
    for each in document["aggregate"]:
        row = Shown(**{"higher_is_better": None, **{name: value for name, value in each.items() if name in known}})
        same = [one for one in document["results"] if (one["method"], one["estimator"]) == (row.method, row.estimator)]
        lines.append(_line(row, same, int(document["experiment"]["batch_size"]), accounts or {}))
    workers = max((int(one["processes"]) for one in document["results"]), default=1)
    asked = (document.get("config") or {}).get("workers")
    return Over(lines, int(asked) if isinstance(asked, int) else workers, document["experiment"].get("target"))


def _line(row: Aggregate, seeds: list[dict[str, Any]], batch_size: int, accounts: Accounts) -> Line:
    done = [one for one in seeds if one["status"] == "ok"]
    rates = _known(one["samples_per_s"] for one in done)
    line = Line(row, seeds, rate=_mean(rates), rate_spread=statistics.stdev(rates) if len(rates) > 1 else None)
    line.sent_bytes = _mean(_known(_a_minibatch(one, batch_size) for one in done))
    line.staleness = _mean(_known(_stalest(one) for one in done)) if line.own else None
    # under the label that was typed, which here may be another: an estimator's name is never left out of it
    typed = f"{row.method}:{row.estimator}" if row.estimator else row.method
    told = [found for one in done if (found := accounts.get((typed, one["seed"])))]
    line.processes = told[0] if told else ()
    line.idle = _mean(_known(busiest(found) for found in told))
    return line


def busiest(processes: Sequence[dict[str, Any]]) -> float | None:
    """The share of its time that the busiest of these processes waited."""
    return min(_known(idle(process) for process in processes), default=None)


def _a_minibatch(one: Mapping[str, Any], batch_size: int) -> float | None:
    sent, rate, train_s = one["bytes_sent"], one["samples_per_s"], one["train_s"]
    return sent / (rate * train_s / batch_size) if sent is not None and rate and train_s else None


def _stalest(one: Mapping[str, Any]) -> float | None:
    return max(_known(each["staleness"] for each in one["interfaces"]), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
