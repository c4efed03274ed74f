"""Stages that are stretches of the user's own forward: exact where they ought to be, and Python's truth is kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.any_models import FAMILIES, Dropped, Family, LanguageModel, by_token, features, ids, labels
from torch import nn

import syngrad
from syngrad.core.message import Record
from syngrad.errors import SyngradError, TrainingError

STEPS = 3


def trained_plainly(model: nn.Module, batches: list[Any], family: Family) -> None:
    """As anybody would by hand, with dropout drawn from the generator that stands where the stages' do."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for *inputs, target in batches:
        optimizer.zero_grad()
        family.loss(model(*inputs), target).backward()
        optimizer.step()


def trainer_of(model: nn.Module, family: Family, **options: Any) -> syngrad.Trainer:
    """With plain SGD and no guard."""
    given = {
        "optimizer": lambda p: torch.optim.SGD(p, 0.1),
        "guard": None,
        "progress": False,
        **family.options,
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", syngrad.errors.TrainingWarning)
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=family.cuts), loss=family.loss, **given)
    return trainer


def made(family: Family, count: int = STEPS) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    model = family.model().double()
    return model, [family.batch() for _ in range(count)]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("dropout", "autoencoder")])
@pytest.mark.parametrize("method", ["mixed(1.0)", "delayed(0)", "corrected(0, every=1)", "backprop"])
def test_exact_methods_are_back_propagation(name: str, method: str) -> None:
    family = FAMILIES[name]
    model, batches = made(family)
    twin = copy.deepcopy(model)
    trainer = trainer_of(model, family, method=method, estimator="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in batches:
            trainer.step(batch)
    trained_plainly(twin, batches, family)
    for (path, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12), path


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "delayed(2)", "corrected(2, every=2)", "zero"])
def test_every_family_trains_with_the_default_estimator(name: str, method: str) -> None:
    family = FAMILIES[name]
    model, batches = made(family, 4)
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    trainer = trainer_of(model, family, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [float(trainer.step(batch)) for batch in batches]
        trainer.flush()
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    still = [path for path, p in model.named_parameters() if torch.equal(p, before[path])]
    assert method == "zero" or all("dead" in path or "bias.weight" in path for path in still), still


def test_what_is_dead_gets_no_estimator_and_no_gradient() -> None:
    family = FAMILIES["beside"]
    model, batches = made(family)
    trainer = trainer_of(model, family)
    for batch in batches:
        trainer.step(batch)
    assert [len(each.heads) for each in trainer.net.interfaces] == [1]
    assert model.dead.weight.grad is None


def test_only_what_the_loss_reads_is_predicted_in_its_own_structure() -> None:
    model, batches = made(FAMILIES["two_heads"])
    trainer = trainer_of(model, FAMILIES["two_heads"], estimator="local")
    trainer.step(batches[0])
    (interface,) = trainer.net.interfaces
    (head,) = interface.heads
    assert head.binding is not None
    assert head.binding.outputs == ((3,), (1,))


def test_a_layer_that_is_dropped_by_chance_starts_a_stage() -> None:
    torch.manual_seed(0)
    family = Family(Dropped, lambda: (features(), labels()), torch.nn.functional.cross_entropy, ["layers.1"])
    model, batches = made(family, 20)
    trainer = trainer_of(model, family)
    for batch in batches:
        trainer.step(batch)
    assert trainer.minibatches == 20


def test_a_forward_that_no_longer_reaches_a_later_cut_is_named() -> None:
    family = Family(
        Dropped, lambda: (features(), labels()), torch.nn.functional.cross_entropy, ["layers.0", "layers.2"]
    )
    model, batches = made(family, 40)
    trainer = trainer_of(model, family)
    with pytest.raises(TrainingError, match=r"ended without calling 'layers\.2'.*dropped by chance"):
        trainer.fit(batches)


def test_modes_and_rates_that_change_later_hold() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.d, self.b = (
                nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32)),
                nn.Dropout(0.5),
                nn.Linear(32, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 5:
                x = x * 1
            return self.b(self.d(self.a(x)))  # type: ignore[no-any-return]

    family = Family(Normed, lambda: (features(), labels()), torch.nn.functional.cross_entropy, ["b"])
    model, batches = made(family)
    trainer = trainer_of(model, family, method="backprop")
    trainer.step(batches[0])
    model.a[1].eval()
    model.d.p = 0.0
    mean = model.a[1].running_mean.clone()
    trainer.step(batches[1])
    first = trainer.net.segments[0]
    assert torch.equal(mean, model.a[1].running_mean)
    assert torch.equal(first(batches[2][0]), first(batches[2][0]))


def test_nothing_stays_on_the_model() -> None:
    model, batches = made(FAMILIES["language_model"])
    trainer = trainer_of(model, FAMILIES["language_model"])
    trainer.step(batches[0])
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
    evaluated = trainer.evaluate([batches[1]])
    model.eval()
    assert evaluated["loss"] == pytest.approx(by_token(model(batches[1][0]), batches[1][1]).item())


def test_a_minibatch_that_fails_in_the_middle_leaves_a_forward_that_begins_anew() -> None:
    family = FAMILIES["language_model"]
    model, batches = made(family)
    calls = []

    def sometimes(output: Any, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 20:
            raise ValueError("the loss broke")
        return by_token(output, target)

    trainer = trainer_of(model, Family(family.model, family.batch, sometimes, family.cuts), method="zero")
    with pytest.raises(SyngradError, match="the loss broke"):
        trainer.fit([batches[0]] * 30)
    trainer.step(batches[1])


def test_a_tied_weight_is_updated_once() -> None:
    model, batches = made(FAMILIES["language_model"])
    trainer = trainer_of(model, FAMILIES["language_model"])
    trainer.step(batches[0])
    held = [id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]]
    assert held.count(id(model.embed.weight)) == 1
    assert model.head.weight is model.embed.weight


def test_saved_and_resumed_as_if_undisturbed(tmp_path: Any) -> None:
    family = FAMILIES["dropout"]
    whole, batches = made(family, 6)
    trainer_of(whole, family).fit(batches, epochs=2)
    parted, _ = made(family, 6)
    trainer_of(parted, family).fit(batches, epochs=1, save=tmp_path)
    trainer_of(parted, family).fit(batches, epochs=2, save=tmp_path, resume=True)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_stages_are_found_inside_wrappers() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = LanguageModel(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.m(x).logits  # type: ignore[no-any-return]

    torch.manual_seed(0)
    trainer = syngrad.Trainer(syngrad.decouple(Wrapped(), stages=2), loss=by_token, progress=False)
    trainer.step((ids(), ids()))
    assert trainer.net.cuts[0].startswith("m.")


class Labelled(nn.Module):
    """A model that makes its own loss where it is given the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LanguageModel()

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        scores = self.inner(ids).logits
        return {"logits": scores} | ({} if labels is None else {"loss": by_token(scores, labels)})


def own_loss(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    return output["loss"]


def test_a_loss_that_the_model_makes_of_its_labels() -> None:
    torch.manual_seed(0)
    model = Labelled()
    batch = {"ids": ids(), "labels": ids()}
    net = syngrad.decouple(model, cuts=["inner.blocks.1"])
    trainer = syngrad.Trainer(net, loss=own_loss, estimator="linear", progress=False)
    with pytest.warns(UserWarning, match="could not be matched"):
        first = trainer.step(batch)
    last = [trainer.step(batch) for _ in range(20)][-1]
    assert last < first


def test_a_head_cannot_predict_such_a_loss_and_says_so() -> None:
    torch.manual_seed(0)
    trainer = syngrad.Trainer(syngrad.decouple(Labelled(), cuts=["inner.blocks.1"]), loss=own_loss, progress=False)
    with pytest.raises(
        syngrad.SyngradError, match=r"reads a scalar that the model itself has made.*estimator='linear'"
    ):
        trainer.step({"ids": ids(), "labels": ids()})


def test_a_list_of_modules_is_a_list_of_stages() -> None:
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, 3)
    trainer = syngrad.Trainer(syngrad.decouple([first, second]), loss=nn.functional.cross_entropy, progress=False)
    before = first[0].weight.detach().clone()
    for _ in range(4):
        trainer.step((features().float(), labels()))
    assert trainer.net.cuts == ["1"]
    assert not torch.equal(before, first[0].weight)


def test_untied_parameters_begin_alike_and_go_their_own_ways() -> None:
    model, batches = made(FAMILIES["language_model"])
    net = syngrad.decouple(model, cuts=["blocks.1"], untie=True)
    assert model.head.weight is not model.embed.weight
    assert torch.equal(model.head.weight, model.embed.weight)
    trainer = syngrad.Trainer(net, loss=by_token, progress=False)
    trainer.step(batches[0])
    assert not torch.equal(model.head.weight, model.embed.weight)


def test_what_the_model_hides_from_the_cut_is_named() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.aux = nn.Linear(16, 16), torch.zeros(())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.f(x)
            self.aux = h.square().mean()
            return h  # type: ignore[no-any-return]

    model = nn.Sequential(Keeps(), nn.Linear(16, 3))
    loss = lambda out, y: nn.functional.cross_entropy(out, y) + model[0].aux  # noqa: E731
    batch = (features().float(), labels())
    syngrad.Trainer(syngrad.decouple(model, cuts=["1"]), loss=loss, method="backprop", progress=False).step(batch)
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=["1"]), loss=loss, progress=False)
    with pytest.raises(syngrad.SyngradError, match=r"cannot cut at '1': '0\.aux', a tensor that a module keeps"):
        trainer.step(batch)


def test_late_gradients_end_before_a_checkpoint_is_written(tmp_path: Any) -> None:
    family = FAMILIES["language_model"]
    whole, batches = made(family, 6)
    trainer_of(whole, family, method="delayed(2)").fit(batches, epochs=2, save=tmp_path / "whole", save_every=4)
    parted, _ = made(family, 6)
    trainer_of(parted, family, method="delayed(2)").fit(batches, epochs=1, save=tmp_path / "a", save_every=4)
    trainer = trainer_of(parted, family, method="delayed(2)")
    trainer.fit(batches, epochs=2, save=tmp_path / "a", save_every=4, resume=True)
    assert trainer.minibatches == 12
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_network_that_is_cut_is_bound_again_by_another_trainer() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.other, self.head = nn.Linear(16, 8), nn.Linear(16, 8), Last()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 0:
                x = x * 1.0
            return self.head(self.into(x), self.other(x))  # type: ignore[no-any-return]

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 3)

        def forward(self, h: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
            return self.f(h)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = syngrad.decouple(Passes(), cuts=["head"])
    for _ in range(2):
        trainer = syngrad.Trainer(net, loss=nn.functional.cross_entropy, progress=False)
        trainer.step((features().float(), labels()))
        assert [len(each.heads) for each in net.interfaces] == [1]


@pytest.mark.parametrize(("name", "writes"), [("packed", False), ("around", False), ("writes", True)])
def test_only_a_stage_that_writes_into_its_message_goes_on_getting_copies(name: str, writes: bool) -> None:
    family = FAMILIES[name]
    family = Family(family.model, family.batch, family.loss, family.cuts[:1])
    model, batches = made(family)
    trainer = trainer_of(model, family)
    for batch in batches:
        trainer.step(batch)
    forward, _, _ = trainer.net.segments[0].body._common
    assert forward.writes == [writes]


REPLAYED = syngrad.Distributed(replay=Record([{}]))


@pytest.mark.parametrize(
    ("model", "options", "route"),
    [
        (lambda: LanguageModel(2, tied=False), {}, "forward"),
        (lambda: LanguageModel(2, tied=False), {"feedback": syngrad.Feedback(delay=0)}, "torch.export"),
        (lambda: LanguageModel(2, tied=False), {"distributed": REPLAYED}, "torch.export"),
        (lambda: LanguageModel(2), {"feedback": syngrad.Feedback(delay=1)}, "torch.export"),  # workers exchange it
        (lambda: LanguageModel(2, checkpointed=True), {"feedback": syngrad.Feedback(delay=1)}, "forward"),
    ],
)
def test_one_process_cuts_as_several_would_where_it_is_to_end_as_they_do(
    model: Callable[[], nn.Module], options: dict[str, Any], route: str
) -> None:
    family = Family(model, lambda: (ids(), ids()), by_token, ["blocks.1"], options)
    made_model, batches = made(family)
    trainer = trainer_of(made_model, family)
    trainer.step(batches[0])
    assert trainer.net.segments[0].route == route


def test_another_route_is_another_order_of_the_same_sums() -> None:
    family = FAMILIES["causal"]
    by_forward, batches = made(family)
    recorded = copy.deepcopy(by_forward)
    for model, feedback in ((by_forward, None), (recorded, syngrad.Feedback(delay=0))):
        trainer = trainer_of(model, family, method="mixed(1.0)", estimator="linear", feedback=feedback)
        for batch in batches:
            trainer.step(batch)
    pairs = list(zip(by_forward.parameters(), recorded.parameters(), strict=True))
    assert not all(torch.equal(one, other) for one, other in pairs)
    assert all(torch.allclose(one, other, rtol=1e-12, atol=1e-12) for one, other in pairs)


def test_leaves_stand_in_one_order_on_either_route() -> None:
    family = FAMILIES["translation"]
    family = Family(family.model, family.batch, family.loss, ["decoder.1"])
    shapes = []
    for feedback in (None, syngrad.Feedback(delay=0)):
        model, batches = made(family)
        trainer = trainer_of(model, family, feedback=feedback)
        trainer.step(batches[0])
        (interface,) = trainer.net.interfaces
        shapes.append((trainer.net.segments[0].route, [tuple(e.binding.shape) for e in interface.heads if e.binding]))
    assert shapes == [("forward", [(5, 16), (6, 16)]), ("torch.export", [(5, 16), (6, 16)])]
