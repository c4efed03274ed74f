"""What a cut model consists of: segments that run one after the other and hand messages forward.

A segment owns nothing. Every parameter and buffer it uses is the very object that sits in the user's model, so training
a segment trains the model, and the model's state dict never learns that it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.partition.left_out import LeftOut
from syngrad.partition.recorded_truth import RecordedTruth
from syngrad.tree import map_tensors

FIRST = "input"
"""The name of the first segment, which no cut starts."""
FORWARD = "forward"
"""The route on which stages are stretches of the user's own forward."""


class Segment(nn.Module):
    """A contiguous part of the user's model, called with the message of the part before it.

    The first segment is called as the model is and returns a message; the ones after it are called with that message
    alone; the last returns what the model returns. A message is any nesting of tensors: for a chain of modules, what
    the module before the cut returned; for a traced graph, the one value that crosses the cut, or a tuple when several
    do (skip connections, masks, sizes: integers may be among the leaves).

    ``train()`` and ``eval()`` of the user's model decide how a segment behaves, whichever route made it.
    """

    name: str
    """The cut that starts the segment; ``"input"`` for the first."""
    route: str
    """How the model was cut: ``"whole"``, ``"chain"``, ``"torch.fx"``, ``"forward"`` or
    ``"torch.export"``."""
    parameter_names: list[str]
    """The names, in the user's model and in its order, of the parameters the segment uses and updates."""
    buffer_names: list[str]
    """The names, in the user's model and in its order, of the buffers the segment reads or updates."""

    def __init__(
        self,
        name: str,
        body: nn.Module,
        *,
        route: str,
        model: nn.Module,
        tensor_names: Iterable[str],
        writes_message: bool = False,
        truth: RecordedTruth | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.route = route
        self.body = body
        self.writes_message = writes_message
        #: whether what it sends is to lie in memory row by row, as it does when it has crossed a link
        self.row_by_row = False
        self._truth = truth
        #: of the message that comes, and of the one that goes
        self._received: LeftOut | None = None
        self._sent: LeftOut | None = None
        used = {id(find_tensor(model, tensor)) for tensor in tensor_names}
        self.parameter_names = [key for key, value in model.named_parameters() if id(value) in used]
        self.buffer_names = [key for key, value in model.named_buffers() if id(value) in used]
        # Where the tensors live, not the tensors: `model.to(device)` may put other objects in their place. A tuple, so
        # that the user's modules are not registered as children of the segment.
        self._homes = tuple((key, *owner_of(model, key)) for key in self.parameter_names + self.buffer_names)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """From the model's inputs or the message before, to the message after or the model's output."""
        if self._truth is not None:
            self._truth.check()
        if self.writes_message:
            # An in-place operation on the message would overwrite what the sender still needs for its own backward, and
            # autograd forbids it on the leaf that an interface makes of the message.
            args = pytree.tree_map_only(Tensor, torch.clone, args)
        if self._received is not None:
            args = (self._received.received(*args),)
        result = self.body(*args, **kwargs)
        if self._sent is not None:
            result = self._sent.sent(result)
        return map_tensors(_row_by_row, result) if self.row_by_row else result

    def leave_out(self, dead: Sequence[bool]) -> bool:
        """Told which of its message's leaves that may have a gradient never get one; whether it sends them no more."""
        leave_out: Any = getattr(self.body, "leave_out", None)  # of a stretch of the user's own forward
        return leave_out is not None and bool(leave_out(dead))

    def send_without(self, left: LeftOut | None, following: Segment) -> None:
        """Leave that out of what goes to the following segment from now on; it fills the places. None for nothing."""
        self._sent = following._received = left

    @property
    def recorded(self) -> bool:
        """Whether it runs a graph, whose messages are what the graph says."""
        return self.route.startswith("torch")

    def tensor(self, name: str) -> Tensor:
        """The user's own parameter or buffer of that qualified name."""
        for key, owner, attribute in self._homes:
            if key == name:
                found: Tensor = getattr(owner, attribute)
                return found
        raise KeyError(name)

    def extra_repr(self) -> str:
        """Name, route and size, for printing."""
        return f"name={self.name!r}, route={self.route!r}, parameters={len(self.parameter_names)}"


def _row_by_row(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.layout == torch.strided else tensor


def compose(segments: Sequence[Segment], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All segments, one after the other: what the model computes."""
    message = segments[0](*args, **kwargs)
    for segment in segments[1:]:
        message = segment(message)
    return message


def segment_parameters(segment: Segment) -> list[nn.Parameter]:
    """The parameters a segment updates: the user's own objects, in the order of ``model.named_parameters()``."""
    found = (segment.tensor(name) for name in segment.parameter_names)
    return [value for value in found if isinstance(value, nn.Parameter)]


def unused_parameters(model: nn.Module, segments: Sequence[Segment]) -> list[str]:
    """The parameters of the model that no segment uses: its forward never touches them, so nothing trains them."""
    used = {name for segment in segments for name in segment.parameter_names}
    return [name for name, _ in model.named_parameters() if name not in used]


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor of a qualified name, and the attribute it holds it under."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a qualified name, under any of the names it is registered as."""
    owner, attribute = owner_of(model, name)
    found: Tensor = getattr(owner, attribute)
    return found
