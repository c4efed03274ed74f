"""Which leaves of the messages no later stage looks at: modules take arguments that they ignore, and a recording, which
keeps such modules whole, sends them all the same.

A run of the stages tells, in which every use of a tensor by any function of torch's is noted. What a layer that is left
out by chance would have looked at shows in a second run, in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from syngrad.partition.segment import Segment
from syngrad.tree import as_tree


class _Looks(TorchFunctionMode):
    """Notes the tensors that any function is given."""

    def __init__(self) -> None:
        super().__init__()
        self.at: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function itself."""
        kwargs = kwargs or {}
        self.at.update(id(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **kwargs)


def find_ignored(model: nn.Module, segments: Sequence[Segment], args: Any, kwargs: Any) -> list[set[int]]:
    """For every message the positions, in the flattened one, of floating tensors that nobody looks at.

    Args:
        model: the user's; modes of its modules are changed.
        segments: of it, in order, recorded ones.
        args: of the model, without data; kwargs: likewise.
    """
    training = _ignored(segments, args, kwargs)
    for module in model.modules():
        module.training = False
    return [one & other for one, other in zip(training, _ignored(segments, args, kwargs), strict=True)]


def _ignored(segments: Sequence[Segment], args: Any, kwargs: Any) -> list[set[int]]:
    flat, spec = pytree.tree_flatten(segments[0](*args, **kwargs))
    runs: list[_Run] = []
    for segment in segments[1:]:
        # tensors of its own: one that is passed on comes out as the very object
        flat = [leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf for leaf in flat]
        with _Looks() as looks:
            result = segment.body(pytree.tree_unflatten(flat, spec))  # not the segment, which may copy all of it first
        runs.append(_Run(flat, looks.at, pytree.tree_leaves(as_tree(result))))
        flat, spec = pytree.tree_flatten(result)
    ignored: list[set[int]] = [set()]  # whoever is given the output may look at all of it
    for run in reversed(runs):
        looked = run.looks | {id(leaf) for j, leaf in enumerate(run.sent) if j not in ignored[-1]}
        floating = [i for i, leaf in enumerate(run.came) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        ignored.append({i for i in floating if id(run.came[i]) not in looked})
    return ignored[:0:-1]


@dataclass
class _Run:
    """One stage's: the leaves that came, the ids of all tensors it looked at, and the leaves that it sent."""

    came: list[Any]
    looks: set[int]
    sent: list[Any]
