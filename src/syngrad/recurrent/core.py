"""A recurrent core as the rest of this package sees it: (inputs, state) → (outputs, state), over any number of steps.

PyTorch's layers run over all steps at once, and its cells step by step; a module of the user's own is called as the
layers are, `core(inputs, state)`, with `state=None` at the start of a sequence, and returns (outputs, state).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.tree import map_tensors, tensors


class Core:
    """Runs a recurrent module over time, and knows where its inputs have time and samples.

    Args:
        module: `nn.LSTM`, `nn.GRU`, `nn.RNN`, one of their cells, or the user's own.
        batch_first: whether inputs are (n, t, …) or (t, n, …); None for what the module, or a layer inside it, says of
            itself, and (n, t, …) otherwise.

    Raises:
        ConfigError: for a module that cannot be run over time.
    """

    def __init__(self, module: nn.Module, batch_first: bool | None = None) -> None:
        if not isinstance(module, nn.Module):
            raise ConfigError(f"a core must be a module, as nn.LSTM(8, 64), got {type(module).__name__}")
        if batch_first is not None and not isinstance(batch_first, bool):
            raise ConfigError(f"batch_first must be True, False or None, got {batch_first!r}")
        self.module = module
        self.layer, self.cell = isinstance(module, nn.RNNBase), isinstance(module, nn.RNNCellBase)
        if self.layer and module.bidirectional:
            raise ConfigError(
                "a bidirectional core runs backwards from the sequence's end, which a window does not know; "
                "use bidirectional=False"
            )
        said = {bool(each.batch_first) for each in module.modules() if isinstance(each, nn.RNNBase)}
        if self.layer and batch_first is not None and batch_first not in said:
            raise ConfigError(f"batch_first={batch_first} was given, and the core has {module.batch_first}")
        own = next(iter(said)) if len(said) == 1 else True
        self.time = int(own if batch_first is None else batch_first)
        self.batch = 1 - self.time

    def steps(self, inputs: Any) -> int:
        """How many steps the inputs have.

        Raises:
            MessageError: where they have none, or their tensors do not agree.
        """
        return self._size(inputs, self.time, "steps")

    def size(self, inputs: Any) -> int:
        """How many samples the inputs have."""
        return self._size(inputs, self.batch, "samples")

    def _size(self, inputs: Any, dimension: int, what: str) -> int:
        found = {leaf.shape[dimension] if leaf.dim() > 1 else -1 for leaf in tensors(inputs)}
        order = "(n, t, …)" if self.time else "(t, n, …)"
        if not found or -1 in found or len(found) > 1:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in tensors(inputs)) or "no tensor"
            raise MessageError(f"inputs must be {order}, alike in {what}, got {shapes}; see batch_first=")
        count = found.pop()
        if count == 0:
            raise MessageError(f"the inputs have no {what}; every window needs at least one")
        return count

    def check_time(self, name: str, tree: Any, steps: int) -> None:
        """Refuse tensors that do not have so many steps where the inputs have time.

        Raises:
            MessageError: it names `name`, and the shape that came.
        """
        for leaf in tensors(tree):
            if leaf.dim() <= self.time or leaf.shape[self.time] != steps:
                order = "(n, t, …)" if self.time else "(t, n, …)"
                raise MessageError(
                    f"{name} must be {order} with {steps} steps as the inputs have, got {tuple(leaf.shape)}; repeat "
                    "what holds for whole sequences at every step (labels that do not count are −100)"
                )

    def part(self, tree: Any, start: int, stop: int) -> Any:
        """Steps `start` to `stop` − 1 of inputs, outputs or targets."""
        return map_tensors(lambda leaf: leaf.narrow(self.time, start, stop - start), tree)

    def at(self, tree: Any, step: int) -> Any:
        """One step of a structure with time, that dimension left out."""
        return map_tensors(lambda leaf: leaf.select(self.time, step), tree)

    def joined(self, parts: list[Any]) -> Any:
        """Outputs of one piece of time after the other."""
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts, self.time)
        flat = [torch.utils._pytree.tree_flatten(part) for part in parts]
        leaves = [
            torch.cat(each, self.time) if isinstance(each[0], Tensor) else each[0]
            for each in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
        return torch.utils._pytree.tree_unflatten(leaves, flat[0][1])

    def initial(self, like: Any, n: int) -> Any:
        """The state of `n` samples at the start of a sequence: the module's own `initial_state(n)`, or zeros."""
        own = getattr(self.module, "initial_state", None)
        return own(n) if callable(own) else map_tensors(torch.zeros_like, like)

    def run(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        """(outputs, the state after the last step).

        Args:
            inputs: with a dimension of time.
            state: the one to go on from; None at the start of a sequence.

        Raises:
            TrainingError: for what the module itself raises.
            MessageError: where it returns no state.
        """
        try:
            if self.cell:
                return self._cell(inputs, state)
            made = self.module(inputs) if self.layer and state is None else self.module(inputs, state)
        except SyngradError:
            raise
        except Exception as error:
            hint = "; on a CPU nn.LSTM has no float16: use bfloat16" if "primitive descriptor" in str(error) else ""
            raise TrainingError(f"the core raised {first_line(error)}{hint}") from error
        if isinstance(made, tuple) and len(made) == 2 and made[1] is not None and not tensors(made[1]):
            raise MessageError(
                f"the core {type(self.module).__name__} returned a state of {type(made[1]).__name__}, in which no "
                "tensor is to be seen; a state is a tensor, or tuples, lists and dicts of them"
            )
        if not isinstance(made, tuple) or len(made) != 2 or made[1] is None:
            got = type(made).__name__
            if isinstance(made, tuple):
                got = f"a tuple of {len(made)}" if len(made) != 2 else "(outputs, None)"
            raise MessageError(
                f"the core {type(self.module).__name__} returned {got} and no state; a core returns (outputs, state), "
                "as nn.LSTM does"
            )
        return made[0], made[1]

    def _cell(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        outputs = []
        for x in inputs.unbind(self.time):
            state = self.module(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return outputs[0].unsqueeze(self.time) if len(outputs) == 1 else torch.stack(outputs, self.time), state


@contextmanager
def evaluating(parts: list[nn.Module]) -> Iterator[None]:
    """In evaluation mode inside, and outside each part in the mode in which it was."""
    every = [each for part in parts for each in part.modules()]
    training = [each.training for each in every]
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        for each, was in zip(every, training, strict=True):
            each.training = was
