"""What a call of `fit` knows of its run, beside what is trained: plain data in a checkpoint, and for other replicas.

It is true between two minibatches, and holds all that decides what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from syngrad.errors import SyngradError, first_line, warn
from syngrad.trainer.fit_arguments import AUTO, FitArguments
from syngrad.trainer.history import History
from syngrad.trainer.loaders import LoaderPosition
from syngrad.trainer.partial_epoch import Partial
from syngrad.trainer.session import Session


@dataclass
class FitState:
    """See above.

    Args:
        history: of the run, so far.
        first: epochs that were done before this call, or the one that it goes on from.
        marks: how much was measured of each interface before it.
        skipped: updates that were skipped before it.
        partial: the epoch under way.
        over: whether the epoch's minibatches are all done, and only what follows them is to come.
        owed: whether a validation within the epoch was broken off, with which a run that goes on begins.
    """

    history: History
    first: int
    marks: list[tuple[int, int]]
    skipped: dict[str, int]
    partial: Partial = field(default_factory=Partial)
    over: bool = False
    owed: bool = False

    @classmethod
    def begun(cls, session: Session) -> FitState:
        """Of a call that begins."""
        history = History(_metric(session), started_s=session.train_s)
        marks = [(len(q.history), len(q.true)) for q in session.quality]
        return cls(history, session.epochs_done, marks, dict(session.guarded))

    def to_plain(self, session: Session, plan: FitArguments, position: LoaderPosition) -> dict[str, Any]:
        """All that :meth:`taken` reads."""
        return {
            "first": self.first,
            "over": self.over,
            "owed": self.owed and not self.over,
            "epochs": plan.epochs,
            "stopped": session.stopped,
            "history": {**self.history.to_dict(), "interfaces": []},  # made anew from the quality, which is saved
            "partial": vars(self.partial),
            "marks": self.marks,
            "skipped": self.skipped,
            "place": position.state_dict(),
            "callbacks": [[type(each).__name__, each.state_dict()] for each in plan.callbacks],
        }

    @classmethod
    def taken(
        cls,
        fit: dict[str, Any],
        session: Session,
        plan: FitArguments,
        position: LoaderPosition,
        restore: Callable[[], None],
        damaged: Callable[[str], Exception],
    ) -> FitState:
        """Be where another call of `fit` was.

        Args:
            fit: its state, as :meth:`to_plain` gave it.
            session: goes on from there,
            plan: with this, whose callbacks do so too,
            position: and reads on in the data.
            restore: puts what was trained in its place, once what can be refused is not.
            damaged: the error for a state that cannot be read, and why.
        """
        try:
            begun, first, marks = int(fit["epochs"]), int(fit["first"]), [(a, b) for a, b in fit["marks"]]
            skipped = {str(name): int(count) for name, count in fit["skipped"].items()}
            history, partial, over = History.from_dict(fit["history"]), Partial.read(fit["partial"]), bool(fit["over"])
            stopped, owed = bool(fit["stopped"]), bool(fit["owed"]) and plan.validate_every is not None
            callbacks = [(str(name), dict(each)) for name, each in fit["callbacks"]]
            position.check(fit["place"])
        except (SyngradError, Warning):
            raise
        except Exception as error:  # whatever plain data of another form does
            raise damaged(first_line(error)) from error
        restore()
        history.metric = _metric(session)  # this call's, which may be another
        try:
            position.load(fit["place"])
        except (SyngradError, Warning):
            raise
        except Exception as error:
            raise damaged(first_line(error)) from error
        # a run that was stopped early is over for a script that is started again and again
        session.stopped = stopped and plan.resume == AUTO and partial.minibatches == 0
        if session.schedulers and begun != plan.epochs:
            warn(
                f"the run was begun for {begun} epochs and is now to have {plan.epochs}; its schedule of the "
                "learning rate goes on as it was made for the first number"
            )
        for callback in plan.callbacks:  # each takes the first that is left of its own class
            found = next((one for one in callbacks if one[0] == type(callback).__name__), None)
            if found is not None:
                callbacks.remove(found)
                callback.load_state_dict(found[1])
        return cls(history, first, marks, skipped, partial, over, owed)


def _metric(session: Session) -> str | None:
    return session.metric[0] if session.metric else None
