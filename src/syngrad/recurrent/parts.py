"""What a recurrent trainer is made of once the first window has shown its sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.core.interface import infer_context
from syngrad.core.stage import Stage
from syngrad.errors import MessageError
from syngrad.estimators.base import Binding
from syngrad.optim.groups import check_patterns, names_of
from syngrad.optim.updates import Updates
from syngrad.preserve_state import Buffers, preserve_state
from syngrad.recurrent.state import Layout, layout
from syngrad.recurrent.window import Window
from syngrad.tree import map_tensors

if TYPE_CHECKING:
    from syngrad.recurrent.bptt import TruncatedBPTT
    from syngrad.recurrent.online import OnlineBPLambda


@dataclass(frozen=True)
class Parts:
    """layout: of the state. stage: core, readout and auxiliary head, with their randomness. updates: the optimiser.
    buffers: to be put back where a window fails. feedback_every: windows between two fits of the estimator.
    """

    layout: Layout
    stage: Stage
    updates: Updates
    buffers: Buffers
    feedback_every: int


def make(run: TruncatedBPTT | OnlineBPLambda, inputs: Any, context: Any) -> Parts:
    """Find the state's layout, bind the estimator, make the optimiser."""
    core = run.core
    found = layout(core, inputs)
    with preserve_state(core.module), torch.no_grad(), run.precision.autocast(run.device):
        one = map_tensors(lambda leaf: leaf.narrow(core.time, 0, 1), inputs)
        outputs, state = core.run(one, None)
    leaf = found.leaves(state)[0]
    kind = infer_context(context, run.interface.classes)
    binding = Binding(torch.Size((found.features,)), leaf.dtype, leaf.device, kind)
    with torch.random.fork_rng(devices=[leaf.device] if leaf.is_cuda else []):
        torch.manual_seed(run.seed)
        if not run.interface.bound:  # it is where what follows has failed before
            run.interface.bind_leaves([binding], [0])
        if run.auxiliary.weight:
            run.auxiliary.build(run.auxiliary.first(outputs, core.time), found.features)
    modules = {"core": core.module, "readout": run.readout, "auxiliary": run.auxiliary.head}
    whole = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})
    stage = Stage("core", whole, run.interface, run.seed, run.device)
    check_patterns("groups", list(run.groups), whole)
    updates = Updates(
        [stage],
        run.optimizer,
        "model",
        run.estimator_lr,
        run.scheduler,
        names=names_of(whole),
        groups=run.groups,
        guard=run.guard,
        clipping=run.clipping,
    )
    return Parts(found, stage, updates, Buffers([whole, run.interface]), run.interface.heads[0].feedback_every)


def windows(
    run: TruncatedBPTT | OnlineBPLambda, inputs: Any, targets: Any, lengths: Any, context: Any
) -> Iterator[Window]:
    """Whole sequences in spans of windows, one after the other; who has ended is told with each."""
    core = run.core
    steps, n = core.steps(inputs), core.size(inputs)
    ended = torch.full((n,), steps, device=run.device)
    if lengths is not None:
        ended = _whole(lengths, n, steps).to(run.device)
    span = run.window * run.horizon
    for start in range(0, steps, span):
        stop = min(start + span, steps)
        contexts = []
        for begin in range(start, stop, run.window):
            last = min(begin + run.window, stop) - 1
            contexts.append(core.at(context, last))
        window = Window(core.part(inputs, start, stop), core.part(targets, start, stop), contexts)
        gone = ended <= stop
        if bool(gone.any()):
            window.ends, window.dead, window.left = ended == stop, ended < stop, ended - start
        yield window
        if bool(gone.all()):
            return


def _whole(lengths: Any, n: int, steps: int) -> Tensor:
    """(n,) whole numbers from 1 to `steps`, checked."""
    refused = MessageError(f"lengths must be {n} whole numbers from 1 to {steps}, got {lengths!r:.60}")
    try:
        made = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise refused from error
    whole = not (made.is_floating_point() or made.is_complex() or made.dtype == torch.bool)
    if not whole or made.shape != (n,) or not bool(((made >= 1) & (made <= steps)).all()):
        raise refused
    return made


def started(first: Tensor, reset: Tensor | None) -> Tensor:
    """Samples that start anew: those of `first` with the first step, beside those of `reset`."""
    if reset is None:
        return first
    if reset.dim() == 1:
        return first | reset
    made = reset.clone()
    made[:, 0] |= first
    return made
