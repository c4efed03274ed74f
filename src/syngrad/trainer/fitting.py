"""`fit` as one of several workers that torchrun, or Syngrad's own launcher, has started."""

from __future__ import annotations

from syngrad.errors import ConfigError
from syngrad.launch.parent_death import die_with_launcher
from syngrad.links.world import World
from syngrad.pipeline.failures import report_failure
from syngrad.pipeline.follower import Follower
from syngrad.pipeline.leader import Leader
from syngrad.pipeline.neighbours import RemoteError
from syngrad.pipeline.peer import Peer, Work
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.history import History
from syngrad.trainer.interrupts import Interrupts
from syngrad.trainer.loaders import LoaderPosition
from syngrad.trainer.loop import Loop
from syngrad.trainer.session import Session


def fit_with_others(trainer: Session, plan: FitArguments, place: World) -> History:
    """Train as planned; every worker returns the same history, and its model is the whole trained one.

    Only the first worker validates, calls callbacks, shows progress and writes files, and it alone reads the data
    unless stages run on predictions of their inputs.
    """
    die_with_launcher()
    try:
        check(trainer)
        peer: Peer
        if place.rank == 0:
            peer = leader = Leader(_work(trainer), place)
        else:
            trainer.following = True
            peer = follower = Follower(_work(trainer), place, LoaderPosition(plan.loader))
    except Exception as error:
        report_failure(error)
        raise
    try:
        if place.rank == 0:
            return Loop(trainer, plan, leader).run()
        with Interrupts(True, ignoring=True):  # the first worker is asked too, and says what becomes of it
            history = follower.follow()
        return History() if history is None else History.from_dict(history)
    except RemoteError as failure:
        raise peer.passed_on(failure) from failure
    except BaseException as error:
        peer.failed(error)
        raise
    finally:
        peer.close()
        trainer.whole_again()


def check(trainer: Session) -> None:
    """Refuse what needs all stages in one process."""
    configuration = trainer.configuration()
    refused = {
        "clip_scope='model'": configuration["clip_norm"] is not None and configuration["clip_scope"] == "model",
        "autocast='float16'": configuration["autocast"] == "float16",
        "replay=": trainer.settings.replay is not None,
    }
    instead = {"clip_scope='model'": "clip_scope='stage'", "autocast='float16'": "autocast='bfloat16'"}
    for option, given in refused.items():
        if given:
            raise ConfigError(
                f"{option} needs all stages in one process, and there are several; "
                + (f"use {instead[option]}, or run it in one" if option in instead else "run it in one")
            )


def _work(trainer: Session) -> Work:
    options = trainer.options
    return Work(
        trainer.model,
        trainer.settings,
        options.queue_depth,
        options.free,
        options.inputs is not None,
        trainer.device,
        options.shared(),
        trainer.read,
        trainer.bind_to,
        trainer.metric,
    )
