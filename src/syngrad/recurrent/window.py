"""What one call trains on: how sequences are cut into it, and which of its samples take part.

**States that are no numbers any more.** A sample whose targets do not count may be given a NaN without a loss that
shows it. Its state is one all the same from then on, and would spoil what the estimator learns, and what the others are
told. So such samples take no part in either until they start anew, and the first loss that hears of them says since
which window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import MessageError
from syngrad.recurrent.core import Core
from syngrad.recurrent.layout import Layout

#: samples that a message names
NAMED = 8


@dataclass
class Window:
    """A window, or a span of them that is trained in one step of the optimiser."""

    inputs: Any  # with a dimension of time, as the core takes them
    targets: Any  # what the loss is given for them
    contexts: list[Any]  # what the estimator may look at, one a window of the span
    reset: Tensor | None = None  # (n,) or (n, t) of bool, samples that start anew before this step (the first)
    ends: Tensor | None = None  # (n,) of bool, samples whose sequence ends with the last step
    dead: Tensor | None = None  # (n,) of bool, samples whose sequence has ended earlier
    #: (n,), the steps that each sequence still has from the first on, where some end in the span
    left: Tensor | None = None


def windows(
    core: Core,
    inputs: Any,
    targets: Any,
    lengths: Any,
    context: Any,
    *,
    window: int,
    horizon: int,
    device: torch.device,
) -> Iterator[Window]:
    """Whole sequences in spans of `horizon` windows, one after the other; who has ended is told with each.

    Args:
        core: says where inputs, targets and context have time and samples.
        inputs: of whole sequences, from their first step to their last.
        targets: with the same steps.
        lengths: (n,), the steps of each sequence; None where all are as long as the inputs.
        context: with the same steps; of each window its last step's is taken.
        window: steps of a window, the last of a sequence excepted.
        horizon: windows of a span.
        device: of what is said of the samples.

    Raises:
        MessageError: for lengths that are no whole numbers from 1 to the number of steps.
    """
    steps, n = core.steps(inputs), core.size(inputs)
    ended = torch.full((n,), steps, device=device)
    if lengths is not None:
        ended = _checked_lengths(lengths, n, steps).to(device)
    for start in range(0, steps, window * horizon):
        stop = min(start + window * horizon, steps)
        contexts = [core.at(context, min(begin + window, stop) - 1) for begin in range(start, stop, window)]
        span = Window(core.part(inputs, start, stop), core.part(targets, start, stop), contexts)
        gone = ended <= stop
        if bool(gone.any()):
            span.ends, span.dead, span.left = ended == stop, ended < stop, ended - start
        yield span
        if bool(gone.all()):
            return


def _checked_lengths(lengths: Any, n: int, steps: int) -> Tensor:
    refused = MessageError(f"lengths must be {n} whole numbers from 1 to {steps}, got {lengths!r:.60}")
    try:
        made = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise refused from error
    whole = not (made.is_floating_point() or made.is_complex() or made.dtype == torch.bool)
    if not whole or made.shape != (n,) or not bool(((made >= 1) & (made <= steps)).all()):
        raise refused
    return made


def check_flags(name: str, value: Any, n: int, device: torch.device, steps: int | None = None) -> Tensor | None:
    """None, or one truth value a sample, (n,); with `steps` also one a sample and step, (n, steps).

    Raises:
        MessageError: for anything else; it names `name` and the shapes that do.
    """
    if value is None:
        return None
    try:
        made = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise MessageError(f"{name} must be a tensor of bool, one or more a sample, got {value!r:.40}") from None
    shapes = [(n,)] if steps is None else [(n,), (n, steps)]
    if made.dtype != torch.bool or tuple(made.shape) not in shapes:
        wished = " or ".join(str(shape) for shape in shapes)
        raise MessageError(f"{name} must be of bool and of shape {wished}, got {made.dtype} {tuple(made.shape)}")
    return made.to(device)


def either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Samples that are in one of the two."""
    return a | b if a is not None and b is not None else (b if a is None else a)


def nonfinite(layout: Layout, leaves: list[Tensor]) -> Tensor | None:
    """(n,) of bool, samples whose state holds NaN or infinity; None where none does, which one sum a leaf tells."""
    if all(math.isfinite(leaf.detach().sum().item()) for leaf in leaves):
        return None
    found = ~torch.isfinite(layout.vector([leaf.detach() for leaf in leaves])).all(1)
    return found if bool(found.any()) else None


def nonfinite_since(before: Tensor | None, found: Tensor | None, gone: Tensor | None, count: int) -> Tensor | None:
    """(n,), the window since which a sample's state has not been finite, −1 where it is; None where all are well.

    From what it was `before` window `count`, who is `found` by :func:`nonfinite` after it, and who has ended, `gone`.
    """
    if found is None:
        return None
    kept = torch.full(found.shape, -1, device=found.device) if before is None else before
    kept = torch.where(found, torch.where(kept >= 0, kept, count), -1)
    return kept if gone is None else kept.masked_fill(gone, -1)


def blame_state(since: Tensor | None, reset: Tensor | None, what: str, weights: Iterable[Tensor]) -> str | None:
    """Why a loss is not finite, where the state that its window went on from was not; None where it was.

    `since` is of the window before, `reset` (n,) or (n, t) of those that started anew with this one, `what` "window" or
    "step", and `weights` those of core and readout.
    """
    if since is None:
        return None
    fresh = None if reset is None else reset if reset.dim() == 1 else reset[:, 0]
    bad = (since >= 0) if fresh is None else (since >= 0) & ~fresh
    rows: list[int] = bad.nonzero().flatten().tolist()
    if not rows:
        return None
    first = int(since[bad].min())
    named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    said = f"the state carried on is not finite, of sample{'s' if len(rows) > 1 else ''} {named}, since {what} {first}"
    if not all(bool(torch.isfinite(p).all()) for p in weights):
        return f"{said}, nor are the weights any more; look at the data there, begin from a checkpoint, and keep guard="
    return f"{said}; look at the data there, and begin anew: reset= for such samples, or restart() for all"
