"""`corrected` against whole copies of the model, and against the methods that it reduces to."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, tensors_of
from tests._support.resuming import taken_over
from tests._support.training import case_trainer, momentum_trainer, one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.core.interface import Interface
from syngrad.errors import ConfigError
from syngrad.methods import late
from syngrad.methods.registry import parse, split_row

CASE = CASES["mlp"]


class Fixed(nn.Module):
    """δ̂ = h·A, which nothing moves."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.register_buffer("map", 0.1 * torch.randn(width, width, generator=generator).double())

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.map


class Copies:
    """`corrected(d, every=n, weight=w)` with a whole copy of the model kept for every minibatch under way.

    The sum of all that joins a step goes to one optimiser, which takes one step.
    """

    def __init__(self, model: nn.Sequential, starts: list[int], delay: int, every: int, weight: float) -> None:
        bounds = [0, *starts, len(model)]
        self.model, self.spans = model, list(itertools.pairwise(bounds))
        self.delay, self.every, self.weight = delay, every, weight
        self.kept: dict[int, Any] = {}
        self.optimizer = adam(model.parameters())
        self.estimate = Fixed()
        self.t = 0

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.kept[self.t] = (copy.deepcopy(self.model), *batch)
        last = len(self.spans) - 1
        for k, (a, b) in enumerate(self.spans):
            parameters = list(self.model[a:b].parameters())
            if k == last:
                gradients = torch.autograd.grad(F.cross_entropy(self.model(batch[0]), batch[1]), parameters)
            else:
                gradients = self._estimated(self.model, batch[0], a, b)
                then = self.t - self.delay * (last - k)
                if then >= 0 and then % self.every == 0:
                    old, x, y = self.kept[then]
                    true = torch.autograd.grad(F.cross_entropy(old(x), y), list(old[a:b].parameters()))
                    guessed = self._estimated(old, x, a, b)
                    gradients = [
                        now + self.weight * (g - e) for now, g, e in zip(gradients, true, guessed, strict=True)
                    ]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        self.optimizer.step()
        self.t += 1

    def _estimated(self, model: nn.Sequential, x: Tensor, a: int, b: int) -> list[Tensor]:
        with torch.no_grad():
            m = model[:a](x)
        h = model[a:b](m)
        return list(torch.autograd.grad(h, list(model[a:b].parameters()), self.estimate(h.detach()) / len(x)))


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(("delay", "every", "weight"), [(1, 1, 1.0), (1, 4, 1.0), (2, 3, 2.0), (3, 1, 0.5)])
def test_it_is_what_whole_copies_of_the_model_give(delay: int, every: int, weight: float, scope: str) -> None:
    """Under Adam: what is added late and what is there join in one step."""
    model, twin = CASE.model(), CASE.model()
    naive = Copies(twin, [2, 4, 6], delay, every, weight)
    method = f"corrected({delay}, every={every}, weight={weight})"
    options = {"optimizer": adam, "estimator": Fixed(), "feedback_every": every, "optimizer_scope": scope}
    trainer = momentum_trainer(model, ["2", "4", "6"], method=method, **options)
    for batch in CASE.batches(20, last=3):
        trainer.step(batch)
        naive.step(batch)
        assert_same(tensors_of(model), tensors_of(twin), rtol=1e-9)


def test_estimators_learn_as_often_as_they_want_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default wants every fourth gradient: a truth for every minibatch does not have it fitted more often."""
    fits, fit = [], Interface.fit
    monkeypatch.setattr(Interface, "fit", lambda self, *given: fits.append(self.name) or fit(self, *given))
    trainer = case_trainer(CASE, CASE.model(), method="corrected(1, every=1)")
    for batch in CASE.batches(12):
        trainer.step(batch)
    assert [fits.count(name) for name in trainer.net.cuts] == [3] * len(trainer.net.cuts)


@pytest.mark.parametrize("estimator", ["default", "linear", "local"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "dropout"])
def test_without_delay_it_is_back_propagation_to_the_last_bit(name: str, estimator: str) -> None:
    case = CASES[name]
    model, reference = case.model(), case.model()
    trainer = case_trainer(case, model, method="corrected(0, every=1)", estimator=estimator, optimizer=adam)
    plain = case_trainer(case, reference, method="backprop", optimizer=adam)
    for batch in case.batches(6):
        trainer.step(batch)
        plain.step(batch)
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.0)


@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "dropout"])
def test_with_estimates_of_zero_it_is_delayed(name: str, delay: int) -> None:
    case = CASES[name]
    model, reference = case.model(), case.model()
    options = {"optimizer": adam, "update_probability": 0.8}
    corrected = case_trainer(case, model, method=f"corrected({delay}, every=1)", estimator="zero", **options)
    delayed = case_trainer(case, reference, method=f"delayed({delay})", **options)
    batches = case.batches(8)
    for trainer in (corrected, delayed):
        trainer.fit(batches)
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.0)


@pytest.mark.parametrize("estimator", ["default", "linear", "local"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "dropout"])
def test_with_no_weight_it_is_synthetic(name: str, estimator: str) -> None:
    case = CASES[name]
    model, reference = case.model(), case.model()
    options = {"optimizer": adam, "estimator": estimator}
    corrected = case_trainer(case, model, method="corrected(2, weight=0)", **options)
    synthetic = case_trainer(case, reference, method="synthetic", **options)
    for batch in case.batches(8):
        corrected.step(batch)
        synthetic.step(batch)
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.0)
    assert_same(tensors_of(corrected.net.estimators), tensors_of(synthetic.net.estimators), rtol=0.0)


def test_estimators_are_fitted_to_the_true_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every third minibatch, that of the weights as they were then, in its turn."""
    model = CASE.model()
    fitted: list[tuple[str, list[Tensor]]] = []
    fit = Interface.fit

    def note(self: Interface, leaves: Any, context: Any, received: list[Tensor], *rest: Any) -> None:
        fitted.append((self.name, received))
        fit(self, leaves, context, received, *rest)

    monkeypatch.setattr(Interface, "fit", note)
    trainer = momentum_trainer(model, ["2", "4", "6"], method="corrected(1, every=3)", feedback_every=3)
    expected: list[tuple[int, str, Tensor]] = []
    for t, (x, y) in enumerate(CASE.batches(9)):
        if t % 3 == 0:
            hs, h = [], x
            for layer in model:
                h = layer(h)
                hs.append(h)
            gradients = torch.autograd.grad(F.cross_entropy(h, y), [hs[1], hs[3], hs[5]])
            expected += [(t + 3 - k, cut, g) for k, (cut, g) in enumerate(zip("246", gradients, strict=True))]
        trainer.step((x, y))
    trainer.flush()
    expected.sort(key=lambda each: each[0])  # at the last interface first
    assert [name for name, _ in fitted] == [cut for _, cut, _ in expected]
    for (_, (received,)), (_, _, gradient) in zip(fitted, expected, strict=True):
        torch.testing.assert_close(received, gradient, rtol=1e-10, atol=1e-14)


def test_what_is_in_flight_is_bounded_and_late_as_asked() -> None:
    trainer = trainer_of(method="corrected(2, every=4)", feedback_every=4)
    most = [0, 0, 0]
    for batch in CASE.batches(24):
        trainer.step(batch)
        most = [max(a, len(actor.flights)) for a, actor in zip(most, trainer.runner.actors, strict=False)]
    assert most == [2, 1, 1]  # 6, 4 and 2 minibatches late, every fourth: of the first stage two at a time
    assert [each.most for each in trainer.runner.staleness] == [6, 4, 2]
    trainer.flush()
    assert trainer.runner.in_flight == 0


def test_the_quality_is_measured_against_the_truth() -> None:
    """One sample of all minibatches that have a truth and, once the warm-up is over, of no other."""
    options = {"method": "corrected(1, every=4)", "estimator": "local", "quality_every": 1}
    for warmup, expected in ((0, [0, 4, 8, 12]), (6, [0, 1, 2, 3, 4, 5, 8, 12])):
        trainer = trainer_of(warmup=warmup, **options)
        for batch in CASE.batches(13):
            trainer.step(batch)
        trainer.flush()
        for quality in trainer.quality:
            assert [sample.step for sample in quality.history] == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("corrected", "corrected(every=4)"),
        ("corrected(1)", "corrected(1, every=4)"),
        ("corrected(2)", "corrected(2, every=4)"),
        ("corrected(2, every=8)", "corrected(2, every=8)"),
        ("corrected(every=2,weight=0.1234567)", "corrected(every=2, weight=0.1234567)"),
    ],
)
def test_it_is_read_as_it_is_written(text: str, written: str) -> None:
    method = parse(text)
    assert str(method) == written
    assert parse(written) == method
    assert parse(written).exact == method.exact == ("(1" in text or "(2" in text)
    assert split_row(f"{text}:local") == (method, "local")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corrected(2, every=0)", "every must be a whole number of 1 or more, got '0'"),
        ("corrected(2, every=1.5)", "every must be a whole number of 1 or more, got '1.5'"),
        ("corrected(2, weight=-1)", "weight must be a number of 0 or more, got '-1'"),
        ("corrected(2, weight=nan)", "weight must be a number of 0 or more, got 'nan'"),
        ("corrected(2, often=2)", "'often' that it does not take; its options: every, weight"),
        ("corrected(2, 4)", "'4' stands twice, or needs its name before it"),
        ("corrected(2, every=4, every=5)", "'every=5' stands twice"),
        ("corrected(0, weight=2)", "without a delay the truth itself is used"),
        ("corrected(-1)", "the delay is a number of minibatches"),
        ("delayed(2, every=4)", "'every' that it does not take; its options: none"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert said in one_line(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feedback": "true"}, "has true gradients come late, and feedback='true' waits for them"),
        ({"inputs": "linear"}, "inputs= does not go with method='corrected(every=4)'"),
        ({"autocast": "float16"}, "autocast='float16' does not go with late gradients"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(method="corrected", **options)
    assert said in one_line(error)


def test_estimates_that_were_used_are_not_used_again_by_other_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minibatch in flight goes back by what was missed, also where the truth now comes within each minibatch."""
    other = taken_over(CASE.batches(4), tmp_path, method="corrected(every=1)", estimator="local")
    other.runner.training.free = other.runner.training.ends_here = True
    back, gone = late.back, []

    def note(actor: Any, flight: Any, gradients: list[Tensor], again: bool = False) -> None:
        expected = [g - e for g, e in zip(flight.received, flight.estimates, strict=True)]
        gone.append(all(torch.equal(one, two) for one, two in zip(gradients, expected, strict=True)))
        back(actor, flight, gradients, again)

    monkeypatch.setattr(late, "back", note)
    other.flush()
    assert gone
    assert all(gone)


@pytest.mark.parametrize("method", ["delayed(2)", "corrected(2, every=1):local"])
def test_a_run_in_bfloat16_goes_on_with_minibatches_in_flight(method: str, tmp_path: Path) -> None:
    name, _, estimator = method.partition(":")
    options = {"method": name, "estimator": estimator or "default", "autocast": "bfloat16"}
    whole = trainer_of(CASE.model().float(), **options)
    batches = [(x.float(), y) for x, y in CASE.batches(8)]
    for batch in batches:
        whole.step(batch)
    second = taken_over(batches[:4], tmp_path, lambda: CASE.model().float(), **options)
    for batch in batches[4:]:
        second.step(batch)
    assert_same(tensors_of(whole.model), tensors_of(second.model), rtol=0.0)
