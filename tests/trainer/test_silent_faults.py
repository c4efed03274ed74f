"""What a hostile reading once found: ways in which a user's run went wrong without a word, or with a wrong one."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests._support.options import keywords
from torch import Tensor, nn

from syngrad import Interface, SyngradError, Trainer, decouple
from syngrad.errors import ConfigError, TrainingError


def mlp(outputs: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))


def trainer(model: nn.Module, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"loss": F.cross_entropy, "optimizer": lambda p: torch.optim.SGD(p, 0.1), **options}
    return Trainer(decouple(model, cuts=["2", "4"]), **keywords(**settings))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(16, 20), torch.randint(0, 5, (16,))


@pytest.mark.parametrize("method", ["backprop", "synthetic", "mixed(0.5)", "delayed(1)"])
def test_one_autocast_context_around_all_steps_is_one_around_each(method: str, batch: Any) -> None:
    once, each = mlp(), mlp()
    a, b = trainer(once, method=method), trainer(each, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(5):
            a.step(batch)
    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            b.step(batch)
    before = mlp().state_dict()
    for name, value in once.state_dict().items():
        assert torch.equal(value, each.state_dict()[name]), name
    assert not torch.equal(once.state_dict()["4.weight"], before["4.weight"])


@pytest.mark.parametrize("options", [{"method": "delayed(1)"}, {"method": "synthetic", "feedback": "true"}, {}])
def test_freezing_a_stage_while_training_holds_it_and_thawing_lets_it_go(options: dict[str, Any], batch: Any) -> None:
    model = mlp()
    made = trainer(model, estimator="linear", **options)
    for _ in range(4):
        made.step(batch)
    made.flush()
    model[0].requires_grad_(False)
    held = model[0].weight.clone()
    for _ in range(4):
        made.step(batch)
    made.flush()
    assert torch.equal(model[0].weight, held)
    model[0].requires_grad_(True)
    for _ in range(4):
        made.step(batch)
    made.flush()
    assert not torch.equal(model[0].weight, held)


def test_what_was_frozen_before_the_first_batch_can_be_thawed(batch: Any) -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    held = model[0].weight.clone()
    made = trainer(model)
    for _ in range(3):
        made.step(batch)
    assert torch.equal(model[0].weight, held)
    model[0].weight.requires_grad_(True)
    for _ in range(3):
        made.step(batch)
    assert not torch.equal(model[0].weight, held)


@pytest.mark.parametrize("estimator", ["linear", "mlp", "low_rank", "default"])
def test_amounts_in_integers_for_one_output_are_no_labels(estimator: str, batch: Any) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.squeeze(-1), target.float())

    model = mlp(outputs=1)
    made = trainer(model, loss=loss, estimator=estimator)
    target = (batch[1] > 2).long()
    first = made.step((batch[0], target)).item()
    for _ in range(200):
        last = made.step((batch[0], target)).item()
    assert last < first / 2


class TwoOutputs(nn.Module):
    """Gives (scores, something else), as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.layers(x)
        return scores, scores.mean()


def test_labels_are_found_beside_other_outputs(batch: Any) -> None:
    made = Trainer(
        decouple(TwoOutputs(), cuts=["layers.2"]), loss=lambda out, y: F.cross_entropy(out[0], y), estimator="linear"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.bind(batch)
    assert made.net.interfaces[0].heads[0].labels is not None


def test_labels_that_fit_nothing_are_said_not_to_be_seen(batch: Any) -> None:
    made = trainer(mlp(), loss=lambda out, y: F.cross_entropy(out, y["y"]), estimator="linear")
    with pytest.warns(UserWarning, match="could not be matched"):
        made.bind((batch[0], {"y": batch[1]}))


def test_a_message_and_an_output_with_the_batch_second_are_turned_for_a_head(batch: Any) -> None:
    class TimeFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unsqueeze(0).expand(3, *x.shape).contiguous()

    model = nn.Sequential(nn.Linear(20, 16), TimeFirst(), nn.Linear(16, 5))
    made = Trainer(decouple(model, cuts=["2"]), loss=lambda out, y: F.cross_entropy(out[0], y))
    before = model[0].weight.detach().clone()
    for _ in range(4):
        made.step(batch)
    assert made.net.interfaces[0].turned == [0]
    assert not torch.equal(before, model[0].weight)


def test_a_loss_that_is_no_number_in_evaluation_is_not_passed_over(batch: Any) -> None:
    made = trainer(mlp(), metric="accuracy")
    with pytest.raises(TrainingError, match="nan in evaluation; the batch's input holds NaN"):
        made.fit([batch], 1, validate=[(batch[0] * float("nan"), batch[1])])


def test_a_short_run_says_nothing_of_quality_rather_than_zero(batch: Any) -> None:
    history = trainer(mlp()).fit([batch] * 5, 1)
    assert [row["cosine"] for row in history.interfaces] == [None, None]
    history = trainer(mlp()).fit([batch] * 30, 1)
    assert all(abs(float(str(row["cosine"]))) > 0 for row in history.interfaces)


def test_replaced_parameters_are_noticed(batch: Any) -> None:
    model = mlp()
    made = trainer(model)
    made.fit([batch], 1)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    with pytest.raises(TrainingError, match="replaced"):
        made.fit([batch], 1)


def test_a_cut_may_be_named_as_a_dictionary_s_method(batch: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pop = nn.Linear(20, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.pop(self.first(x))  # type: ignore[no-any-return]

    model = Named()
    made = Trainer(decouple(model, cuts=["pop"]), loss=F.cross_entropy)
    made.step(batch)
    assert list(made.net.estimators) == ["cut/pop"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Interface("linaer"), "linaer"),
        (lambda: Interface(3), "int"),
        (lambda: Interface("linear(foo=1)"), "foo"),
        (lambda: Interface("linear", classes=-3), "-3"),
        (lambda: Interface("local", loss=F.cross_entropy, output=-1), "-1"),
        (lambda: Interface("local", loss=3), "int"),  # type: ignore[arg-type]
        (lambda: Interface("linear", scale=0.0), "0.0"),
        (lambda: trainer(mlp(), seed="a"), "'a'"),
        (lambda: trainer(mlp(), seed=2**40), str(2**40)),
        (lambda: trainer(mlp(), metric=["accuracy"]), "list"),
        (lambda: trainer(mlp(), estimator=3), "int"),
        (lambda: decouple(mlp(), cuts=1), "1"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_given(make: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_estimators_for_cuts_that_are_none_are_refused(batch: Any) -> None:
    with pytest.raises(SyngradError, match=r"'5'.*valid: 2, 4, default"):
        trainer(mlp(), estimator={"5": "mlp", "default": "linear"}).bind(batch)


def test_a_saved_interface_asks_to_be_bound_first(batch: Any) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 16), Interface("linear", classes=5))

    trained, fresh = net(), net()
    for model in (trained, fresh)[:1]:
        model[1].bind(torch.randn(16, 16), batch[1])
    with pytest.raises(ConfigError, match="not bound yet"):
        fresh.load_state_dict(trained.state_dict())
    fresh[1].bind(torch.randn(16, 16), batch[1])
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh[1].heads[0].map.weight, trained[1].heads[0].map.weight)


def test_an_estimators_own_dropout_leaves_the_global_generator_alone(batch: Any) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, h: Tensor, context: Tensor) -> Tensor:
            return F.dropout(self.layer(h), 0.5)

    made = trainer(mlp(), estimator=Noisy)
    made.step(batch)
    before = torch.default_generator.get_state()
    made.step(batch)
    assert torch.equal(torch.default_generator.get_state(), before)
