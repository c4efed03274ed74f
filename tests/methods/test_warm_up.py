"""The warm-up: minibatches of back-propagation in which the estimators are fitted but not applied."""

from __future__ import annotations

import pytest
import torch
from tests._support.models import CASES, assert_same, momentum, sgd, tensors_of
from tests._support.training import case_trainer


@pytest.mark.parametrize("feedback", ["bootstrapped", "true"])
@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, estimator) for name in ("mlp", "residual") for estimator in ("default", "linear", "local", "mlp")]
    + [("gpt", "default"), ("gpt", "linear")],  # it is slow
)
def test_the_warm_up_is_backpropagation_and_fits_the_estimators(name: str, feedback: str, estimator: str) -> None:
    case = CASES[name]
    model, reference = case.model(), case.model()
    options = {"optimizer": momentum, "feedback": feedback, "feedback_every": 1, "quality_every": 1}
    trainer = case_trainer(case, model, method="synthetic", estimator=estimator, warmup=10, **options)
    plain = case_trainer(case, reference, method="backprop", optimizer=momentum)
    batches = case.batches()
    trainer.bind(batches[0])
    started = tensors_of(trainer.net.estimators)
    for batch in batches[:10]:
        trainer.step(batch)
        plain.step(batch)
        # a leaf that several modules read (a skip) may gather its parts in another order
        assert_same(tensors_of(model), tensors_of(reference), rtol=0.0 if name != "residual" else 1e-12)
    fitted = tensors_of(trainer.net.estimators)
    moved = [n for n in started if not torch.equal(started[n], fitted[n])]
    assert any(n.endswith("bias") for n in moved)
    assert all(any(n.startswith(f"{cut.replace('.', '/')}.") for n in moved) for cut in case.cuts), moved
    for batch in batches[10:]:
        trainer.step(batch)
        plain.step(batch)
    below = trainer.net.segments[0].parameter_names
    mine, theirs = tensors_of(model), tensors_of(reference)
    assert below
    assert all(not torch.equal(mine[n], theirs[n]) for n in below), "synthetic gradients have not taken over"


def test_the_cosine_rises_during_the_warm_up() -> None:
    case = CASES["mlp"]
    batch = case.batches(1, last=64)[0]
    trainer = case_trainer(case, case.model(), method="synthetic", estimator="linear", warmup=300, quality_every=1)
    for _ in range(60):
        trainer.step(batch)
    for quality in trainer.quality:
        assert quality.history[0].cosine == 0.0  # it starts at zero
        assert quality.history[-1].cosine > 0.5
        assert [sample.step for sample in quality.history] == list(range(60))


def test_after_the_warm_up_it_is_synthetic_from_there_on() -> None:
    """With estimators of zero nothing moves below the last stage once the warm-up is over."""
    case = CASES["mlp"]
    model = case.model()
    trainer = case_trainer(case, model, method="synthetic", estimator="zero", warmup=4, optimizer=sgd)
    batches = case.batches(8)
    for batch in batches[:4]:
        trainer.step(batch)
    at_the_end = tensors_of(model)
    for batch in batches[4:]:
        trainer.step(batch)
    now = tensors_of(model)
    assert_same({n: now[n] for n in now if not n.startswith("6")}, {n: v for n, v in at_the_end.items() if n[0] != "6"})
    assert not torch.equal(now["6.weight"], at_the_end["6.weight"])
