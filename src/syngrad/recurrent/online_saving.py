"""An online trainer as plain data and tensors, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from syngrad.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from syngrad.recurrent.online import OnlineBPLambda


def state_dict(run: OnlineBPLambda) -> dict[str, Any]:
    """All that decides how the next step goes, but for the weights of core and readout."""
    parts = run.parts
    return {
        "count": run.count,
        "state": pytree.tree_leaves(run.state) if run.state is not None else None,
        "reset": run.reset,
        "traces": run.traces.state_dict() if run.traces is not None else None,
        "estimator": dict(run.interface.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in parts.updates.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in parts.updates.schedulers],
        "randomness": parts.stage.randomness.save(),
        "guard": run.guard.state_dict() if run.guard is not None else None,
        "quality": run.quality.state_dict(),
    }


def load_state_dict(run: OnlineBPLambda, state: dict[str, Any]) -> None:
    """Go on from there.

    Raises CheckpointError for a state of another trainer.
    """
    parts = run.parts
    try:
        if (state["traces"] is None) != (run.traces is None):
            raise ValueError("one of the two has an estimator that learns, the other has none")
        if run.traces is not None:
            run.traces.load_state_dict(state["traces"])
        run.interface.load_state_dict(state["estimator"])
        for optimizer, saved in zip(parts.updates.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(parts.updates.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        held = state["state"]
        run.state = None if held is None else pytree.tree_unflatten(held, parts.layout.spec)
        parts.stage.randomness.load(state["randomness"])
        if run.guard is not None and state["guard"] is not None:
            run.guard.load_state_dict(state["guard"])
        run.quality.load_state_dict(state["quality"])
        run.count, run.reset = int(state["count"]), state["reset"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"this state is of another trainer ({first_line(error):.160}); give it the same"
        ) from error
