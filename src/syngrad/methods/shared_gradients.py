"""Which stages send back gradients of parameters that several use: those at links, or, for some methods, all.

Within one process stages share the very tensor, and what each adds to its `.grad` is a sum already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from syngrad.core.sharing import shared_parameters
from syngrad.core.stage import Stage
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule


class SharedGradients:
    """Tells the stages of one worker what goes back with their answers, and what comes with those to them.

    Args:
        model: the user's.
        stages: of it, all of them.

    Attributes:
        shared: what several stages use.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Stage]) -> None:
        self.shared = shared_parameters(model, stages)
        self._laid: Any = None

    def lay_out(self, own: Sequence[Actor], rule: UpdateRule, summed: bool) -> None:
        """Tell them, unless they know.

        Args:
            own: the worker's stages, between their channels.
            rule: that runs them.
            summed: whether owners update by the sum of all gradients; otherwise nothing goes back.
        """
        if not self.shared or self._laid == (own, rule, summed):
            return
        self._laid = own, rule, summed
        for actor in own:
            before = summed and actor.previous is not None and (rule.carries or not actor.previous.local)
            after = summed and actor.next is not None and (rule.carries or not actor.next.local)
            actor.carries = [each.parameter for each in self.shared if before and each.crosses(actor.index)]
            actor.passes = [each.parameter for each in self.shared if after and each.crosses(actor.index + 1)]
