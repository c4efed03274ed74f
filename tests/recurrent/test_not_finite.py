"""A state that is no number any more: the first loss that hears of it says so; who starts anew is well again."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import pytest
import torch
from tests.recurrent.graphs import sequences
from tests.recurrent.graphs import two_clocks as graph_of_two
from tests.recurrent.small import data, lstm, sgd
from torch import Tensor

from syngrad import SyngradError, TruncatedBPTT
from syngrad.errors import TrainingError, TrainingWarning
from syngrad.recurrent import OnlineBPLambda

BAD = torch.tensor([False, True, False])


def trainer(kind: str, **options: Any) -> Any:
    core, readout = lstm()
    given = {"readout": readout, "optimizer": sgd, **options}
    return OnlineBPLambda(core, "linear", **given) if kind == "online" else TruncatedBPTT(core, kind, 4, **given)


def windows(count: int) -> list[tuple[Tensor, Tensor]]:
    inputs, targets = data(steps=4 * count)
    return [(inputs[:, k : k + 4], targets[:, k : k + 4]) for k in range(0, 4 * count, 4)]


def spoil(run: Any, inputs: Tensor, targets: Tensor, value: float = math.nan) -> None:
    """A window in which sample 1 is given what is no number, and no target that would show it."""
    inputs, targets = inputs.clone(), targets.clone()
    inputs[1], targets[1] = value, -100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)  # the guard's: this window's gradient is none either
        run.step(inputs, targets)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("kind", "where", "since"), [("zero", 2, "window 1"), ("linear", 2, "window 1"),
                                                     ("mlp", 2, "window 1"), ("online", 8, "step 4")])  # fmt: skip
def test_the_error_names_samples_and_window_and_what_to_do(kind: str, where: int, since: str, value: float) -> None:
    run, given = trainer(kind), windows(3)
    run.step(*given[0])
    spoil(run, *given[1], value)
    with pytest.raises(TrainingError) as caught:
        run.step(*given[2])
    assert str(caught.value) == (
        f"the loss is nan at {since.split()[0]} {where}; the state carried on is not finite, of sample 1, since "
        f"{since}; look at the data there, and begin anew: reset= for such samples, or restart() for all"
    )


@pytest.mark.parametrize("kind", ["zero", "linear", "mlp", "online"])
@pytest.mark.parametrize("anew", ["reset", "restart"])
def test_who_starts_anew_is_well_again(kind: str, anew: str) -> None:
    run, given = trainer(kind), windows(4)
    run.step(*given[0])
    spoil(run, *given[1])
    skipped = dict(run.guarded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if anew == "restart":
            run.restart()
        run.step(*given[2], reset=BAD if anew == "reset" else None)
        assert run.nonfinite_since is None
        run.step(*given[3])
    assert run.guarded == skipped
    assert all(bool(p.isfinite().all()) for p in run.interface.parameters())


def test_what_a_bad_sample_was_told_teaches_nobody() -> None:
    """After a reset the estimator has learnt what it would have without that sample's past."""
    run = trainer("linear", guard=None)
    inputs, targets = windows(1)[0]
    run.step(inputs, targets)
    spoilt = run.state[0].clone()
    spoilt[:, 1] = math.nan
    run.state = (spoilt, run.state[1])
    run.step(inputs, targets, reset=BAD)
    assert run.nonfinite_since is None
    assert all(bool(p.isfinite().all()) for p in run.core.module.parameters())


def test_it_is_told_after_a_checkpoint_too_and_of_the_weights_where_they_are_lost() -> None:
    run, given = trainer("zero"), windows(3)
    run.step(*given[0])
    spoil(run, *given[1])
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    other = trainer("zero")
    other.step(*given[0])
    other.load_state_dict(torch.load(file, weights_only=True))
    with pytest.raises(TrainingError, match="of sample 1, since window 1; look at"):
        other.step(*given[2])
    old = run.state_dict()
    del old["unfit"]
    other.load_state_dict(old)
    assert other.nonfinite_since is None
    open_ = trainer("zero", guard=None)
    open_.step(*given[0])
    spoil(open_, *given[1])
    with pytest.raises(TrainingError, match=r"since window 1, nor are the weights any more; .*keep guard="):
        open_.step(*given[2])


def test_who_has_ended_is_asked_no_more() -> None:
    """NaN as padding behind a sequence's end is nobody's fault but the guard's to skip."""
    inputs, targets = data()
    inputs[1, 4:], targets[1, 4:] = math.nan, -100
    run = trainer("linear")
    with pytest.warns(TrainingWarning, match="was skipped"):
        assert run.run(inputs, targets, [12, 4, 12]).isfinite()


def test_a_graph_says_of_whom_it_has_heard_what_is_no_number() -> None:
    graph = graph_of_two()
    inputs, targets = sequences(graph, 8)
    graph.run(inputs, targets, ends=False)
    broken = {"fast": torch.full_like(inputs["fast"][:, :4], math.nan)}
    graph.run(broken, {}, ends=False)
    with pytest.raises(SyngradError, match=r"the loss is nan of 'slow' at step 12; the message of 'fast' of step 11 "):
        graph.run(inputs, targets, ends=False)


def test_a_graph_says_that_the_state_carried_on_is_no_number() -> None:
    graph = graph_of_two()
    inputs, targets = sequences(graph, 8)
    graph.run(inputs, targets, ends=False)
    live = graph.stream.modules["fast"]
    live.state = tuple(leaf * math.nan for leaf in live.state)
    live.pending.vector.mul_(math.nan)
    with pytest.raises(SyngradError, match=r"the loss is nan of 'fast' at step 11; the state carried on .*restart\(\)"):
        graph.run(inputs, targets, ends=False)
