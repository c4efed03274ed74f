"""A recurrent trainer as plain data and tensors, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from syngrad.errors import CheckpointError, first_line
from syngrad.recurrent.boundary import Pending

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner


def state_dict(run: Learner) -> dict[str, Any]:
    """All that decides how the next window or step goes, but for the weights of core and readout."""
    parts = run.parts
    pending, traces = getattr(run, "pending", None), getattr(run, "traces", None)
    return {
        "count": run.count,
        "state": pytree.tree_leaves(run.state) if run.state is not None else None,
        "pending": pending.state_dict() if pending is not None else None,
        "traces": traces.state_dict() if traces is not None else None,
        "reset": run.reset,
        "unfit": run.unfit,
        "estimator": dict(run.interface.state_dict()),
        "auxiliary": dict(run.auxiliary.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in parts.updates.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in parts.updates.schedulers],
        "randomness": parts.stage.randomness.save(),
        "precision": run.precision.state_dict(),
        "guard": run.guard.state_dict() if run.guard is not None else None,
        "quality": run.quality.state_dict(),
    }


def load_state_dict(run: Learner, state: dict[str, Any]) -> None:
    """Go on from there.

    Raises CheckpointError for a state of another trainer.
    """
    parts, traces = run.parts, getattr(run, "traces", None)
    try:
        if (state["traces"] is None) != (traces is None):
            raise ValueError("one of the two has an estimator that learns, the other has none")
        if traces is not None:
            traces.load_state_dict(state["traces"])
        run.interface.load_state_dict(state["estimator"])
        run.auxiliary.load_state_dict(state["auxiliary"])
        for optimizer, saved in zip(parts.updates.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(parts.updates.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        held = state["state"]
        run.state = None if held is None else pytree.tree_unflatten(held, parts.layout.spec)
        if hasattr(run, "pending"):
            run.pending = None if state["pending"] is None else Pending(**state["pending"])
        parts.stage.randomness.load(state["randomness"])
        run.precision.load_state_dict(state["precision"])
        if run.guard is not None and state["guard"] is not None:
            run.guard.load_state_dict(state["guard"])
        run.quality.load_state_dict(state["quality"])
        run.count, run.reset = int(state["count"]), state["reset"]
        run.unfit = state.get("unfit")  # none in those of before it was kept
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"this state is of another trainer ({first_line(error):.160}); give it the same"
        ) from error
