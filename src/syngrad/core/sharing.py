"""Parameters that several stages use: which stage updates each of them, and what of them crosses a cut.

    stage 0 (owner) ── value, with a message ──▶ stage 1 ── … ──▶ stage 2 (uses it too)
                    ◀── gradient, with its feedback ───── … ◀──

The owner is the first stage that uses a parameter. Within one process all stages use one tensor, and the owner's
optimiser takes the sum of their gradients. Where a value has to cross (between workers), it goes forward through every
stage up to the last that uses the parameter, and the sum of what those say of it comes back the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from syngrad.core.stage import Stage


@dataclass(frozen=True)
class SharedParameter:
    """One that several stages use.

    Args:
        name: in the user's model, the first of its names.
        parameter: the user's own object.
        users: the stages, in order; the first owns it.
    """

    name: str
    parameter: nn.Parameter
    users: tuple[int, ...]

    def crosses(self, start: int) -> bool:
        """Whether it does so at the cut before this stage: an earlier one owns it, and this or a later one uses it."""
        return self.users[0] < start <= self.users[-1]

    @property
    def bytes(self) -> int:
        """Of its values."""
        return self.parameter.numel() * self.parameter.element_size()


def shared_parameters(model: nn.Module, stages: Sequence[Stage]) -> list[SharedParameter]:
    """Every parameter that several stages use, in the model's order.

    Args:
        model: the user's.
        stages: of it, all of them.
    """
    users: dict[int, list[int]] = {}
    for index, stage in enumerate(stages):
        for key in {id(parameter) for parameter in stage.used}:
            users.setdefault(key, []).append(index)
    return [
        SharedParameter(name, parameter, tuple(users[id(parameter)]))
        for name, parameter in model.named_parameters()
        if len(users.get(id(parameter), ())) > 1
    ]
