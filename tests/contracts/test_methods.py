"""What every method keeps to, whatever it does: one suite over all that are registered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support import local_link as local
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.core.batch import Batch
from syngrad.errors import SyngradError
from syngrad.methods.registry import RULES, parse
from syngrad.pipeline.neighbours import Next, Previous
from syngrad.runtime.channel import Neighbours
from syngrad.runtime.trace import Trace
from syngrad.tree import batch_size

#: how many minibatches late what comes back is used, where the method itself does not say
LATE = 1


def spelled(name: str) -> str:
    """The method as a user would type it."""
    return name + {"λ": "(0.5)", "minibatches": "(2)", "": ""}[RULES[name].takes]


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, generator=generator).double(), torch.randint(3, (8,), generator=generator)) for _ in range(n)
    ]


def trainer(name: str, dropout: float = 0.0, **options: Any) -> syngrad.Trainer:
    net = syngrad.decouple(network(dropout), cuts=["3", "5"])
    adam: Callable[[Any], Any] = lambda groups: torch.optim.Adam(groups, 1e-2)  # noqa: E731
    return syngrad.Trainer(
        net, loss=F.cross_entropy, optimizer=adam, method=spelled(name), progress=False, seed=3, **options
    )


def everything(trained: syngrad.Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in [*trained.model.parameters(), *trained.net.estimators.parameters()]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# The contract. Each check takes a registered name, so that a method of one's own can be held to it.


def check_reading(name: str) -> None:
    method = parse(spelled(name))
    assert parse(str(method)) == method
    assert method.estimates == RULES[name].estimates
    assert method.waits == RULES[name].waits


def check_the_last_stage_descends(name: str) -> None:
    """Whatever comes back to the others, the last stage has the loss itself."""
    made, exact = trainer(name), network()
    batch = batches(1)[0]
    made.step(batch)
    before = [p.detach().clone() for p in exact[5].parameters()]
    F.cross_entropy(exact(batch[0]), batch[1]).backward()
    torch.optim.Adam(exact.parameters(), 1e-2).step()
    for now, was, expected in zip(made.model[5].parameters(), before, exact[5].parameters(), strict=True):
        assert not torch.equal(now, was)
        torch.testing.assert_close(now, expected, rtol=1e-12, atol=1e-12)


def check_runs_are_repeated(name: str) -> None:
    ends = []
    for _ in range(2):
        made = trainer(name, dropout=0.3)
        for batch in batches(6):
            made.step(batch)
        ends.append(everything(made))
    assert same(*ends)


def check_resuming(name: str, folder: Path) -> None:
    """A run that is saved and put back takes the steps it would have taken, with whatever was in flight."""
    whole, first, second = (trainer(name, dropout=0.3, update_probability=0.7) for _ in range(3))
    for batch in batches(9):
        whole.step(batch)
    for batch in batches(9)[:5]:
        first.step(batch)
    second.load(first.save(folder))
    assert [vars(a) for a in second.runner.staleness] == [vars(a) for a in first.runner.staleness]
    for batch in batches(9)[5:]:
        second.step(batch)
    assert same(everything(whole), everything(second))
    assert [vars(a) for a in whole.runner.staleness] == [vars(a) for a in second.runner.staleness]


def check_a_failure_leaves_nothing(name: str) -> None:
    made, undisturbed = trainer(name, dropout=0.3), trainer(name, dropout=0.3)
    for k, batch in enumerate(batches(7)):
        undisturbed.step(batch)
        if k == 4:
            broken = (batch[0], torch.full_like(batch[1], 9))
            with pytest.raises(SyngradError, match=r"outside the model.s 3 outputs"):
                made.step(broken)
        made.step(batch)
    assert same(everything(made), everything(undisturbed))


def check_flushing(name: str) -> None:
    made = trainer(name)
    for batch in batches(5):
        made.step(batch)
    made.flush()
    assert made.runner.in_flight == 0
    for actor in made.runner.actors:
        assert not actor.waiting
        assert actor.next is None or not actor.next.outstanding


def check_two_workers(name: str, stages: int, link: Callable[..., Any] = local.pair) -> None:
    """Two runners with a link between them do what one does with as late feedback, to the last bit."""
    late = {} if RULES[name].takes == "minibatches" else {"feedback": syngrad.Feedback(delay=LATE)}
    one, head, tail = (trainer(name, **late) for _ in range(3))
    data = batches(8)
    for made in (one, head, tail):
        made.bind(data[0])
    for batch in data:
        one.step(batch)
    one.flush()
    sending, receiving = link("rank 0", "rank 1")
    following = Next(sending, 8, ("float32", "float32"), Trace(), 20.0)
    previous = Previous(receiving, ("float32", "float32"), Trace(), 20.0)
    head.runner.attach(Neighbours(0, stages, None, following))
    tail.runner.attach(Neighbours(stages, 3, previous, None))
    for made in (head, tail):
        made.runner.probe = None
    failures: list[BaseException] = []
    flush = threading.Event()

    def follow() -> None:
        try:
            torch.set_num_threads(1)  # each thread has a number of its own, and sums are another with another
            for _ in data:
                frame = previous.receive()
                message, context = previous.message(frame, tail.runner.own[0].arriving, None)
                tail.runner.step(Batch((message,), {}, context, frame.scale, batch_size(message), frame.wanted))
            flush.wait(20)
            tail.runner.flush()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        for batch in data:
            head.runner.step(head.read(batch))
        flush.set()
        following.until(len(data))
        head.runner.flush()
    finally:
        flush.set()
        thread.join(20)
        sending.close()
        receiving.close()
    assert not failures
    parts = [*zip(head.runner.stages[:stages], one.runner.stages[:stages], strict=True)]
    parts += [*zip(tail.runner.stages[stages:], one.runner.stages[stages:], strict=True)]
    for mine, its in parts:
        assert same([p.detach() for p in mine.parameters], [p.detach() for p in its.parameters])
        assert same([p.detach() for p in mine.estimator_parameters], [p.detach() for p in its.estimator_parameters])


def check_memory(name: str) -> None:
    """Between two minibatches nothing of them is kept, but for what is late by the method's own number."""
    made = trainer(name)
    for batch in batches(6):
        made.step(batch)
    late = 2 * parse(spelled(name)).delay if RULES[name].takes == "minibatches" else 0
    for actor in made.runner.actors:
        assert len(actor.flights) <= late + 1
        assert not actor.waiting
        assert not actor.awaited


ALL = {
    "reading": check_reading,
    "the last stage descends": check_the_last_stage_descends,
    "runs are repeated": check_runs_are_repeated,
    "a failure leaves nothing": check_a_failure_leaves_nothing,
    "flushing": check_flushing,
    "memory": check_memory,
}


@pytest.mark.parametrize("check", ALL.values(), ids=list(ALL))
@pytest.mark.parametrize("name", list(RULES))
def test_every_method(name: str, check: Callable[[str], None]) -> None:
    check(name)


@pytest.mark.parametrize("name", list(RULES))
def test_every_method_resumes(name: str, tmp_path: Path) -> None:
    check_resuming(name, tmp_path)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", list(RULES))
def test_every_method_over_two_workers(name: str, stages: int) -> None:
    check_two_workers(name, stages)
