"""What several processes of one run see of each other, measured by themselves: slowdown, gloo, Syngrad's own link.

On one machine a launcher starts two of them (`python -m syngrad.planner`); under torchrun the workers that are there do
it, and what lies between them is in the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from syngrad.compare.rivals.recipe import GlooGroup
from syngrad.compare.step_costs import now
from syngrad.compare.user_experiment import UserExperiment
from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import LinkError
from syngrad.experiments.experiment import Experiment
from syngrad.links import LINKS
from syngrad.links.link import Frame, Kind, Link, LinkRequest
from syngrad.links.message_dtype import pack, unpack
from syngrad.links.rendezvous import Rendezvous
from syngrad.methods.registry import parse as parse_method
from syngrad.planner.unit_costs import low

#: bytes of what is sent, of which two tell a fixed time and a time a byte
SIZES = (4 * 2**10, 2**20)
#: of what is reduced: a piece of gloo's, and several
REDUCED = (2**16, 2**23)
#: seconds that a wait for the other process may take
WAIT_S = 60.0


def measured(experiment: Experiment, seconds: float) -> dict[str, Any]:
    """What the first process has measured with the second; every other one takes part and returns an empty mapping.

    Args:
        experiment: whose steps the processes slow each other down with.
        seconds: about how long it may take.
    """
    torch.set_num_threads(1)
    user, share = UserExperiment(experiment), seconds / 8
    trainer = user.trainer(parse_method("backprop"), 0, user.options(), {})
    batches = user.batches(0, [("a plan", 0)])
    group = GlooGroup.join()
    try:
        step = _stepping(trainer.step, batches)
        _spend(step, share / 2)
        peak = peak_memory_bytes()
        group.barrier()
        alone = low(_spend(step, share)) if group.first else 0.0
        group.barrier()
        together = low(_spend(step, 1.5 * share) if group.rank < 2 else [0.0])
        group.barrier()
        both = [each for each in group.all(together)[:2] if each]
        found = {
            "busy": max(sum(both) / len(both) / alone, 1.0) if group.first else 1.0,
            "exchange": [_exchange(group, size, share / 4) / 2 for size in SIZES],
            "action": _action(group),
            "all_reduce": [_reduced(group, size, share / 4) for size in REDUCED],
            "message": [each / 2 for each in _over_link(share)],
            "copy": [_copied(size) for size in SIZES],
            "pack": {how: [_packed(size, how) for size in SIZES] for how in ("bfloat16", "int8")},
            "peak_bytes": peak,
        }
        group.barrier()
    finally:
        group.leave()
    return found if group.first else {}


def _stepping(step: Callable[[Any], Any], batches: Sequence[Any]) -> Callable[[int], Any]:
    return lambda k: step(batches[k % len(batches)])


def _spend(call: Callable[[int], Any], seconds: float, least: int = 4) -> list[float]:
    """Seconds of every call, as many as that time has room for; the first is not told."""
    times: list[float] = []
    begin = now()
    while len(times) < least or now() - begin < seconds:
        before = now()
        call(len(times))
        times.append(now() - before)
    return times[1:]


def _times(group: GlooGroup, call: Callable[[int], Any], seconds: float) -> float:
    """Of a call that every process takes part in, so often that it takes about so long."""
    group.barrier()
    before = time.perf_counter()
    call(0)
    once = time.perf_counter() - before
    count = int(group.agree(min(max(seconds / max(once, 1e-6), 3), 200)))
    group.barrier()
    times = []
    for k in range(count):
        before = time.perf_counter()
        call(k)
        times.append(time.perf_counter() - before)
    return low(times)


def _exchange(group: GlooGroup, size: int, seconds: float) -> float:
    """There and back over gloo."""
    tensor = torch.ones(size // 4)
    return _times(group, lambda _: group.there_and_back(tensor), seconds)


def _reduced(group: GlooGroup, size: int, seconds: float) -> float:
    tensor = torch.ones(size // 4)
    return _times(group, lambda _: group.mean([tensor]), seconds)


def _over_link(seconds: float) -> list[float]:
    """There and back over Syngrad's own link, of every size, between the first two workers."""
    rendezvous = Rendezvous.join(WAIT_S)
    world = rendezvous.world
    request = LinkRequest(rendezvous, lambda rank: f"rank {rank}", WAIT_S, lambda link, error: None)
    links = LINKS["zeromq"](request)
    try:
        return [_echoed(links[1 - world.rank], world.rank, size, seconds) for size in SIZES] if world.rank < 2 else []
    finally:
        for link in links:
            if link is not None:
                link.close()
        rendezvous.close()


def _echoed(link: Link | None, rank: int, size: int, seconds: float) -> float:
    """The first sends and times, the second sends back what comes until it is told that this is the last."""
    assert link is not None
    tensor, times = torch.ones(size // 4), list[float]()
    begin = time.perf_counter()
    while rank == 0:
        last = len(times) >= 3 and time.perf_counter() - begin > seconds
        before = time.perf_counter()
        link.send(Frame(Kind.MESSAGE, len(times), wanted=last, body=[tensor, None]))
        _received(link)
        times.append(time.perf_counter() - before)
        if last:
            return low(times[1:])
    while True:
        frame = _received(link)
        link.send(Frame(Kind.DONE, frame.minibatch, body=[frame.body[0], []]))
        if frame.wanted:
            return 0.0


def _received(link: Link) -> Frame:
    frame = link.receive(WAIT_S)
    if frame is None:
        raise LinkError(f"{link.peer} has sent nothing for {WAIT_S:g} s, so the link cannot be measured; try again")
    return frame


def _action(group: GlooGroup) -> float:
    """What PyTorch's schedules take for a part's pass on a worker."""
    from syngrad.compare.rivals.microbatch_pipeline import action_seconds  # half a second to import

    group.barrier()
    return action_seconds(group, 20)


def _copied(size: int) -> float:
    tensor = torch.ones(size // 4)
    return low(_spend(lambda _: tensor.clone(), 0.02))


def _packed(size: int, how: str) -> float:
    """Into a form and back."""
    tensors: list[Tensor] = [torch.randn(max(size // 4 // 256, 1), 256)]
    dtypes = [each.dtype for each in tensors]
    return low(_spend(lambda _: unpack(pack(tensors, how), how, dtypes), 0.02))
