"""Each experiment's model, its cuts and a few steps, by back-propagation and by the default estimator."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from syngrad import Trainer, decouple
from syngrad.estimators import Head
from syngrad.experiments import BUILT_IN, cifar_cnn, load
from syngrad.experiments.deep_mlp import deep_mlp
from syngrad.experiments.experiment import Experiment
from syngrad.runtime.options import override
from syngrad.trainer.options import Options

#: name → sizes of one sample's message at every cut, as the experiment is cut
MESSAGES: dict[str, list[tuple[int, ...]]] = {
    "fashion-mlp": [(256,)] * 3,
    "fashion-cnn": [(16, 14, 14), (32, 7, 7), (64, 3, 3)],
    "deep-mlp": [(256,)] * 7,
    "cifar-cnn": [(128, 16, 16), (128, 8, 8), (128, 4, 4)],
    "cifar-cnn-small": [(24, 16, 16), (48, 8, 8), (96, 4, 4)],
    "resnet": [(16, 16, 16)],
    "char-gpt": [(64, 96)] * 3,
    "regression": [(128,)] * 3,
}
PARAMETERS = {"cifar-cnn-small": 68_194, "resnet": 78_042, "regression": 50_562}


def trainer_of(experiment: Experiment, **options: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        decouple(experiment.model(), cuts=experiment.cuts),
        loss=experiment.loss,
        metric=experiment.metric,
        optimizer=experiment.optimizer,
        scheduler=experiment.scheduler,
        progress=False,
        **override(Options, experiment.options, options),
    )


def test_every_experiment_is_here() -> None:
    assert MESSAGES.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_cuts_and_a_few_steps(name: str) -> None:
    experiment = load(name, batch_size=4)
    train, test = experiment.data(4, 0)
    some = list(islice(train, 2))
    trainer = trainer_of(experiment)
    trainer.bind(some[0])
    heads = [head for interface in trainer.net.interfaces for head in interface.heads]
    assert all(isinstance(head, Head) for head in heads)
    assert [tuple(head.binding.shape) for head in heads if head.binding] == MESSAGES[name]
    before = [p.detach().clone() for p in trainer.model.parameters()]
    losses = [trainer.step(batch).item() for batch in some for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert all(moved)
    assert trainer.evaluate(islice(test, 1)).keys() == {"loss", trainer_metric(trainer)}


def trainer_metric(trainer: Trainer) -> str:
    assert trainer.metric is not None
    return trainer.metric[0]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_decoupled_by_true_gradients_it_is_the_model_itself(name: str) -> None:
    """λ=1 at every interface gives what back-propagation gives: nothing goes round a cut."""
    experiment = load(name, batch_size=4)
    batch = next(iter(experiment.data(4, 0)[0]))
    ends = []
    for method in ("backprop", "mixed(1.0)"):
        trainer = trainer_of(experiment, method=method)
        trainer.step(batch)
        ends.append([p.detach() for p in trainer.model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_how_large_it_is(name: str, count: int) -> None:
    assert sum(p.numel() for p in load(name).model().parameters()) == count


def test_the_papers_net_is_as_it_says() -> None:
    net = cifar_cnn.model()
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.padding) for c in convolutions] == [(128, (5, 5), (2, 2))] * 3
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    assert [type(p) for p in pools] == [nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool2d]
    assert [(p.kernel_size, p.stride) for p in pools] == [(3, 2)] * 3
    experiment = load("cifar-cnn")
    assert experiment.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 3e-5
    assert experiment.batch_size == 256


@pytest.mark.parametrize("layers", [2, 3, 21])
def test_a_net_of_any_depth(layers: int) -> None:
    experiment = deep_mlp(layers=layers)
    trainer = trainer_of(experiment)
    trainer.bind(next(iter(experiment.data(4, 0)[0])))
    assert len(trainer.net.interfaces) == layers - 1
    assert sum(isinstance(m, nn.Linear) for m in trainer.model.modules()) == layers
    assert replace(experiment).cuts == [str(2 * k + 1) for k in range(1, layers)]


def test_a_net_of_one_layer_has_nowhere_to_be_cut() -> None:
    from syngrad.errors import ConfigError

    with pytest.raises(ConfigError, match="layers must be a whole number of at least 2, got 1"):
        deep_mlp(layers=1)
