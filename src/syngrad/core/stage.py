"""A stage: a contiguous part of the model with its interface to the next one, its parameters and its randomness."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.first_run import first_run
from syngrad.core.input_predictor import InputPredictor
from syngrad.core.interface import Interface
from syngrad.core.randomness import Randomness
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.partition.segment import Segment, segment_parameters
from syngrad.preserve_state import preserve_state


class Stage:
    """One segment of the model at work, with all that is its own.

    Args:
        name: the cut that starts it, "input" for the first.
        segment: the user's own modules.
        interface: to the next stage, None for the last.
        seed: of its dropout.
        device: where it runs.
        predictor: of its input, where it runs on one.
        elsewhere: the ids of parameters that another stage's optimiser updates, though this one may use them too.
    """

    def __init__(
        self,
        name: str,
        segment: nn.Module,
        interface: Interface | None,
        seed: int,
        device: torch.device,
        predictor: InputPredictor | None = None,
        elsewhere: Collection[int] = (),
    ) -> None:
        self.name, self.segment, self.interface, self.predictor = name, segment, interface, predictor
        # Frozen ones too: they may be trained later, and until then an optimiser passes them over. In the model's
        # order, however it was cut: by their places an optimiser knows them, in checkpoints too.
        self.used = segment_parameters(segment) if isinstance(segment, Segment) else list(segment.parameters())
        #: of those, the ones that it updates: what stages share, the first of them does, by the sum of all gradients
        self.parameters = [p for p in self.used if id(p) not in elsewhere]
        #: of these, the ones that an earlier stage owns in another worker: here they are copies, updated for themselves
        self.copies: list[nn.Parameter] = []
        self.randomness = Randomness(seed, device)
        #: whether its message has to require a gradient for all of its parameters to get one
        self.needs_gradient = False
        # whether it is known that it writes into its message, and what its graph looks like
        self._watched = self._traced = False

    @property
    def estimator_parameters(self) -> list[nn.Parameter]:
        """Those of the interface that this stage sends through, and of the predictor of its input."""
        parts = [part for part in (self.interface, self.predictor) if part is not None]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def adopt(self, parameter: nn.Parameter, owner: Stage) -> None:
        """Update a parameter for oneself from now on, which another stage would have updated."""
        owner.parameters[:] = [p for p in owner.parameters if p is not parameter]
        self.parameters.append(parameter)
        self.copies.append(parameter)

    def give_back(self, parameter: nn.Parameter, owner: Stage) -> None:
        """Leave its updates to that stage again."""
        for held in (self.parameters, self.copies):
            held[:] = [p for p in held if p is not parameter]
        there = {parameter, *owner.parameters}
        owner.parameters[:] = [p for p in owner.used if p in there]

    def run(self, *args: Any, stash: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        """The forward pass with this stage's own randomness.

        Args:
            args: the stage's message, or the model's arguments.
            stash: stands in for the parameters, by name, where it is given.
            kwargs: the model's.

        Raises:
            TrainingError: naming the stage, where the model itself raises.
        """
        with self.randomness.swapped():
            try:
                if stash is not None:
                    return torch.func.functional_call(self.segment, stash, args, kwargs)
                return self.segment(*args, **kwargs)
            except SyngradError:
                raise
            except Exception as error:
                hint = ""
                if "more than 1 value per channel" in str(error):
                    hint = "; a batch of one cannot be batch-normalised: use drop_last=True or another batch size"
                raise TrainingError(f"stage {self.name!r} raised {first_line(error)}{hint}") from error

    def run_on(self, message: Any, where: list[int], stash: dict[str, Tensor] | None = None) -> Any:
        """The forward pass on a message that was cut from its graph; on a first one it is found what it does with it.

        Args:
            message: from the previous stage.
            where: positions of the differentiable leaves in it.
            stash: as for :meth:`run`.
        """
        if self._traced or (self._watched and not torch.is_grad_enabled()):
            return self.run(message, stash=stash)
        found = first_run(lambda copy: self.run(copy, stash=stash), message, where)
        if found.writes and isinstance(self.segment, Segment):
            self.segment.writes_message = True
        self.needs_gradient = found.hides_parameters
        self._watched, self._traced = True, torch.is_grad_enabled()
        return found.output


@contextmanager
def undisturbed(stages: list[Stage]) -> Iterator[None]:
    """Generators, the stages' own and the default ones, buffers and plain attributes are afterwards what they were.

    See :func:`syngrad.preserve_state.preserve_state` for what cannot be put back.
    """
    randomness = [stage.randomness.save() for stage in stages]
    parts = [part for stage in stages for part in (stage.segment, stage.interface, stage.predictor) if part is not None]
    with preserve_state(*parts):  # the default generators too: a loss may draw from them
        try:
            yield
        finally:
            for stage, saved in zip(stages, randomness, strict=True):
                stage.randomness.load(saved)
