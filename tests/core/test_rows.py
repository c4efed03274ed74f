"""Messages whose rows are not the samples: flattened tokens, stacked pairs, rows that are picked out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.core.batch import losses
from syngrad.core.places import list_places
from syngrad.errors import CutError, MessageError, TrainingWarning

WORDS, WIDTH, CLASSES = 11, 6, 3


class Flattened(nn.Module):
    """Every token a row from the first layer on, or from the last."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.embed, self.middle, self.head = (
            nn.Embedding(WORDS, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WORDS),
        )
        self.late = late

    def forward(self, ids: Tensor) -> Tensor:
        """(n, t) → (n·t, words)."""
        h = self.embed(ids)
        h = self.middle(h if self.late else h.flatten(0, 1)).relu()
        return self.head(h.flatten(0, 1) if self.late else h)  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """Two views of every sample, one behind the other."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.apart = apart

    def forward(self, one: Tensor, other: Tensor) -> Any:
        """Scores of both, apart or in one tensor."""
        scores = self.c(self.b(self.a(torch.cat([one, other])).relu()).relu())
        return scores.chunk(2) if self.apart else scores


class Picks(nn.Module):
    """Only some samples go through the later layers, or those and a second path."""

    def __init__(self, beside: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, WIDTH), Beside(), nn.Linear(WIDTH, CLASSES)
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4) → (n, classes)."""
        h, rows = self.a(x).relu(), (x[:, 0] > 0).nonzero()[:, 0]
        if self.beside:
            return self.c(self.b(h[rows], h).relu())  # type: ignore[no-any-return]
        picked = self.c(self.b(h[rows]).relu())
        return x.new_zeros(len(x), CLASSES).index_put((rows,), picked)


class Beside(nn.Module):
    """A layer that may be given a second tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, other: Tensor | None = None) -> Tensor:
        """The first, or the second and the mean of the first."""
        return self.f(h) if other is None else self.f(h).mean(0) + other  # type: ignore[no-any-return]


def by_token(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target.flatten())


def of_pairs(output: Any, target: Tensor) -> Tensor:
    one, other = output if isinstance(output, tuple) else output.chunk(2)
    return F.cross_entropy(one, target) + F.mse_loss(one, other)


def tokens(n: int = 4, length: int = 5, flat: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.randint(WORDS, (n, length))
    return ids, ids.roll(1, 1).flatten() if flat else ids.roll(1, 1)


def pairs(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, 4).double(), torch.randn(n, 4).double(), torch.randint(CLASSES, (n,))


def features(n: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4).double()
    x[:3, 0], x[3:, 0] = 1.0, -1.0
    return x, torch.randint(CLASSES, (n,))


def trainer_of(model: nn.Module, loss: Callable[[Any, Tensor], Tensor], cut: str, **options: Any) -> syngrad.Trainer:
    given = {"optimizer": lambda p: torch.optim.SGD(p, 0.05), "guard": None, "progress": False, **options}
    return syngrad.Trainer(syngrad.decouple(model, cuts=[cut]), loss=loss, **given)


CASES: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any, Tensor], Tensor], list[Any]]] = {
    "tokens": (Flattened, "middle", by_token, [(4, 5), (3, 7), (1, 4)]),
    "late": (lambda: Flattened(late=True), "middle", by_token, [(4, 5), (3, 7), (2, 4)]),
    "pairs": (lambda: Pairs(apart=False), "b", of_pairs, [(4,), (3,)]),
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_head_predicts_row_by_row_and_its_loss_is_the_users_own(name: str, flat: bool) -> None:
    """Where scale is one over the samples, the estimate is the very gradient of the loss at the head."""
    make, cut, loss, sizes = CASES[name]
    torch.manual_seed(0)
    batches = [pairs(*size) if name == "pairs" else tokens(*size, flat) for size in sizes]
    trainer = trainer_of(make().double(), loss, cut, estimator="local")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches * 3:
            trainer.step(batch)
    (interface,), (head,) = trainer.net.interfaces, trainer.net.interfaces[0].heads
    for batch in batches:
        read = trainer.read(batch)
        h = trainer.net.segments[0](*read.args).detach()
        (estimate,), _ = interface.estimate([h], read.target, read.scale, False)
        h.requires_grad_()
        value = loss(head.body(h.flatten(0, 1) if name == "late" else h), read.target)
        torch.testing.assert_close(estimate, torch.autograd.grad(value, h)[0])
        assert estimate.abs().max() > 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("options", [{}, {"estimator": "linear"}, {"loss_count": lambda target: target.numel()}])
def test_the_stage_before_is_trained_and_with_lambda_1_exactly(name: str, options: dict[str, Any]) -> None:
    make, cut, loss, sizes = CASES[name]
    torch.manual_seed(0)
    batches = [pairs(*size) if name == "pairs" else tokens(*size) for size in sizes]
    model = make().double()
    plain, exact, before = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model.state_dict())
    trainer, mixed = (
        trainer_of(model, loss, cut, **options),
        trainer_of(exact, loss, cut, method="mixed(1.0)", **options),
    )
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    for batch in batches * 2:
        trainer.step(batch)
        mixed.step(batch)
        optimizer.zero_grad()
        loss(plain(*batch[:-1]), batch[-1]).backward()
        optimizer.step()
    assert not [key for key, value in model.state_dict().items() if torch.equal(value, before[key])]
    for one, other in zip(exact.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("flat", [False, True])
def test_labels_reach_a_regressor_row_by_row(flat: bool) -> None:
    torch.manual_seed(0)
    trainer = trainer_of(Flattened().double(), by_token, "middle", estimator="linear")
    trainer.step(tokens(flat=flat))
    (estimator,) = trainer.net.interfaces[0].heads
    assert estimator.labels.weight.shape == (WORDS + 1, WIDTH)
    with torch.no_grad():
        estimator.map.weight.zero_()
        estimator.map.bias.zero_()
        estimator.labels.weight.copy_(torch.arange(WORDS + 1.0).double()[:, None].expand(-1, WIDTH))
    _, target = tokens(3, 7, flat)
    h = torch.zeros(21, WIDTH).double()
    (estimate,), _ = trainer.net.interfaces[0].estimate([h], target, 0.5, False)
    assert torch.equal(estimate[:, 0], 0.5 * (target.flatten() + 1.0).double())


def test_numbers_reach_a_regressor_row_by_row() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flatten(0, 1)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    trainer = trainer_of(Frames(), lambda o, y: F.mse_loss(o, y.flatten(0, 1)), "b", estimator="linear")
    trainer.step((torch.randn(4, 5, 4), torch.randn(4, 5, 2)))
    assert trainer.net.interfaces[0].heads[0].labels.weight.shape == (2, WIDTH)
    trainer.step((torch.randn(3, 6, 4), torch.randn(3, 6, 2)))


def test_where_the_target_has_no_element_a_row_there_is_no_context() -> None:
    torch.manual_seed(0)
    trainer = trainer_of(Pairs(apart=True).double(), of_pairs, "b", estimator="linear")
    for n in (4, 3):
        trainer.step(pairs(n))
    assert trainer.net.interfaces[0].heads[0].labels is None


def test_a_flattened_target_has_a_loss_for_every_row() -> None:
    _, target = tokens(4, 5, flat=True)
    assert losses(target, 4, None) == 20
    assert losses(target.view(4, 5), 4, None) == 4
    assert losses(target, 4, lambda target: 7) == 7
    assert losses(None, 4, None) == losses(torch.zeros(3), 4, None) == losses(torch.zeros(()), 4, None) == 4


def test_a_cut_of_which_nothing_is_estimated_is_refused_with_what_works() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        CutError,
        match=r"cannot cut at 'b': what crosses it, \(8, 6\), has not the 4 samples in it.*"
        r"use estimator='linear', which takes every row for itself, or use method='backprop' or 'delayed'",
    ):
        trainer_of(Pairs(apart=True).double(), of_pairs, "b").step(pairs())
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Picks()).double()
    with pytest.raises(CutError, match=r"cannot cut at '2\.b': .*; name '1', '2', or use method='backprop' or") as told:
        trainer_of(model, F.cross_entropy, "2.b").step(features())
    assert "\n" not in str(told.value)
    trainer_of(model, F.cross_entropy, "2").step(features())
    for method in ("backprop", "delayed(1)", "zero"):
        trainer_of(copy.deepcopy(model), F.cross_entropy, "2.b", method=method).step(features())


def test_rows_that_are_picked_out_are_exact_with_lambda_1() -> None:
    torch.manual_seed(0)
    model = Picks().double()
    plain = copy.deepcopy(model)
    trainer = trainer_of(model, F.cross_entropy, "b", method="mixed(1.0)")
    optimizer = torch.optim.SGD(plain.parameters(), 0.05)
    for _ in range(3):
        batch = features()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingWarning)
            trainer.step(batch)
        optimizer.zero_grad()
        F.cross_entropy(plain(batch[0]), batch[1]).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_part_that_is_carried_is_named_at_the_users_cut() -> None:
    torch.manual_seed(0)
    trainer = trainer_of(Picks(beside=True).double(), F.cross_entropy, "b")
    with pytest.warns(TrainingWarning, match=r"the cut at 'b' has a part without the 8 samples in it, \(3, 6\)"):
        trainer.step(features())


def test_no_such_place_is_chosen_or_listed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Picks()).double()
    trainer = syngrad.Trainer(syngrad.decouple(model, stages=2), loss=F.cross_entropy, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(features())
    assert trainer.net.cuts in (["1"], ["2"])
    x, y = features()
    listed = [place.name for place in list_places(Picks().double(), (x,), {}, y, F.cross_entropy)]
    assert listed == []


def test_parts_that_had_as_many_rows_as_samples_by_chance_are_named_later() -> None:
    torch.manual_seed(0)
    trainer = trainer_of(Picks().double(), F.cross_entropy, "b")
    x, y = features()
    trainer.step((x.abs(), y))
    with pytest.raises(MessageError, match=r"there are 8 samples, and 3 in a part .* cut where every sample has a row"):
        trainer.step((x, y))

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.add, self.head = nn.Embedding(WORDS, WIDTH), Adds(), nn.Linear(WIDTH, WORDS)
            self.places = nn.Parameter(torch.zeros(1, 5, WIDTH))

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.add(self.embed(ids), self.places * 1.0))  # type: ignore[no-any-return]

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor, places: Tensor) -> Tensor:
            return self.f(h + places)  # type: ignore[no-any-return]

    trainer = trainer_of(Positions(), lambda o, y: F.cross_entropy(o.transpose(1, 2), y), "add")
    trainer.step(tokens(1))
    with pytest.raises(
        MessageError, match=r"4 samples, and 1 in a part .* begin with a minibatch of two samples or more"
    ):
        trainer.step(tokens(4))
