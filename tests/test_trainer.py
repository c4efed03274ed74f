"""The Trainer: batches of every form, optimisers, schedulers, evaluation, history, and what it leaves of the model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.models import (
    CASES,
    CLASSES,
    Chained,
    Encode,
    Middle,
    Read,
    TwoInputs,
    adam,
    assert_moved,
    assert_same,
    momentum,
    pairs,
    sgd,
    tensors_of,
    token_count,
    token_loss,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import syngrad
from syngrad.errors import ConfigError, SyngradError, TrainingError

CASE = CASES["mlp"]


def trainer_of(model: nn.Module | None = None, cuts: list[str] | None = None, **options: Any) -> syngrad.Trainer:
    model = CASE.model() if model is None else model
    options = {"loss": F.cross_entropy, "optimizer": adam, "progress": False, **options}
    return syngrad.Trainer(syngrad.decouple(model, cuts=cuts or CASE.cuts), **options)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


# --- batches


class Keyword(nn.Module):
    """Takes keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x if shift is None else x + shift))
        return self.second(h)


def test_the_usual_forms_of_a_batch_train_alike() -> None:
    def run(form: Any, **options: Any) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = Keyword().double()
        trainer = trainer_of(model, ["second"], estimator="linear", **options)
        for x, y in CASE.batches(6):
            trainer.step(form(x, y))
        return tensors_of(model)

    reference = run(lambda x, y: (x, y))
    assert_same(run(lambda x, y: [x, y]), reference)
    for key in ("y", "label", "labels", "target", "targets"):
        assert_same(run(lambda x, y, key=key: {"x": x, key: y}), reference)  # type: ignore[misc]
    assert_same(run(lambda x, y: (x, torch.zeros(1, dtype=x.dtype), y)), reference)
    assert_same(run(lambda x, y: {"x": x, "shift": x * 0, "y": y}), reference)
    custom = run(lambda x, y: {"a": x, "b": y, "id": "seven"}, unpack=lambda b: ((b["a"],), {}, b["b"]))
    assert_same(custom, reference)


@pytest.mark.parametrize("estimator", ["linear", "default", "local", "mlp"])
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "mixed(1)", "delayed(1)"])
def test_several_inputs_and_nested_messages(method: str, estimator: str) -> None:
    torch.manual_seed(1)
    model = Chained(Encode(), Middle(), Read()).double()
    torch.manual_seed(1)
    reference = Chained(Encode(), Middle(), Read()).double()
    start = tensors_of(model)
    trainer = trainer_of(model, ["1", "2"], method=method, estimator=estimator, optimizer=momentum)
    plain = syngrad.Trainer(reference, loss=F.cross_entropy, optimizer=momentum, method="backprop", progress=False)
    generator = torch.Generator().manual_seed(2)
    for _ in range(8):
        batch = pairs(8, generator)
        trainer.step(batch)
        plain.step(batch)
    assert_moved(tensors_of(model), start)
    assert [len(i.heads) for i in trainer.net.interfaces] == [2, 2]
    if method == "mixed(1)":
        assert_same(tensors_of(model), tensors_of(reference), rtol=1e-10)


def test_a_message_of_a_dictionary_through_a_forward_of_the_models_own() -> None:
    torch.manual_seed(1)
    model = TwoInputs().double()
    start = tensors_of(model)
    trainer = trainer_of(model, ["middle", "head"], estimator="linear")
    generator = torch.Generator().manual_seed(2)
    trainer.fit([pairs(8, generator) for _ in range(6)])
    assert_moved(tensors_of(model), start)


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(3), (torch.zeros(3, 6),), {"x": torch.zeros(3)}, {"y": 1, "label": 2}, 7, "text", None, ()],
    ids=["tensor", "single", "no target", "two targets", "number", "text", "none", "empty"],
)
def test_a_batch_of_no_known_form_is_refused(batch: Any) -> None:
    with pytest.raises(ConfigError, match="unpack=") as caught:
        trainer_of().step(batch)
    one_line(caught)


def test_an_unpack_that_fails_or_gives_the_wrong_thing_is_one_line() -> None:
    x, y = CASE.batches(1)[0]
    for broken in (lambda b: b["nothing"], lambda b: (x, y), lambda b: None):
        with pytest.raises(SyngradError) as caught:
            trainer_of(unpack=broken).step((x, y))
        assert "batch" in one_line(caught)


def test_a_batch_of_no_samples_is_refused() -> None:
    with pytest.raises(TrainingError, match="no samples"):
        trainer_of().step((torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.long)))


# --- scale


def test_tokens_that_do_not_count_are_left_out_of_the_scale() -> None:
    """One token-wise linear estimator, by hand: δ̂ speaks of the sum of token losses, whatever the padding."""
    case = CASES["gpt"]
    model = case.model()
    trainer = trainer_of(
        model, ["blocks.1"], loss=token_loss, loss_count=token_count, estimator="linear", optimizer=sgd
    )
    batches = case.batches(6)
    trainer.bind(batches[0])
    stages = trainer.net.segments
    model.eval()
    W, b = torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    C = torch.zeros(8, 8, dtype=torch.float64)
    for x, y in batches:
        n = float((y != -100).sum())
        h = stages[0](x).detach().requires_grad_()
        (g,) = torch.autograd.grad(token_loss(stages[1](h), y), h)
        rows, labels = h.detach().reshape(-1, 8), torch.where(y < 0, 7, y).reshape(-1)
        error = rows @ W.T + b + C[labels] - n * g.reshape(-1, 8)
        trainer.step((x, y))
        W -= 0.05 * 2 / n * error.T @ rows
        b -= 0.05 * 2 / n * error.sum(0)
        C.index_add_(0, labels, -0.05 * 2 / n * error)
        named = dict(trainer.net.interfaces[0].heads[0].named_parameters())
        torch.testing.assert_close(named["map.weight"].detach(), W, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(named["map.bias"].detach(), b, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(named["labels.weight"].detach(), C, rtol=1e-9, atol=1e-13)
    assert W.any()
    assert C.any()


@pytest.mark.parametrize("estimator", ["linear", "local", "sobolev", "mlp(batch_norm=False)"])
def test_an_estimate_does_not_move_with_the_batch_size(estimator: str) -> None:
    """A minibatch twice over has the same mean loss: everything learnt from it is the same."""

    def run(times: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = CASE.model()
        trainer = trainer_of(model, estimator=estimator, optimizer=momentum, feedback_every=1)
        for x, y in CASE.batches(8):
            trainer.step((x.repeat(times, 1), y.repeat(times)))
        return tensors_of(model), tensors_of(trainer.net.estimators)

    once, twice = run(1), run(2)
    assert_same(twice[0], once[0], rtol=1e-9)
    assert_same(twice[1], once[1], rtol=1e-9)


@pytest.mark.parametrize("count", [lambda y: 0, lambda y: -1.0, lambda y: float("nan")])
def test_a_count_that_is_no_positive_number_is_refused(count: Any) -> None:
    with pytest.raises(TrainingError, match="loss_count gave"):
        trainer_of(loss_count=count).step(CASE.batches(1)[0])


def test_regression() -> None:
    case = CASES["regression"]
    batch = case.batches(1, last=64)[0]
    for estimator in ("default", "linear", "local", "sobolev"):
        model = case.model()
        trainer = trainer_of(model, case.cuts, loss=F.mse_loss, metric="mse", estimator=estimator)
        before = trainer.evaluate([batch])
        history = trainer.fit([batch] * 60, validate=[batch])
        assert history.metric == "mse"
        assert history.value < 0.7 * before["mse"]
        assert history.epochs[0].metrics["loss"] == pytest.approx(history.value)


# --- optimisers and schedulers


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_any_torch_optimiser(kind: Any, scope: str) -> None:
    model, reference = CASE.model(), CASE.model()
    trainer = trainer_of(model, optimizer=lambda p: kind(p, 0.01), optimizer_scope=scope, method="mixed(1)")
    hand = kind(reference.parameters(), 0.01)
    for x, y in CASE.batches(6):
        trainer.step((x, y))
        hand.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        hand.step()
    assert_same(tensors_of(model), tensors_of(reference), rtol=1e-10)


@pytest.mark.parametrize("method", ["synthetic", "backprop", "zero", "delayed(1)"])
def test_an_optimiser_that_needs_a_closure_is_refused_in_one_line(method: str) -> None:
    trainer = trainer_of(optimizer=lambda p: torch.optim.LBFGS(p), method=method)
    with pytest.raises(SyngradError) as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


@pytest.mark.parametrize(
    "factory",
    [
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1),
        "adam",
        lambda params: None,
        lambda params: torch.optim.Adam(params, lr=-1),
        lambda params: torch.optim.Adam(params, no_such_option=1),
    ],
    ids=["optimizer", "name", "returns nothing", "negative rate", "unknown option"],
)
def test_an_optimiser_that_is_none_is_refused(factory: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_of(optimizer=factory).step(CASE.batches(1)[0])
    assert "optimizer" in one_line(caught)


def test_a_factory_that_leaves_out_the_estimators_is_refused() -> None:
    """Otherwise they never train, silently, and their gradients gather for ever."""
    model = CASE.model()
    trainer = trainer_of(model, optimizer=lambda params: torch.optim.Adam(model.parameters(), 1e-3))
    with pytest.raises(ConfigError, match=r"parameter|optimizer") as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


def rates(trainer: syngrad.Trainer) -> dict[str, float]:
    return {str(g["name"]): float(g["lr"]) for o in trainer.optimizers for g in o.param_groups}


SCHEDULERS: dict[str, tuple[Any, str]] = {
    "step": (lambda o: lr_scheduler.StepLR(o, 2, 0.1), "epoch"),
    "lambda": (lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)), "step"),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), "step"),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), "step"),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=40), "step"),
    "warm-up then cosine": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 50)], [4]
        ),
        "step",
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_do_what_they_do_in_a_loop_of_ones_own(name: str) -> None:
    make, every = SCHEDULERS[name]
    trainer = trainer_of(scheduler=make, scheduler_every=every, method="backprop", optimizer=sgd)
    hand = sgd(CASE.model().parameters())
    theirs = make(hand)
    seen: list[float] = []
    batches = CASE.batches(3)
    history = trainer.fit(batches, 3, on_epoch=lambda record: seen.append(rates(trainer)["weights"]))
    expected = []
    for _ in range(3):
        for _ in batches if every == "step" else [0]:
            hand.step()
            theirs.step()
        expected.append(hand.param_groups[0]["lr"])
    assert seen == pytest.approx(expected)
    assert [e.epoch for e in history.epochs] == [1, 2, 3]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_estimators_rate_stays_a_multiple_of_the_weights_under_a_scheduler(name: str) -> None:
    make, _ = SCHEDULERS[name]
    trainer = trainer_of(
        scheduler=make, scheduler_every="step", optimizer=sgd, estimator_lr=3.0, estimator="local(learning_rate=0.5)"
    )
    batches = CASE.batches(8)
    trainer.bind(batches[0])
    for batch in batches:
        by_name = rates(trainer)
        assert len(by_name) == 2
        weights = by_name.pop("weights")
        (estimators,) = by_name.values()
        assert estimators == pytest.approx(1.5 * weights, rel=1e-6)
        trainer.step(batch)


def test_every_estimator_has_the_rate_it_asks_for() -> None:
    kinds = {"2": "local(learning_rate=0.1)", "4": "local(learning_rate=2.0)", "6": "linear"}
    trainer = trainer_of(estimator=kinds, optimizer=sgd, estimator_lr=2.0)
    trainer.bind(CASE.batches(1)[0])
    assert sorted(rates(trainer).values()) == pytest.approx([0.05 * 0.2, 0.05, 0.05 * 2.0, 0.05 * 4.0])
    for value in (0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="estimator_lr"):
            trainer_of(estimator_lr=value)


def test_reduce_on_plateau_hears_of_the_validated_loss() -> None:
    case_batches = CASE.batches(2)
    frozen = lambda p: torch.optim.SGD(p, 1e-12)  # noqa: E731
    trainer = trainer_of(
        optimizer=frozen, scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, eps=0)
    )
    trainer.fit(case_batches, 4, validate=case_batches)
    assert rates(trainer)["weights"] == pytest.approx(1e-12 / 8)
    assert trainer.schedulers[0].best == pytest.approx(trainer.evaluate(case_batches)["loss"], rel=1e-6)


def test_one_scheduler_an_optimiser() -> None:
    trainer = trainer_of(optimizer_scope="stage", scheduler=lambda o: lr_scheduler.ExponentialLR(o, 0.5))
    trainer.fit(CASE.batches(2), 2)
    assert len(trainer.schedulers) == len(trainer.optimizers) == 4
    assert {round(g["lr"], 12) for o in trainer.optimizers for g in o.param_groups} == {round(3e-3 / 4, 12)}


def test_the_optimisers_are_there_once_a_batch_was_seen() -> None:
    trainer = trainer_of()
    with pytest.raises(ConfigError, match=r"trainer\.bind\(batch\)"):
        _ = trainer.optimizers
    before = tensors_of(trainer.model)
    trainer.bind(CASE.batches(1)[0])
    first = trainer.optimizers
    trainer.bind(CASE.batches(1)[0])
    assert trainer.optimizers is first
    assert_same(tensors_of(trainer.model), before)


@pytest.mark.parametrize("name", ["cnn", "gpt", "residual"])
def test_binding_changes_nothing_of_the_model(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, state = tensors_of(model), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    trainer_of(model, case.cuts, loss=case.loss, loss_count=case.count).bind(case.batches(1)[0])
    assert_same(tensors_of(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


# --- evaluation


def test_metrics_by_name_and_by_function() -> None:
    batches = CASE.batches(3, last=2)

    def share_of_zeros(output: Tensor, target: Tensor) -> float:
        return float((output.argmax(1) == 0).double().mean())

    model = CASE.model()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    named = trainer_of(model, metric="accuracy").evaluate(batches)
    assert named["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert named["loss"] == pytest.approx(F.cross_entropy(model(x), y).item())
    own = trainer_of(model, metric=share_of_zeros).evaluate(batches)
    assert own["share_of_zeros"] == pytest.approx(share_of_zeros(model(x), y))
    assert trainer_of(model).evaluate(batches).keys() == {"loss"}
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        trainer_of(metric="acuracy")


def test_the_evaluated_loss_of_tokens_is_their_mean_whatever_the_padding() -> None:
    case = CASES["gpt"]
    model = case.model().eval()
    batches = case.batches(4)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    trainer = trainer_of(model, ["blocks.1"], loss=token_loss, loss_count=token_count, metric="accuracy")
    found = trainer.evaluate(batches)
    assert found["loss"] == pytest.approx(token_loss(model(x), y).item(), rel=1e-9)


@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_evaluation_changes_nothing(name: str) -> None:
    case = CASES[name]
    model = case.model()
    trainer = trainer_of(model, case.cuts, loss=case.loss, loss_count=case.count)
    batches = case.batches(3)
    for batch in batches:
        trainer.step(batch)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)).eval()  # the user's own choice
    before, modes, state = tensors_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    count = trainer.execution.count
    first = trainer.evaluate(batches)
    assert trainer.evaluate(batches) == first
    assert_same(tensors_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert trainer.execution.count == count
    assert [m.training for m in model.modules()] == modes


def test_an_evaluation_that_fails_leaves_the_model_in_training_mode() -> None:
    trainer = trainer_of(metric=lambda output, target: 1 / 0)
    with pytest.raises(TrainingError, match="evaluation failed: ZeroDivisionError") as caught:
        trainer.evaluate(CASE.batches(1))
    one_line(caught)
    assert trainer.model.training
    with pytest.raises(TrainingError, match="no batch"):
        trainer.evaluate([])


@pytest.mark.parametrize("method", ["backprop", "synthetic"])
def test_validating_does_not_change_what_is_learnt(method: str) -> None:
    """A loader draws its seed from the global generator: were that seen, the next epoch's order would change."""
    x, y = CASE.batches(1, last=40)[0]
    data = TensorDataset(x, y)

    def run(validate: bool) -> dict[str, Tensor]:
        model = CASE.model()
        torch.manual_seed(11)
        trainer = trainer_of(model, method=method)
        trainer.fit(DataLoader(data, 8, shuffle=True), 3, validate=DataLoader(data, 8) if validate else None)
        return tensors_of(model)

    assert_same(run(True), run(False))


# --- fit


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_seconds_of_the_history_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("syngrad.trainer.time", clock)
    batches = CASE.batches(4, last=3)

    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __iter__(self) -> Iterator[Any]:
            for batch in batches:
                clock.now += self.seconds
                yield batch

    def after(record: Any) -> None:
        clock.now += 10_000.0

    trainer = trainer_of(metric="accuracy")
    history = trainer.fit(Slow(1.0), 3, validate=Slow(500.0), on_epoch=after)
    assert [e.train_s for e in history.epochs] == [4.0, 8.0, 12.0]
    assert history.train_s == 12.0
    assert history.samples_per_s == pytest.approx(3 * 27 / 12)
    more = trainer.fit(Slow(1.0), 2)
    assert [e.train_s for e in more.epochs] == [16.0, 20.0]
    assert [e.epoch for e in more.epochs] == [4, 5]


def test_the_rate_of_a_second_fit_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("syngrad.trainer.time", clock)

    class Slow:
        def __iter__(self) -> Iterator[Any]:
            for batch in CASE.batches(4, last=8):
                clock.now += 1.0
                yield batch

    trainer = trainer_of()
    first, second = trainer.fit(Slow(), 2), trainer.fit(Slow(), 2)
    assert first.samples_per_s == pytest.approx(8.0)
    assert second.samples_per_s == pytest.approx(8.0)


def test_the_history_says_what_happened() -> None:
    records: list[Any] = []
    batches = CASE.batches(4, last=3)
    model = CASE.model()
    trainer = trainer_of(model, metric="accuracy", estimator="linear", quality_every=1)
    history = trainer.fit(batches, 2, validate=batches, on_epoch=records.append)
    assert records == history.epochs
    assert [e.epoch for e in history.epochs] == [1, 2]
    assert [e.samples for e in history.epochs] == [27, 27]
    assert [e.learning_rate for e in history.epochs] == [3e-3, 3e-3]
    assert history.epochs[-1].metrics == trainer.evaluate(batches)
    assert history.value == history.epochs[-1].metrics["accuracy"]
    assert [row["cut"] for row in history.interfaces] == CASE.cuts
    assert all(
        row.keys() == {"cut", "cosine", "norm_ratio", "estimator_loss", "staleness"} for row in history.interfaces
    )
    assert all(-1 <= float(str(row["cosine"])) <= 1 for row in history.interfaces)
    assert json.loads(json.dumps(history.to_dict()))["epochs"][1]["samples"] == 27
    assert [round(v, 9) for _, _, v in history.values()] == [round(e.metrics["accuracy"], 9) for e in history.epochs]


def test_the_training_loss_is_the_mean_over_samples() -> None:
    batches = CASE.batches(4, last=3)
    model, reference = CASE.model(), CASE.model()
    history = trainer_of(model, optimizer=lambda p: torch.optim.SGD(p, 0.0), method="backprop").fit(batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert history.epochs[0].train_loss == pytest.approx(F.cross_entropy(reference(x), y).item())


@pytest.mark.parametrize("options", [{}, {"estimator": "linear", "feedback_delay": 2}, {"method": "mixed(0.5)"}])
def test_fitting_twice_goes_on(options: dict[str, Any]) -> None:
    batches = CASE.batches(5)
    once, twice = CASE.model(), CASE.model()
    trainer_of(once, **options).fit(batches, 3)
    trainer = trainer_of(twice, **options)
    trainer.fit(batches, 1)
    trainer.fit(batches, 2)
    assert_same(tensors_of(twice), tensors_of(once))


def test_no_epochs_train_nothing() -> None:
    model = CASE.model()
    before = tensors_of(model)
    history = trainer_of(model).fit(CASE.batches(2), 0)
    assert history.epochs == []
    assert history.value is None
    assert history.samples_per_s is None
    assert_same(tensors_of(model), before)


@pytest.mark.parametrize("epochs", [-1, 1.0, 2.5, True, "3", None])
def test_epochs_must_be_a_count(epochs: Any) -> None:
    with pytest.raises(ConfigError, match="epochs must be a whole number") as caught:
        trainer_of().fit(CASE.batches(1), epochs)
    one_line(caught)


def test_a_loader_that_can_be_used_once_only_says_so_in_its_second_epoch() -> None:
    trainer = trainer_of()
    with pytest.raises(TrainingError, match=r"no batch in epoch 2.*once only") as caught:
        trainer.fit(iter(CASE.batches(3)), 2)
    one_line(caught)
    assert trainer.fit(iter(CASE.batches(3)), 1).epochs[0].epoch == 2


def test_an_empty_loader_says_so() -> None:
    with pytest.raises(TrainingError, match="no batch in epoch 1"):
        trainer_of().fit([])


def test_a_step_before_fit_and_the_other_way_round() -> None:
    batches = CASE.batches(4)
    a, b = CASE.model(), CASE.model()
    first = trainer_of(a)
    loss = first.step(batches[0])
    assert loss.dim() == 0
    assert not loss.requires_grad
    first.fit(batches[1:])
    second = trainer_of(b)
    second.fit(batches[:3])
    second.step(batches[3])
    assert_same(tensors_of(b), tensors_of(a))


# --- seeds


@pytest.mark.parametrize("estimator", ["default", "mlp", "low_rank"])
@pytest.mark.parametrize("name", ["dropout", "gpt"])
def test_a_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(name: str, estimator: str) -> None:
    case = CASES[name]

    def run(seed: int, noise: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = case.model()
        torch.manual_seed(noise)
        trainer = trainer_of(
            model, case.cuts, loss=case.loss, loss_count=case.count, seed=seed, estimator=estimator, optimizer=momentum
        )
        trainer.fit(case.batches(5))
        return tensors_of(model), tensors_of(trainer.net.estimators)

    first, again, other = run(1, 1), run(1, 2), run(2, 1)
    assert_same(again[0], first[0])
    assert_same(again[1], first[1])
    assert any(not torch.equal(other[0][n], first[0][n]) for n in first[0])


# --- the model stays the user's own


@pytest.mark.parametrize("method", ["synthetic", "backprop", "delayed(1)"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "gpt"])
def test_the_model_stays_the_users_own_object(name: str, method: str, tmp_path: Any) -> None:
    case = CASES[name]
    model = case.model()
    keys, ids = list(model.state_dict()), [id(p) for p in model.parameters()]
    modules = [id(m) for m in model.modules()]
    estimator = "linear"
    trainer = trainer_of(
        model, case.cuts, loss=case.loss, loss_count=case.count, method=method, optimizer=adam, estimator=estimator
    )
    batches = case.batches(3)
    trainer.fit(batches)
    assert trainer.model is model
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == ids
    assert [id(m) for m in model.modules()] == modules
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = case.model(seed=99)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    x = batches[0][0]
    torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=0, atol=0)
    case.loss(model.train()(x), batches[0][-1]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_loaded_between_steps_are_the_ones_trained() -> None:
    trainer = trainer_of(optimizer=sgd, method="backprop")
    batches = CASE.batches(4)
    trainer.fit(batches)
    start = CASE.model(seed=7).state_dict()
    trainer.model.load_state_dict(start)
    reference = CASE.model(seed=7)
    trainer.fit(batches)
    trainer_of(reference, optimizer=sgd, method="backprop").fit(batches)
    assert_same(tensors_of(trainer.model), tensors_of(reference))


# --- what is refused, and the rest


@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "delayed(1)", "zero"])
def test_a_plain_module_only_does_backpropagation(method: str) -> None:
    with pytest.raises(ConfigError, match=r"syngrad\.decouple\(model, stages=2\)") as caught:
        syngrad.Trainer(CASE.model(), loss=F.cross_entropy, method=method)
    one_line(caught)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "cross_entropy"},
        {"method": "synthtic"},
        {"estimator": "linaer"},
        {"estimator": "mlp(hidden=9)"},
        {"scheduler_every": "batch"},
        {"optimizer_scope": "layer"},
        {"quality_every": -1},
        {"feedback": "late"},
        {"feedback_every": 0},
        {"feedback_delay": -1},
        {"update_probability": 0},
        {"warmup": -1},
        {"device": "gpu"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_what_cannot_be_used_is_refused_at_construction_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_of(**options)
    one_line(caught)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_number_of_stages_is_balanced(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, state = tensors_of(model), torch.get_rng_state()
    net = syngrad.decouple(model, stages=3)
    trainer = syngrad.Trainer(net, loss=case.loss, optimizer=adam, progress=False)
    batches = case.batches(4)
    trainer.bind(batches[0])
    assert len(trainer.stages) == 3
    assert len(net.cuts) == 2
    assert_same(tensors_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    trainer.fit(batches)
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_more_stages_than_there_is_room_for() -> None:
    trainer = syngrad.Trainer(syngrad.decouple(CASE.model(), stages=50), loss=F.cross_entropy, progress=False)
    with pytest.raises(SyngradError) as caught:
        trainer.bind(CASE.batches(1)[0])
    one_line(caught)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = CASE.model().requires_grad_(False)
    trainer = syngrad.Trainer(model, loss=F.cross_entropy, method="backprop", progress=False)
    with pytest.raises(SyngradError, match="train") as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


def test_one_network_may_be_trained_twice() -> None:
    net = syngrad.decouple(CASE.model(), cuts=CASE.cuts)
    batches = CASE.batches(3)
    for method in ("synthetic", "backprop", "synthetic"):
        before = tensors_of(net.model)
        syngrad.Trainer(net, loss=F.cross_entropy, method=method, optimizer=adam, progress=False).fit(batches)
        assert any(not torch.equal(before[n], v) for n, v in tensors_of(net.model).items())


def test_a_message_that_changes_shape_is_refused() -> None:
    model = nn.Sequential(
        nn.Conv1d(1, 2, 1), nn.Tanh(), nn.Conv1d(2, 2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    ).double()
    trainer = trainer_of(model, ["2"], estimator="mlp")
    y = torch.tensor([0, 1, 1])
    trainer.step((torch.randn(3, 1, 6, dtype=torch.float64), y))
    before = tensors_of(model)
    with pytest.raises(SyngradError) as caught:
        trainer.step((torch.randn(3, 1, 9, dtype=torch.float64), y))
    one_line(caught)
    assert_same(tensors_of(model), before)


def left_of(threads: set[threading.Thread]) -> list[threading.Thread]:
    """The threads that came since and do not end: rich tells its own to stop and does not wait for it."""
    for thread in set(threading.enumerate()) - threads:
        thread.join(3.0)
    return [thread for thread in threading.enumerate() if thread not in threads]


def test_a_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    threads = set(threading.enumerate())
    trainer = trainer_of(progress=True)
    assert len(trainer.fit(CASE.batches(3), 2).epochs) == 2
    assert len(trainer.fit(iter(CASE.batches(3))).epochs) == 1
    assert not left_of(threads)
    capsys.readouterr()
    trainer_of(progress=None).fit(CASE.batches(2))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_run_that_fails_under_a_bar_leaves_no_thread() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(TrainingError):
        trainer_of(progress=True).fit(iter(CASE.batches(2)), 2)
    assert not left_of(threads)


def test_float32_trains_with_the_default_optimiser() -> None:
    model = CASE.model().float()
    batches = [(x.float(), y) for x, y in CASE.batches(30, size=32, last=32)]
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=CASE.cuts), loss=F.cross_entropy, progress=False)
    before = trainer.evaluate(batches)["loss"]
    history = trainer.fit(batches, 4, validate=batches)
    assert history.value < before
    assert {p.dtype for p in trainer.net.estimators.parameters()} == {torch.float32}
