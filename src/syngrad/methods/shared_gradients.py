"""Which stages send back gradients of parameters that several use: those at links, or, for some methods, all.

Within one process stages share the very tensor, and what each adds to its `.grad` is a sum already.
"""

from __future__ import annotations

from collections.abc import Sequence

from syngrad.core.sharing import SharedParameter
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule


def lay_out(shared: Sequence[SharedParameter], own: Sequence[Actor], rule: UpdateRule, summed: bool) -> None:
    """Tell the stages of one worker what goes back with their answers, and what comes with those to them.

    Args:
        shared: all that stages of the network share.
        own: the worker's stages, between their channels.
        rule: that runs them.
        summed: whether their owners update them by the sum of all gradients; otherwise nothing goes back.
    """
    for actor in own:
        before = summed and actor.previous is not None and (rule.carries or not actor.previous.local)
        after = summed and actor.next is not None and (rule.carries or not actor.next.local)
        actor.carries = [each.parameter for each in shared if before and each.crosses(actor.index)]
        actor.passes = [each.parameter for each in shared if after and each.crosses(actor.index + 1)]
