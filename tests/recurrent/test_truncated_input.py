"""What a window cannot be trained on is refused in one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests._support.small_recurrent import CLASSES, data, lstm, sgd
from torch import Tensor, nn

from syngrad import SyngradError, TruncatedBPTT


def trainer(estimator: Any = "linear", **options: Any) -> TruncatedBPTT:
    core, readout = lstm()
    return TruncatedBPTT(core, estimator, **{"window": 4, "readout": readout, "optimizer": sgd, **options})


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(SyngradError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"readout": nn.Linear(9, CLASSES).double()}, "the readout raised RuntimeError"),
        ({"loss": lambda o, y: 1 / 0}, "the loss raised ZeroDivisionError"),
        ({"loss": lambda o, y: None}, "the loss must be a scalar tensor, got NoneType"),
    ],
)
def test_what_the_users_own_parts_raise_names_them(options: dict[str, Any], said: str) -> None:
    inputs, targets = data(steps=4)
    assert said in refused(lambda: trainer(**options).step(inputs, targets))
    assert said in refused(lambda: trainer(**options).evaluate(inputs, targets))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss_count": lambda y: None}, "loss_count gave None"),
        ({"loss_count": lambda y: float("inf")}, "loss_count gave inf"),
        ({"loss_count": lambda y: 1 / 0}, "the loss_count raised ZeroDivisionError"),
        ({"loss": lambda o, y: torch.ones(())}, "the loss depends on nothing that is trained"),
        ({"estimator": lambda binding: 1 / 0}, "could not be made: ZeroDivisionError"),
        ({"scheduler": lambda optimizer: 5}, "scheduler= must return a scheduler, as torch.optim's, got int"),
    ],
)
def test_what_cannot_be_trained_by(options: dict[str, Any], said: str) -> None:
    bptt = trainer(**options)
    before = [p.detach().clone() for p in bptt.core.module.parameters()]
    assert said in refused(lambda: bptt.step(*data(steps=4)))
    assert all(torch.equal(p, q) for p, q in zip(bptt.core.module.parameters(), before, strict=True))


def test_a_window_without_labels_may_have_a_constant_loss() -> None:
    for estimator in ("zero", "linear"):
        bptt = trainer(estimator, loss=lambda o, y: torch.zeros(()), loss_count=lambda y: 0.0)
        assert bptt.step(*data(steps=4)).item() == 0.0


@pytest.mark.parametrize("name", ["targets", "context"])
@pytest.mark.parametrize("steps", [7, 9])
def test_whole_sequences_have_as_many_targets_and_contexts_as_steps(name: str, steps: int) -> None:
    inputs, targets = data(steps=8)
    given: dict[str, Any] = {"targets": targets, "context": None}
    given[name] = torch.zeros(len(inputs), steps, dtype=torch.int64 if name == "targets" else torch.float64)
    said = refused(lambda: trainer().run(inputs, **given))
    assert said.startswith(f"{name} must be (n, t, …) with 8 steps as the inputs have, got (3, {steps})")
    given[name] = torch.zeros(len(inputs))
    assert f"{name} must be" in refused(lambda: trainer().run(inputs, **given))


def test_rows_lengths_and_contexts_are_what_they_should_be() -> None:
    inputs, targets = data(steps=8)
    for lengths in ("abc", [1, 2], [1, 2, 9], [1.0, 2.0, 3.0], torch.ones(3, dtype=torch.bool)):
        assert "lengths must be 3 whole numbers from 1 to 8" in refused(
            lambda lengths=lengths: trainer().run(inputs, targets, lengths)  # type: ignore[misc]
        )
    for name in ("reset", "ends"):
        said = refused(lambda name=name: trainer().step(inputs[:, :4], targets[:, :4], **{name: "yes"}))  # type: ignore[misc]
        assert f"{name} must be a tensor of bool" in said
    spans = trainer(horizon=2, lam=0.5)
    for context, got in ((torch.zeros(3, 2), "Tensor"), (5, "int"), ([None], "1")):
        assert f"a span of 2 windows needs a list of so many contexts, got {got}" in refused(
            lambda context=context: spans.step(inputs, targets, context=context)  # type: ignore[misc]
        )


def test_a_context_keeps_its_size_and_is_there_from_the_first_window_on() -> None:
    given = data(steps=4)
    bptt = trainer()
    bptt.step(*given, context=torch.zeros(3, 2))
    assert "the context had 2 numbers a sample, and 3 now" in refused(
        lambda: bptt.step(*given, context=torch.zeros(3, 3))
    )
    bptt = trainer()
    bptt.step(*given)
    assert "give it from the first window on" in refused(lambda: bptt.step(*given, context=torch.zeros(3, 2)))
    bptt = trainer("linear(context=False)")  # that looks at none has nothing to miss
    bptt.step(*given)
    bptt.step(*given, context=torch.zeros(3, 2))


def test_a_state_of_fewer_samples_is_refused() -> None:
    class Shrinking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(4, CLASSES).double()
            self.keep = False

        def forward(self, inputs: Tensor, state: Any) -> Any:
            made = self.into(inputs)
            return made, made[:1, -1] if self.keep else made[:, -1]

    core = Shrinking()
    bptt = TruncatedBPTT(core, "linear", 4)
    bptt.step(*data(steps=4))
    core.keep = True
    assert "the core's state is of 1 samples" in refused(lambda: bptt.step(*data(steps=4)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda made: (made, None), "the core Told returned (outputs, None) and no state"),
        (lambda made: (made, {}), "the core Told returned a state of dict, in which no tensor is to be seen"),
        (lambda made: (made, Hidden(made[:, -1])), "the core Told returned a state of Hidden, in which no tensor is"),
        (lambda made: made, "the core Told returned Tensor and no state"),
        (lambda made: [made, made[:, -1]], "the core Told returned list and no state"),
    ],
)
def test_a_core_returns_a_state_of_tensors(make: Callable[[Tensor], Any], said: str) -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(4, CLASSES).double()

        def forward(self, inputs: Tensor, state: Any) -> Any:
            return make(self.into(inputs))

    assert refused(lambda: TruncatedBPTT(Told(), "linear", 4).step(*data(steps=4))).startswith(said)


@dataclass
class Hidden:
    h: Tensor


@pytest.mark.parametrize("lengths", [[12, 8, 12], [4, 8, 12]])
def test_an_estimator_that_normalises_over_the_batch_is_not_fitted_to_one_sample(lengths: list[int]) -> None:
    bptt = trainer("mlp")
    assert bptt.run(*data(), lengths).isfinite()
    alone = refused(lambda: trainer("mlp").step(*data(n=1, steps=4)))
    assert "a batch of one cannot be batch-normalised: use drop_last=True, or batch_norm=False" in alone


def test_what_is_kept_of_a_stream_does_not_grow_without_end() -> None:
    bptt = trainer(quality_every=1)
    assert bptt.quality.most
    bptt.quality.most = 6
    for _ in range(40):
        bptt.step(*data(steps=4))
    assert len(bptt.quality.history) <= 6
