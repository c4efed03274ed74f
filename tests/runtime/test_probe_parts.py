"""Which samples a probe looks at and when, what it does where it cannot, and what it keeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.models import (
    CASES,
    IGNORED,
    assert_same,
    mlp,
    sentences,
    tensors_of,
    token_count,
    token_loss,
)
from tests._support.training import case_trainer, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.core.memory import SavedBytes
from syngrad.errors import TrainingWarning

CASE = CASES["mlp"]


# --- what is looked at


def sizes(model: nn.Module) -> list[int]:
    """Filled with the number of samples at every forward of the model's first module with parameters."""
    seen: list[int] = []
    next(iter(model.children())).register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def forwards(batch: Any, **options: Any) -> list[int]:
    """How many samples go forward in one probed step."""
    model = CASE.model()
    trainer = trainer_of(model, **{"estimator": "local(derivative=0)", "true_every": 1, **options})
    trainer.bind(batch)
    seen = sizes(model)
    trainer.step(batch)
    assert len(trainer.quality[0].true) == 1
    return seen


def test_the_first_nth_of_a_minibatch_or_two_at_least() -> None:
    x, y = CASE.batches(1, last=24)[0]
    assert forwards((x, y)) == [6, 24]
    assert forwards((x[:5], y[:5])) == [2, 5]
    assert forwards((x[:1], y[:1])) == [1, 1]
    named = {"input": x, "label": y}
    assert forwards(named) == [6, 24]


@pytest.mark.parametrize(
    "target",
    [
        lambda y: (y, torch.tensor(1.0)),
        lambda y: (y, torch.ones(3)),
        lambda y: y.tolist(),
        lambda y: [y, ["a"] * len(y)],
        lambda y: (y, object()),
    ],
    ids=["a scalar", "weights of classes", "a list of numbers", "names of samples", "an object"],
)
def test_a_minibatch_that_cannot_be_divided_is_looked_at_whole(target: Callable[[Tensor], Any]) -> None:
    x, y = CASE.batches(1, last=8)[0]

    def loss(output: Tensor, target: Any) -> Tensor:
        labels = target if not isinstance(target, list | tuple) or isinstance(target[0], int) else target[0]
        return F.cross_entropy(output, torch.as_tensor(labels))

    assert forwards((x, target(y)), loss=loss) == [8, 8]


def test_a_part_of_a_minibatch_that_is_all_padding_is_passed_over() -> None:
    case = CASES["gpt"]
    trainer = case_trainer(case, case.model(), true_every=1, estimator="linear")
    tokens, targets = sentences(8, torch.Generator().manual_seed(0))
    targets[:4] = IGNORED
    for _ in range(3):
        trainer.step((tokens, targets))
    assert all(q.true == [] for q in trainer.quality)
    trainer.step((tokens.flip(0), targets.flip(0)))
    assert all(len(q.true) == 1 for q in trainer.quality)
    assert (case.loss, case.count) == (token_loss, token_count)


def test_samples_are_so_many_minibatches_apart_and_the_first_comes_early() -> None:
    for every, expected in ((1, list(range(30))), (5, [4, 9, 14, 19, 24, 29]), (20, [8, 28]), (100, [8])):
        trainer = trainer_of(estimator="local", true_every=every)
        for batch in CASE.batches(30):
            trainer.step(batch)
        assert [[s.step for s in q.true] for q in trainer.quality] == [expected] * 3


@pytest.mark.parametrize("options", [{"method": "backprop"}, {"method": "delayed(1)"}, {"method": "zero"}])
def test_where_nothing_is_estimated_nothing_is_sampled(options: dict[str, Any]) -> None:
    trainer = trainer_of(true_every=1, **options)
    history = trainer.fit(CASE.batches(3))
    assert [row["true_history"] for row in history.interfaces] == [[]] * 3


def test_a_second_fit_tells_of_its_own_samples() -> None:
    trainer = trainer_of(estimator="linear", true_every=2, quality_every=3)
    first, second = (trainer.fit(CASE.batches(9)) for _ in range(2))
    for k, quality in enumerate(trainer.quality):
        for key, samples in (("history", quality.history), ("true_history", quality.true)):
            told = [[row[0] for row in history.interfaces[k][key]] for history in (first, second)]
            assert told == [[s.step for s in samples if s.step < 9], [s.step for s in samples if s.step >= 9]]
            assert all(told)


@pytest.mark.parametrize("estimator", ["zero", lambda: syngrad.estimators.Zero()])
def test_estimators_without_parameters(estimator: Any) -> None:
    trainer = trainer_of(estimator=estimator, true_every=1)
    history = trainer.fit(CASE.batches(3))
    assert [[s.norm_ratio for s in q.true] for q in trainer.quality] == [[0.0] * 3] * 3
    assert [row["true_cosine"] for row in history.interfaces] == [None] * 3
    assert trainer.guarded == {}


# --- faults


class Stubborn(nn.Module):
    """Takes minibatches of one size only, as a model with that size written into it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, 12)


def test_a_model_that_cannot_be_probed_is_said_once_and_trains_on() -> None:
    def run(every: int) -> dict[str, Tensor]:
        model = CASE.model()
        model[1] = nn.Sequential(nn.Tanh(), Stubborn())
        trainer = trainer_of(model, estimator="linear", true_every=every)
        for batch in CASE.batches(4, last=8):
            trainer.step(batch)
        assert [q.true for q in trainer.quality] == [[], [], []]
        return tensors_of(model)

    with pytest.warns(TrainingWarning, match=r"the true gradient cannot be sampled here \(.*'input' raised") as said:
        probed = run(1)
    assert len(said) == 1
    text = str(said[0].message)
    assert "\n" not in text
    assert text.endswith("training is not affected")
    assert said[0].filename == __file__, "a warning points at the line that called the trainer"
    assert_same(probed, run(0))


def test_a_minibatch_that_fails_leaves_no_sample() -> None:
    trainer = trainer_of(estimator="linear", true_every=1)
    x, y = CASE.batches(1, last=8)[0]
    trainer.step((x, y))
    wrong = x.clone()
    wrong[-1] = float("nan")
    with pytest.raises(syngrad.SyngradError, match="NaN"):
        trainer.step((wrong, y))
    assert [[s.step for s in q.true] for q in trainer.quality] == [[0]] * 3


def test_an_estimate_that_diverges_from_the_true_gradient_is_warned_of_at_the_users_line() -> None:
    class Against(syngrad.GradientEstimator):
        def forward(self, h: Tensor, context: Any = None) -> Tensor:
            return torch.full_like(h, 1e3)

    still = lambda params: torch.optim.SGD(params, 0.0)  # noqa: E731
    trainer = trainer_of(estimator=Against, true_every=50, quality_every=0, optimizer=still)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch in CASE.batches(170):
            trainer.step(batch)
    texts = [str(w.message) for w in said]
    assert len([t for t in texts if "times as long as the true gradient" in t]) == 3, "once an interface"
    assert all(w.filename == __file__ for w in said)
    trainer = trainer_of(estimator=Against, true_every=0, optimizer=still)
    with pytest.warns(TrainingWarning, match="times as long as what comes back") as fitted:
        trainer.fit(CASE.batches(170))
    assert all(w.filename == __file__ for w in fitted)


# --- memory


@pytest.mark.parametrize("stages", [2, 4])
def test_a_probe_keeps_less_than_back_propagation_would(stages: int) -> None:
    """It runs all layers, but only n/K samples of the minibatch, so it keeps 1/K of what a whole backward pass keeps:
    about as much as one stage does. All of that is gone before the step itself begins, so the peak does not add up.
    """
    depth = 17
    cuts = [str(2 * (16 // stages) * k) for k in range(1, stages)]
    batch = CASE.batches(1, last=64)[0]

    def peak(**options: Any) -> int:
        torch.manual_seed(0)
        model = mlp(48, depth)
        trainer = trainer_of(model, cuts, quality_every=0, **options)
        trainer.step(batch)
        with SavedBytes(model, trainer.net.estimators, but=list(batch)) as meter:
            trainer.step(batch)
        assert meter.live_bytes == 0
        return meter.peak_bytes

    whole = peak(method="backprop")
    probed = peak(estimator="local", true_every=1)
    assert 0 < probed < 1.35 * whole / stages < whole
