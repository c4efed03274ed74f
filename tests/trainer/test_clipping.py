"""Gradient clipping, against `torch.nn.utils.clip_grad_norm_` by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, CLASSES, adam, assert_same, momentum, tensors_of
from tests._support.training import momentum_trainer, one_line
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import syngrad
from syngrad.errors import ConfigError
from syngrad.optim.clipping import Clipping, clip, part_norms

CASE = CASES["mlp"]


def clipped_by_hand(
    trainer: syngrad.Trainer, norm: float | None, scope: str, batches: list[Any]
) -> list[list[float | None]]:
    """Trains; before each update the stages' gradients are shortened by torch's own function. Returns norms before."""
    trainer.bind(batches[0])
    assert trainer.runner is not None
    updates = trainer.runner.updates
    step_all = updates.step_all
    norms: list[list[float | None]] = []

    def doing() -> None:
        stages = [[p for p in stage.parameters if p.grad is not None] for stage in trainer.stages]
        norms.append([clip_grad_norm_(part, torch.inf).item() if part else None for part in stages])
        if norm is not None:
            for part in stages if scope == "stage" else [[p for each in stages for p in each]]:
                clip_grad_norm_(part, norm)
        step_all()

    updates.step_all = doing  # type: ignore[method-assign]
    for batch in batches:
        trainer.step(batch)
    return norms


RUNS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "linear": {"estimator": "linear"},
    "default": {"estimator": "default"},
    "mixed": {"estimator": "linear", "method": "mixed(0.5)"},
    "delayed": {"method": "delayed(1)"},
    "zero": {"method": "zero"},
    "sporadic": {"estimator": "linear", "update_probability": 0.5},
}


@pytest.mark.parametrize("guard", [100.0, None])
@pytest.mark.parametrize("optimizer_scope", ["model", "stage"])
@pytest.mark.parametrize("scope", ["stage", "model"])
@pytest.mark.parametrize("run", RUNS)
def test_it_is_what_torch_does(run: str, scope: str, optimizer_scope: str, guard: float | None) -> None:
    options = {**RUNS[run], "optimizer_scope": optimizer_scope, "guard": guard}
    batches = CASE.batches(20, last=3)
    trainer = momentum_trainer(clip_norm=0.15, clip_scope=scope, **options)
    hand = momentum_trainer(**options)
    norms = clipped_by_hand(hand, 0.15, scope, batches)
    for batch in batches:
        trainer.step(batch)
    assert_same(tensors_of(trainer.model), tensors_of(hand.model), rtol=1e-12)
    assert_same(tensors_of(trainer.net.estimators), tensors_of(hand.net.estimators), rtol=1e-12)
    found = [norm for row in norms for norm in row if norm is not None]
    assert min(found) < 0.15 < max(found), "some are shortened, some are not"


@pytest.mark.parametrize("scope", ["stage", "model"])
def test_what_is_short_enough_is_left_alone_bit_for_bit(scope: str) -> None:
    trainer, plain = momentum_trainer(clip_norm=1e6, clip_scope=scope), momentum_trainer()
    for batch in CASE.batches(8):
        trainer.step(batch)
        plain.step(batch)
    assert_same(tensors_of(trainer.model), tensors_of(plain.model))


@pytest.mark.parametrize("scope", ["stage", "model"])
def test_estimators_learn_as_if_nothing_was_clipped(scope: str) -> None:
    """With weights that stand still, that is visible alone: they are fitted to the same from the same."""

    def estimators(**options: Any) -> dict[str, Tensor]:
        still = lambda params: torch.optim.SGD(params, 1e-14)  # noqa: E731
        trainer = momentum_trainer(estimator="linear", estimator_lr=1e12, optimizer=still, **options)
        for batch in CASE.batches(6):
            trainer.step(batch)
        return tensors_of(trainer.net.estimators)

    plain = estimators()
    assert all(bool(t.any()) for n, t in plain.items() if n.endswith("bias"))
    assert_same(estimators(clip_norm=1e-3, clip_scope=scope), plain, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:an update of stage:syngrad.errors.TrainingWarning")
def test_a_stage_that_the_guard_has_skipped_does_not_count_in_the_whole_norm() -> None:
    trainer = momentum_trainer(method="backprop", clip_norm=0.1, clip_scope="model")
    batch = CASE.batches(1)[0]
    trainer.bind(batch)
    assert trainer.runner is not None
    model = trainer.model
    hook = model[0].weight.register_hook(lambda g: g * torch.nan)
    before = tensors_of(model)
    twin = CASE.model()
    F.cross_entropy(twin(batch[0]), batch[1]).backward()
    others = [p for n, p in twin.named_parameters() if not n.startswith("0.")]
    assert clip_grad_norm_(others, 0.1) > 0.1
    trainer.step(batch)
    hook.remove()
    after = tensors_of(model)
    assert {n for n in after if torch.equal(after[n], before[n])} == {"0.weight", "0.bias"}
    for name, p in twin.named_parameters():
        if not name.startswith("0."):
            torch.testing.assert_close(after[name], p.detach() - 0.02 * p.grad, rtol=1e-12, atol=1e-15)


class Words(nn.Module):
    """Embedded words, the mean of which is classified: a sparse gradient for the first stage."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8, sparse=sparse)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.words(words).mean(1)))))


def words(n: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randint(50, (8, 5), generator=g), torch.randint(CLASSES, (8,), generator=g)) for _ in range(n)]


@pytest.mark.parametrize("guard", [100.0, None])
@pytest.mark.parametrize("scope", ["stage", "model"])
@pytest.mark.parametrize("run", ["backprop", "linear", "mixed", "sporadic"])
def test_sparse_gradients_are_guarded_and_clipped_as_dense_ones(run: str, scope: str, guard: float | None) -> None:
    ends = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = Words(sparse).double()
        sgd = lambda params: torch.optim.SGD(params, 0.1)  # noqa: E731
        options = {"optimizer": sgd, "clip_norm": 0.05, "clip_scope": scope, "guard": guard, **RUNS[run]}
        trainer = momentum_trainer(model, ["inner", "head"], **options)
        start = tensors_of(model)
        for batch in words(12):
            trainer.step(batch)
        ends.append(tensors_of(model))
        assert not torch.equal(ends[-1]["words.weight"], start["words.weight"])
    assert_same(*ends, rtol=1e-10)


def test_sparse_gradients_under_float16() -> None:
    torch.manual_seed(0)
    model = Words(sparse=True)
    sgd = lambda params: torch.optim.SGD(params, 0.1)  # noqa: E731
    trainer = momentum_trainer(model, ["inner", "head"], optimizer=sgd, autocast="float16", clip_norm=0.05)
    for batch in words(6):
        assert trainer.step(batch).isfinite()
    assert trainer.guarded == {}


@pytest.mark.parametrize("scope", ["stage", "model"])
def test_parameters_of_several_dtypes(scope: str) -> None:
    class Cast(nn.Module):
        def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
            super().__init__()
            self.inner, self.dtype = inner.to(dtype), dtype

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(self.dtype))

    kinds = [torch.float64, torch.bfloat16, torch.float32]
    torch.manual_seed(0)
    model = nn.Sequential(*(Cast(nn.Linear(6, 6), kind) for kind in kinds))
    reference = nn.Sequential(*(Cast(nn.Linear(6, 6), kind) for kind in kinds))
    reference.load_state_dict(model.state_dict())
    trainer = momentum_trainer(model, ["1"], method="backprop", clip_norm=0.1, clip_scope=scope)
    for x, y in CASE.batches(5):
        trainer.step((x, y))
    hand = momentum_trainer(reference, ["1"], method="backprop")
    norms = clipped_by_hand(hand, 0.1, scope, CASE.batches(5))
    assert max(n for row in norms for n in row if n is not None) > 0.1
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.02)


def test_norms_of_parts() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(n, generator=g, dtype=torch.float64) for n in (3, 4, 5))
    assert part_norms([]) == []
    assert part_norms([[], [a], [b, c]]) == pytest.approx([0.0, a.norm().item(), torch.cat([b, c]).norm().item()])
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 1, 3]]), torch.tensor([3.0, 1.0, 3.0]), (5,), check_invariants=True
    )
    assert part_norms([[sparse], [torch.ones(0)], [a.float()]]) == pytest.approx([5.0, 0.0, a.norm().item()])
    parts = [([a.clone()], 1e9), ([b], b.norm().item()), ([], 0.0)]
    clip(parts, Clipping(1e3))
    assert parts[1][0][0] is b
    torch.testing.assert_close(parts[0][0][0], a * 1e-6)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_norm_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="clip_norm must be above 0") as caught:
        momentum_trainer(clip_norm=value)
    assert repr(value) in one_line(caught)
    with pytest.raises(ConfigError, match="clip_scope must be one of 'model', 'stage', got 'all'") as caught:
        momentum_trainer(clip_norm=1.0, clip_scope="all")
    one_line(caught)


@pytest.mark.parametrize("optimizer", [adam, momentum], ids=["adam", "momentum"])
def test_clipping_and_late_feedback_go_together(optimizer: Any) -> None:
    trainer = momentum_trainer(optimizer=optimizer, estimator="sobolev", feedback_delay=2, clip_norm=0.05)
    losses = [trainer.step(batch).item() for batch in CASE.batches(1, last=64) * 40]
    assert losses[-1] < losses[0]
    assert trainer.guarded == {}
