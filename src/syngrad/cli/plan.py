"""`syngrad plan`: does it pay for me? Measures for some seconds, and says what every layout would do."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from syngrad.cli.options import EXPERIMENT, ending, listed, number, whole
from syngrad.cli.running import check_files
from syngrad.errors import ConfigError, SyngradError

if TYPE_CHECKING:
    from syngrad.planner.pilot import Pilot
    from syngrad.planner.ranking import Plan

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
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="The plan with figures, one page that needs no network.")
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

    given, place = {"batch_size": batch_size} if batch_size is not None else {}, world()
    if place.rank > 0:
        take_part(experiment, given, measuring)
        return 0
    files = {"json": None if json_ == "-" else json_, "html": html}
    check_files(files, ("json", "html"))
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
    command = as_typed(experiment, workers=workers, link=link, memory=memory, devices=devices, cuts=cuts,
                       batch_size=batch_size, seconds=seconds, pilot=pilot, target=target)  # fmt: skip
    trained, failure = None, None
    if training is not None:
        try:
            trained = piloted(load(experiment, **given), found, training, target=target)
        except (SyngradError, KeyboardInterrupt) as error:  # the plan itself is not lost
            failure = error
    _publish(found, trained, files, command, json_ == "-")
    if failure is not None:
        raise failure
    if training is not None and trained is None and json_ != "-":
        print("Pilot: no stages are faster than what is exact, so there is nothing to train for.")
    return 0


def as_typed(experiment: str, **options: object) -> str:
    """The command with the options that were given."""
    flags = [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
    return shlex.join(["syngrad", "plan", experiment, *flags])


def _publish(found: Plan, trained: Pilot | None, files: Mapping[str, str | None], command: str, piped: bool) -> None:
    """Write the files first: what is printed can be lost."""
    from syngrad import results
    from syngrad.report.plan_page import plan_page
    from syngrad.report.plan_text import pilot_paragraphs, pilot_text, plan_text

    plain = found.to_dict() | {"pilot": None if trained is None else dataclasses.asdict(trained)}
    document = json.dumps(plain, indent=1) + "\n"
    said = [] if trained is None else pilot_paragraphs(trained)
    lines = [*plan_text(found), *([] if trained is None else pilot_text(trained))]
    try:
        if files["json"] is not None:
            results.write_text(files["json"], document)
        if files["html"] is not None:
            results.write_text(files["html"], plan_page(found, command, results.environment(1), said))
            lines += ["", f"the report: {files['html']}"]
    finally:
        sys.stdout.write(document if piped else "\n".join(lines) + "\n")
        sys.stdout.flush()


def _number(option: str, text: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r:.40} is no number; write one, as in {option} {example}") from None
