"""`syngrad reproduce`: the published experiments, each with our figure beside the published one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from syngrad.cli.options import complain, ending, whole
from syngrad.cli.running import shown
from syngrad.errors import ConfigError, unknown
from syngrad.startup import INTERRUPTED

if TYPE_CHECKING:
    from syngrad.reproduce import Runs, Study

FOLDER, EVERY = "reproduced", "all"


@ending
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Which to run, one or more, or all; without it they are listed."),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            metavar="quick|standard|paper",
            help="A smoke test of minutes; what can be said on a CPU, in hours; or as published, for a GPU and days.",
        ),
    ] = "quick",
    out: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where results files are, one a study and scale; a run goes on there.")
    ] = FOLDER,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--seeds"), help="Instead of the scale's own: 1, 3 and 3.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a page of it there, one that needs no network.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of feed-forward nets: cpu, cuda, cuda:1, …")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", parser=whole("--threads"), help="PyTorch's; one unless told otherwise.")
    ] = None,
    progress: Annotated[
        bool | None,
        typer.Option("--progress/--no-progress", help="A bar on a terminal, lines elsewhere; or nothing."),
    ] = None,
) -> int:
    """Run published experiments again, and show our figures beside the published ones, with what differs.

    A results file is written after every run; the same command goes on where it was stopped, and shows what is done.
    """
    from syngrad.report.reproduction import listing, report
    from syngrad.reproduce import SCALES, Runs
    from syngrad.reproduce.studies.registry import STUDIES, study

    if scale not in SCALES:
        raise unknown("--scale", scale, SCALES)
    if not names:
        if html is not None or seeds is not None:
            raise ConfigError(f"--html and --seeds need a NAME; write one of {', '.join(STUDIES)}, or {EVERY}")
        print(listing(list(STUDIES.values())))
        return 0
    chosen = list(STUDIES.values()) if EVERY in names else [study(name) for name in dict.fromkeys(names)]
    every = [Runs(each, SCALES[scale], out, seeds, 1 if threads is None else threads, device) for each in chosen]
    _check(every, html)
    typed = {"out": out if out != FOLDER else None, "seeds": seeds, "device": device, "threads": threads}
    flags = [word for name, value in typed.items() if value is not None for word in (f"--{name}", str(value))]
    command = shlex.join(["syngrad", "reproduce", *names, "--scale", scale, *flags])
    code = 0
    try:
        for k, runs in enumerate(every):
            code = code or _run(runs, progress, command)
            if k:
                print()
            print(report(runs.study, runs.document), flush=True)
            if code:
                break
    finally:
        _publish(every, html, command)
    return code


def _check(every: list[Runs], html: str | None) -> None:
    """Refuse what would end the run late: a page that cannot be written, data that is not there."""
    from syngrad.results import check_writable

    if html is not None:
        check_writable(html)
    for runs in every:
        runs.check_data()


def _run(runs: Runs, progress: bool | None, command: str) -> int:
    """One study; after Ctrl-C it is said how to go on."""
    with shown(sys.stderr is not None if progress is None else progress) as runs.observer:
        try:
            runs.run()
        except KeyboardInterrupt:
            done = len(runs.document["runs"])
            left = len(runs.missing)
            said = f"{done} of {done + left} runs of {runs.study.name} are in {str(runs.file)!r}"
            complain(f"interrupted; {said}: '{command}' goes on")
            return INTERRUPTED
    return 0


def _publish(every: list[Runs], html: str | None, command: str) -> None:
    """Write the page of all studies of which anything has been run."""
    there: list[tuple[Study, dict[str, Any]]] = [(runs.study, runs.document) for runs in every if runs.document["runs"]]
    if html is None or not there:
        return
    from syngrad.report.reproduction_page import study_page
    from syngrad.results import write_text

    write_text(html, study_page(there, command))
    print(f"\nthe page: {Path(html)}")
