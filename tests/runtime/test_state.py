"""One serialisation of a run: everything that it changes survives a checkpoint, and is handed to workers as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import case_trainer
from tests.contracts.test_methods import batches, everything, network, same, trainer
from torch.nn import functional as F

import syngrad
from syngrad.errors import CheckpointError
from syngrad.methods.registry import RULES
from syngrad.runtime import checkpoint, state

RECORDING = syngrad.Distributed(record=True)
LATE = syngrad.Feedback(delay=2, quality_every=1)


class BrokenError(Exception):
    pass


class UntilNow:
    """A loader that ends in an error after so many minibatches, once."""

    def __init__(self, data: list[Any], after: int | None) -> None:
        self.data, self.after = data, after

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for k, batch in enumerate(self.data):
            if k == self.after:
                raise BrokenError
            yield batch


@pytest.mark.parametrize("name", ["synthetic", "delayed"])
def test_staleness_and_record_survive_a_resume(name: str, tmp_path: Path) -> None:
    """They tell of the whole run, not of what came after the last checkpoint."""
    late = {"feedback": LATE} if name == "synthetic" else {}
    data = batches(12)
    whole, first, second = (trainer(name, distributed=RECORDING, **late) for _ in range(3))
    expected = whole.fit(data)
    with pytest.raises(syngrad.SyngradError):
        first.fit(UntilNow(data, 7), save=tmp_path, save_every=5)
    found = second.fit(data, save=tmp_path, resume=True)
    assert found.record == expected.record
    assert sum(map(len, found.record)) > 5
    assert [row["staleness"] for row in found.interfaces] == [row["staleness"] for row in expected.interfaces]
    assert same(everything(whole), everything(second))


def test_minibatches_in_flight_go_back_through_a_buffer_that_stages_share_after_a_checkpoint() -> None:
    """A worker that brings the model together puts others' stages into its own model, whose mask its graphs hold."""
    case = CASES["gpt"]
    made, alone = (case_trainer(case, case.model(), method="delayed(2)") for _ in range(2))
    for count, batch in enumerate(case.batches(8)):
        if count == 5:
            last = len(made.runner.stages)
            part = state.take(made.runner, (last - 1, last))
            part["weights"] = [{name: value.clone() for name, value in each.items()} for each in part["weights"]]
            state.put(made.runner, part)
        made.step(batch)
        alone.step(batch)
    assert_same(tensors_of(made.model), tensors_of(alone.model), rtol=0.0)


@pytest.mark.parametrize("name", list(RULES))
def test_a_part_put_into_another_runner_is_the_same_part(name: str) -> None:
    one, other = trainer(name, dropout=0.3), trainer(name, dropout=0.3)
    for batch in batches(7):
        one.step(batch)
    other.bind(batches(1)[0])
    for span in ((0, 1), (1, 3)):
        part = state.take(one.runner, span)
        state.put(other.runner, part)
        state.put_common(other.runner, part)
    tensors: list[dict[str, torch.Tensor]] = []
    plain = []
    from syngrad import tagged_json

    for made in (one, other):
        tensors.append({})
        plain.append(tagged_json.encode(state.take(made.runner, (0, 3)), tensors[-1]))
    assert json.dumps(plain[0]) == json.dumps(plain[1])
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_which_weights_are_trained_survives_a_resume(tmp_path: Path) -> None:
    first, second, third = (trainer("synthetic") for _ in range(3))
    first.bind(batches(1)[0])
    first.model[0].weight.requires_grad_(False)
    first.fit(batches(3), save=tmp_path)
    second.fit(batches(3), epochs=1, save=tmp_path, resume=True)
    assert not second.model[0].weight.requires_grad
    third.load(tmp_path)
    assert third.model[0].weight.requires_grad, "in a loop of one's own that is the user's choice"


def test_going_back_to_a_checkpoint_forgets_what_was_guarded_since(tmp_path: Path) -> None:
    made = trainer("synthetic")
    made.step(batches(1)[0])
    path = made.save(tmp_path)
    made.model[0].weight.data.fill_(float("nan"))
    with pytest.raises(syngrad.SyngradError):
        made.step(batches(1)[0])
    made.guard.counts["input"] = 3
    made.load(path)
    assert made.guarded == {}


def test_a_checkpoint_of_an_earlier_form_is_refused_in_one_line(tmp_path: Path) -> None:
    made = trainer("synthetic")
    made.step(batches(1)[0])
    path = made.save(tmp_path)
    model, saved = checkpoint.load(path)
    del saved["form"]
    old = checkpoint.save(tmp_path / "old", model, saved, 2)
    fresh = trainer("synthetic")
    with pytest.raises(CheckpointError, match="was written by an earlier version of Syngrad") as caught:
        fresh.load(old)
    assert "\n" not in str(caught.value)
    assert fresh.runner is None, "nothing was touched"


def test_a_run_goes_on_after_the_last_minibatch_of_an_epoch(tmp_path: Path) -> None:
    """The checkpoint of an epoch's last minibatch may be all that is left: then only the epoch's end is to come."""
    data = batches(4)
    net = syngrad.decouple(network(), cuts=["3"])
    options: dict[str, Any] = {"loss": F.cross_entropy, "progress": False}
    first = syngrad.Trainer(net, **options)

    def broken(record: Any) -> None:
        raise BrokenError

    with pytest.raises(BrokenError):
        first.fit(data, epochs=2, save=tmp_path, save_every=4, on_epoch=broken)
    second = syngrad.Trainer(syngrad.decouple(network(), cuts=["3"]), **options)
    history = second.fit(data, epochs=2, save=tmp_path, resume=True)
    assert len(history.epochs) == 2
    whole = syngrad.Trainer(syngrad.decouple(network(), cuts=["3"]), **options)
    whole.fit(data, epochs=2)
    assert same(everything(whole), everything(second))
