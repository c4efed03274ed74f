"""`fit`, in one process or as one of several that torchrun has started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from syngrad.errors import ConfigError
from syngrad.launch.parent_death import die_with_launcher
from syngrad.links.world import world
from syngrad.pipeline.failures import report_failure
from syngrad.pipeline.neighbours import RemoteError
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.history import History
from syngrad.trainer.interrupts import Interrupts
from syngrad.trainer.loop import Run
from syngrad.trainer.member import Member
from syngrad.trainer.team import Team

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer


def fit(trainer: Trainer, plan: FitArguments) -> History:
    """Train as planned; every process returns the same history, and its model is the whole trained one.

    Only process 0 reads the data, validates, calls callbacks, shows progress and writes files.
    """
    place = world()
    if place.size == 1:
        return Run(trainer, plan).go()
    die_with_launcher()
    try:
        check(trainer)
        group = Team(trainer, place) if place.rank == 0 else Member(trainer, place, plan.loader)
    except Exception as error:
        report_failure(error)
        raise
    return _lead(trainer, plan, group) if isinstance(group, Team) else _follow(group)


def check(trainer: Trainer) -> None:
    """Refuse what needs all stages in one process."""
    configuration = trainer.configuration()
    refused = {
        "clip_scope='model'": configuration["clip_norm"] is not None and configuration["clip_scope"] == "model",
        "autocast='float16'": configuration["autocast"] == "float16",
        "replay=": trainer.replaying,
    }
    instead = {"clip_scope='model'": "clip_scope='stage'", "autocast='float16'": "autocast='bfloat16'"}
    for option, given in refused.items():
        if given:
            raise ConfigError(
                f"{option} needs all stages in one process, and there are several; "
                + (f"use {instead[option]}, or run it in one" if option in instead else "run it in one")
            )


def _lead(trainer: Trainer, plan: FitArguments, team: Team) -> History:
    try:
        return Run(trainer, plan, team).go()
    except RemoteError as failure:
        raise team.passed_on(failure) from failure
    except BaseException as error:
        team.failed(error)
        raise
    finally:
        team.close()


def _follow(member: Member) -> History:
    try:
        with Interrupts(True, ignoring=True):  # process 0 is asked too, and says what becomes of it
            history = member.follow()
        return History() if history is None else History.from_dict(history)
    except RemoteError as failure:
        raise member.passed_on(failure) from failure
    except BaseException as error:
        member.failed(error)
        raise
    finally:
        member.close()
