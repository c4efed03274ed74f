"""Where to cut when the user only says into how many stages: so that the slowest stage is as fast as possible.

The stages of a decoupled pipeline work at once, so its throughput is that of its slowest stage. Costs are measured, not
estimated from parameter counts: an embedding has many parameters and costs nothing, a convolution the other way round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from syngrad.errors import ConfigError, SyngradError, first_line
from syngrad.partition.cuts import Program, shared_statistics, trains
from syngrad.partition.example import Example, UnitError, said
from syngrad.partition.segment import FIRST, Segment, segment_parameters
from syngrad.preserve_state import preserve_state
from syngrad.tree import differentiable, map_tensors

_REPEATS = 5


def balanced(costs: Sequence[float], interface_costs: Sequence[float], stages: int) -> list[int]:
    """The units that start a stage (the first stage's 0 left out) so that the largest stage cost is the least possible.

    ``costs[i]`` ≥ 0 is the time of unit i, 0 ≤ i < n; ``interface_costs[i]`` ≥ 0, 0 ≤ i < n−1, is what a cut between
    unit i and i+1 adds to the stage that ends with unit i. A stage of units i…j−1 costs Σ costs[i:j] plus
    interface_costs[j−1] unless it is the last. Exact, by dynamic programming over the last cut, O(stages·n²).
    """
    n = len(costs)
    if not 1 <= stages <= n or len(interface_costs) != n - 1:
        raise ConfigError(f"{n} units with {len(interface_costs)} interfaces cannot make {stages} stages")
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    sends = [0.0, *interface_costs, 0.0]  # sends[j]: what a stage that ends before unit j pays to send
    # best[j]: the least maximum over the first j units in k stages; start[k][j]: where the last of these begins.
    best = [before[j] + sends[j] for j in range(n + 1)]
    starts: list[list[int]] = [[0] * (n + 1)]
    for k in range(2, stages + 1):
        fresh, start = [float("inf")] * (n + 1), [0] * (n + 1)
        for j in range(k, n + 1):
            for i in range(k - 1, j):
                largest = max(best[i], before[j] - before[i] + sends[j])
                if largest < fresh[j] or start[j] == 0:  # the first is taken even at an infinite cost
                    fresh[j], start[j] = largest, i
        best = fresh
        starts.append(start)
    chosen, j = [], n
    for start in reversed(starts[1:]):
        j = start[j]
        chosen.append(j)
    return chosen[::-1]


def choose(
    model: nn.Module,
    program: Program,
    candidates: Sequence[str],
    stages: int,
    example: Example,
    interface_cost: Callable[[Any], float] | None,
    sharing: bool = False,
) -> list[str]:
    """The cuts, among the candidates, that balance the model by its measured cost on the example."""
    cuts = separable(model, program, candidates, sharing)
    if stages > len(cuts) + 1:
        named = f" (at {', '.join(map(repr, cuts))})" if 0 < len(cuts) <= 8 else ""
        raise ConfigError(
            f"stages={stages} is more than this model can be cut into: it has {len(cuts)} places for a cut{named}, "
            f"so at most stages={len(cuts) + 1}"
        )
    costs, interface_costs = measured(model, program.segments(cuts), example, interface_cost)
    return [cuts[start - 1] for start in balanced(costs, interface_costs, stages)]


def separable(model: nn.Module, program: Program, candidates: Sequence[str], sharing: bool = False) -> list[str]:
    """The candidates left once no running statistic is torn apart (but where stages may share it) and every unit has
    something to train. A unit without parameters (an activation, a pooling) joins the one before it: the smaller
    message is then the one that is sent.
    """
    cuts = list(candidates)
    common = [] if sharing else shared_statistics(model, program.uses(cuts))
    torn = {cut for first, _, last, _ in common for cut in cuts[first:last]}
    cuts = [cut for cut in cuts if cut not in torn]
    kept: list[str] = []
    started = False  # whether some unit so far trains: what comes before the first such unit joins it
    for used, cut in zip(program.uses(cuts), [None, *cuts], strict=True):
        if trains(model, used):
            if started and cut is not None:
                kept.append(cut)
            started = True
    return kept


def measured(
    model: nn.Module, segments: Sequence[Segment], example: Example, interface_cost: Callable[[Any], float] | None
) -> tuple[list[float], list[float]]:
    """Seconds of forward and backward of each segment, and of the interface on each message, on the example."""
    interface_costs: list[float] = []
    with preserve_state(model), torch.enable_grad():
        if not model.training:
            model.train()
        times: list[list[float]] = [[] for _ in segments]
        messages: list[Any] = []
        for _ in range(_REPEATS):  # stage after stage, as they run: one may be a part of a forward that is under way
            messages, (args, kwargs) = [], example
            for segment, taken in zip(segments, times, strict=True):
                given = map_tensors(torch.clone, (args, kwargs))  # a unit may write into what it gets
                begin = _now(model)
                message = _run(segment, *given)
                taken.append(_now(model) - begin)
                messages.append(map_tensors(lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), message))
                args, kwargs = (messages[-1],), {}
        costs = [statistics.median(taken[1:]) for taken in times]  # the first run also fills caches
        for segment, message in zip(segments[:-1], messages, strict=False):
            interface_costs.append(_interface_seconds(interface_cost, message, segment))
    return costs, interface_costs


def _run(segment: Segment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The unit's message, after its forward and backward."""
    try:
        message = segment(*args, **kwargs)
        _backward(segment, message, args)
    except SyngradError:
        raise
    except Exception as error:
        where = "its first unit" if segment.name == FIRST else f"the unit that starts at {segment.name!r}"
        raise UnitError(f"the model raised in {where}: {said(error, (args, kwargs))}") from error
    return message


def _interface_seconds(interface_cost: Callable[[Any], float] | None, message: Any, segment: Segment) -> float:
    if interface_cost is None:
        return 0.0
    try:
        return interface_cost(message)
    except SyngradError:
        raise
    except Exception as error:
        raise ConfigError(
            f"what a cut after {segment.name!r} would cost could not be measured on the message that is sent there "
            f"({first_line(error)}); name the cuts instead, cuts=[…]"
        ) from error


def _backward(segment: Segment, message: Any, args: tuple[Any, ...]) -> None:
    """The segment's own backward, without writing to any ``.grad``."""
    outputs = differentiable(message)
    wanted = [parameter for parameter in segment_parameters(segment) if parameter.requires_grad] + differentiable(args)
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.ones_like(leaf) for leaf in outputs], allow_unused=True)


def _now(model: nn.Module) -> float:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()
