"""A loss that begins to read another part of the output later is told so: it meets no None, and nothing is silent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import MessageError, SyngradError, TrainingError
from syngrad.partition.unread import Unread, stand_ins

NOW = r"the loss reads output\['z'\] now, and did not on the first minibatch"


class Several(nn.Module):
    """Scores, and what the first layer has made or a second head."""

    def __init__(self, first: bool, recorded: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.first, self.recorded = first, recorded

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 4) → scores and one part more."""
        if not self.recorded and x.shape[0] < 0:
            raise ValueError
        z = self.a(x)
        h = self.b(torch.tanh(z)).relu()
        return {"o": self.c(h), "z": z if self.first else self.d(h)}


class Loss:
    """Reads the second part from the third call of a minibatch on."""

    def __init__(self, term: Callable[[Any], Any]) -> None:
        self.later, self.term = False, term

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        """Of (output, target)."""
        value = F.cross_entropy(output["o"], target)
        return value + self.term(output["z"]) if self.later else value


def square(z: Any) -> Any:
    return z.square().mean()


def if_there(z: Any) -> Any:
    return square(z) if z is not None else 0.0


def trainer_of(model: nn.Module, loss: Any, **options: Any) -> syngrad.Trainer:
    given = {"optimizer": lambda p: torch.optim.SGD(p, 0.1), "guard": None, "progress": False, **options}
    return syngrad.Trainer(syngrad.decouple(model, cuts=["b"]), loss=loss, **given)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 4).double(), torch.randint(3, (5,))


@pytest.mark.parametrize("options", [{}, {"estimator": "linear"}, {"method": "backprop"}, {"method": "mixed(1.0)"}])
@pytest.mark.parametrize("term", [square, if_there])
@pytest.mark.parametrize("first", [True, False])
def test_a_recording_does_not_make_it_and_says_so(
    first: bool, term: Callable[[Any], Any], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    loss = Loss(term)
    trainer = trainer_of(Several(first, recorded=True).double(), loss, **options)
    for _ in range(2):
        trainer.step(batch())
    assert trainer.net.segments[0].route == "torch.fx"
    loss.later = True
    with pytest.raises(MessageError, match=NOW) as told:
        trainer.step(batch())
    assert "NoneType" not in str(told.value)


@pytest.mark.parametrize("term", [square, if_there])
def test_heads_do_not_predict_it_and_say_so(term: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    loss = Loss(term)
    trainer = trainer_of(Several(first=False, recorded=False).double(), loss)
    trainer.step(batch())
    assert trainer.net.segments[0].route == "forward"
    loss.later = True
    with pytest.raises(MessageError, match=f"at 'b': {NOW}"):
        trainer.step(batch())


def test_the_models_own_forward_goes_on_where_no_gradient_crosses() -> None:
    """The last stage's own part is in its graph; of another only the value may be used."""
    torch.manual_seed(0)
    for first, term in ((False, square), (True, lambda z: z.detach().square().mean())):
        loss, plain_loss = Loss(term), Loss(term)
        model = Several(first, recorded=False).double()
        plain = copy.deepcopy(model)
        trainer = trainer_of(model, loss, method="mixed(1.0)", estimator="linear")
        optimizer = torch.optim.SGD(plain.parameters(), 0.1)
        for step in range(4):
            loss.later = plain_loss.later = step >= 2
            x, y = batch()
            trained = trainer.step((x, y))
            optimizer.zero_grad()
            value = plain_loss(plain(x), y)
            value.backward()
            optimizer.step()
            torch.testing.assert_close(trained, value.detach())
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_gradient_that_would_go_round_the_cut_is_named() -> None:
    torch.manual_seed(0)
    loss = Loss(square)
    trainer = trainer_of(Several(first=True, recorded=False).double(), loss, estimator="linear")
    trainer.step(batch())
    loss.later = True
    with pytest.raises(
        TrainingError, match=r"differentiate a value from before a cut that does not cross it, .* times 0"
    ):
        trainer.step(batch())


@pytest.mark.parametrize(
    "use",
    [
        lambda z: z + 1,
        lambda z: 2 * z,
        lambda z: torch.ones(2) * z,
        lambda z: torch.mean(z),
        lambda z: z.shape,
        lambda z: z[0],
        lambda z: list(z),
        lambda z: bool(z),
        lambda z: F.mse_loss(torch.ones(2), z),
        lambda z: z(1),
        lambda z: z > 0,
    ],
)
def test_every_use_is_refused(use: Callable[[Any], Any]) -> None:
    (stand_in,) = stand_ins({"o": torch.ones(2), "z": torch.ones(2)}, [1]).values()
    assert isinstance(stand_in, Unread)
    with pytest.raises(SyngradError, match=NOW):
        use(stand_in)
    copy.copy(stand_in)
