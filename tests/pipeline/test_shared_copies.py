"""Averaging of copies along a chain of workers, which here are one thread: whatever the order in which they run."""

from __future__ import annotations

import random

import pytest
import torch
from tests._support import local_link
from torch import nn

from syngrad.core.sharing import SharedParameter
from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.neighbours import Next, Previous
from syngrad.pipeline.shared_copies import SharedCopies, mean
from syngrad.runtime.timeline import Timeline

SPANS = [(0, 1), (1, 2), (2, 3)]
#: by name: the stages that use it
USERS = {"a": (0, 2), "b": (0, 1, 2), "c": (1, 2)}


def chain(every: int = 3, delay: int | None = None) -> list[SharedCopies]:
    """Three workers, a stage each; the copies of worker k begin at k."""
    links = [local_link.pair(f"rank {k}", f"rank {k + 1}") for k in range(2)]
    floats = ("float32", "float32")
    made = []
    for rank in range(3):
        shared = [
            SharedParameter(name, nn.Parameter(torch.full((2,), float(rank), dtype=torch.float64)), users)
            for name, users in USERS.items()
        ]
        previous = Previous(links[rank - 1][1], floats, Timeline(), 5.0) if rank else None
        following = Next(links[rank][0], 8, floats, Timeline(), 5.0) if rank < 2 else None
        made.append(SharedCopies(shared, SPANS, rank, every, 0, delay, previous, following))
    return made


def listen(worker: SharedCopies) -> None:
    """Take in what the previous worker has sent, as waiting for its messages does."""
    if worker._previous is not None:
        worker._previous.poll()


def test_all_copies_go_to_their_mean_and_keep_what_they_have_learnt_since() -> None:
    workers = chain()
    for step in range(1, 4):  # worker after worker, as messages go
        for rank, worker in enumerate(workers):
            listen(worker)
            worker.before(step)
            with torch.no_grad():
                for parameter in worker.mine.values():
                    parameter += 10.0 ** -(rank + 1) if step == 3 else 0.0  # learnt in the very minibatch
            worker.after(step)
    for step in (4, 5):
        for worker in workers:
            worker.before(step)
            worker.after(step)
    expected = {"a": 1.0, "b": 1.0, "c": 1.5}
    for rank, worker in enumerate(workers):
        assert worker.mine.keys() == {name for name, users in USERS.items() if rank in users}
        for name, parameter in worker.mine.items():
            assert parameter[0].item() == pytest.approx(expected[name] + 10.0 ** -(rank + 1)), (rank, name)


@pytest.mark.parametrize("seed", range(5))
def test_in_free_running_any_order_of_workers_brings_the_copies_together(seed: int) -> None:
    workers, steps, draw = chain(), [0, 0, 0], random.Random(seed)
    for _ in range(400):
        rank = draw.randrange(3)
        if rank and steps[rank] >= steps[rank - 1]:  # it runs on what the previous one sends
            continue
        listen(workers[rank])
        workers[rank].before(steps[rank])
        workers[rank].after(steps[rank])
        steps[rank] += 1
    values = [worker.values() for worker in workers]
    expected = mean(values, workers[0].users | workers[1].users)
    for each in values:
        for name, value in each.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
    assert expected["a"][0].item() == pytest.approx(1.0)


def test_a_round_that_is_under_way_is_saved_as_what_it_will_add() -> None:
    workers = chain(every=2, delay=1)
    for worker in workers:
        listen(worker)
        worker.before(2)
        worker.after(2)
    for worker in reversed(workers[:2]):
        assert worker._next is not None
        while worker._next.take(wait=False) is not None:
            continue
    saved = [worker.pending for worker in workers]
    assert [[step for step, _ in each] for each in saved] == [[2]] * 3
    again = chain(every=2, delay=1)
    for worker, each in zip(again, saved, strict=True):
        worker.pending = each
        worker.before(3)
        worker.after(3)
        assert worker.mine["b"][0].item() == pytest.approx(1.0) if "b" in worker.mine else True
        assert worker.pending == []


@pytest.mark.parametrize("body", [[7], [{"a": 7}], [{"x": torch.ones(2)}], [{"a": torch.ones(3).double()}]], ids=str)
def test_sums_of_another_form_are_refused(body: list[object]) -> None:
    to_next, at_next = local_link.pair("rank 0", "rank 1")
    following = Next(to_next, 8, ("float32", "float32"), Timeline(), 5.0)
    shared = [SharedParameter("a", nn.Parameter(torch.ones(2).double()), (0, 1))]
    SharedCopies(shared, SPANS[:2], 0, 1, 0, None, None, following)
    at_next.send(Frame(Kind.SHARED, 1, body=body))
    with pytest.raises(LinkError, match="rank 1 sent sums of other shared parameters"):
        following.take(wait=False)


def test_nobody_who_shares_nothing_takes_any() -> None:
    to_next, at_next = local_link.pair("rank 0", "rank 1")
    at_next.send(Frame(Kind.SHARED, 1, body=[{}]))
    with pytest.raises(LinkError, match="rank 1 sent a SHARED that is none"):
        Next(to_next, 8, ("float32", "float32"), Timeline(), 5.0).take(wait=False)
