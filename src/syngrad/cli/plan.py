"""`syngrad plan`: does it pay for me? Measures for some seconds, and says what every layout would do."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from syngrad.cli.options import EXPERIMENT, ending, listed, number, whole
from syngrad.errors import ConfigError

WORKERS, SECONDS = 2, 12.0


@ending
def plan(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help=EXPERIMENT)] = "fashion-mlp",
    workers: Annotated[
        int | None, typer.Option(parser=whole("--workers"), metavar="N", help="Processes.", show_default=str(WORKERS))
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="DELAY,RATE", help="Every worker on a host of its own, as in 20ms,100mbit."),
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="MiB", help="The most that a worker may hold.")] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="SPEEDS", help="Of the workers, in multiples of this machine, as in 1,0.5."),
    ] = None,
    cuts: Annotated[
        str | None, typer.Option(help="Where the workers part; wherever each layout is fastest without it.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(parser=whole("--batch-size"), metavar="N", help="Instead of the experiment's own.")
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(metavar="X", help="About how long measuring may take.", show_default=f"{SECONDS:g}")
    ] = None,
    pilot: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Train the two fastest and back-propagation for so long, too."),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            parser=number("--target"),
            metavar="X",
            help="With --pilot: seconds to this value of the metric, as in 0.85.",
        ),
    ] = None,
    json_: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="The plan with all that it was computed from; - prints it."),
    ] = None,
) -> int:
    """Say which layout is the fastest for a model on some workers, and by how much."""
    measuring = _number("--seconds", seconds, "12") if seconds is not None else SECONDS
    speeds = [_number("--devices", each, "1,0.5") for each in listed(devices)] if devices is not None else []
    training = _number("--pilot", pilot, "60") if pilot is not None else None
    most = _number("--memory", memory, "512") if memory is not None else None
    from syngrad.experiments import load
    from syngrad.links.world import world
    from syngrad.planner import plan as planned
    from syngrad.planner.answer import take_part
    from syngrad.planner.pilot import check_aim
    from syngrad.planner.pilot import pilot as piloted
    from syngrad.report.plan_text import pilot_text, plan_text

    given, place = {"batch_size": batch_size} if batch_size is not None else {}, world()
    if place.rank > 0:
        take_part(experiment, given, measuring)
        return 0
    if target is not None:
        check_aim(load(experiment, **given), target, training)
    found = planned(
        experiment,
        max(place.size, WORKERS) if workers is None else workers,
        link,
        memory=most,
        devices=speeds,
        cuts=listed(cuts) if cuts is not None else None,
        instead=given,
        seconds=measuring,
    )
    trained = None
    if training is not None:
        trained = piloted(load(experiment, **given), found, training, target=target)
    plain = found.to_dict() | {"pilot": None if trained is None else dataclasses.asdict(trained)}
    document = json.dumps(plain, indent=1) + "\n" if json_ is not None else ""
    if json_ is not None and json_ != "-":
        try:
            Path(json_).write_text(document, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--json {json_!r} cannot be written ({error.strerror}); name another file") from error
    lines = [*plan_text(found), *(pilot_text(trained) if trained is not None else [])]
    if training is not None and trained is None:
        lines.append("Pilot: no stages are faster than what is exact, so there is nothing to train for.")
    sys.stdout.write(document if json_ == "-" else "\n".join(lines) + "\n")
    return 0


def _number(option: str, text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r:.40} is no number; write one, as in {option} {example}") from None
