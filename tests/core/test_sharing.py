"""Which parameters stages share, which of them updates each, and where they cross."""

from __future__ import annotations

import copy

import torch
from tests._support.shared_runs import CUTS, MEETS, model, tokens, trainer
from torch import nn

import syngrad
from syngrad.core.sharing import shared_parameters


def test_the_first_stage_owns_and_all_cuts_up_to_the_last_user_are_crossed() -> None:
    made = trainer()
    made.bind(tokens()[0])
    found = {each.name: each for each in shared_parameters(made.model, made.stages)}
    assert {name: each.users for name, each in found.items()} == {
        "0.weight": (0, 2), "1.weight": (0, 1, 2), "1.bias": (0, 1, 2),
    }  # fmt: skip
    assert [found["0.weight"].crosses(start) for start in range(4)] == [False, True, True, False]
    assert found["1.bias"].bytes == 8 * 8
    held = [{id(p) for p in stage.parameters} for stage in made.stages]
    for each in found.values():
        assert [id(each.parameter) in own for own in held] == [True, False, False]


def test_a_module_that_is_called_in_several_stages_is_shared_too() -> None:
    mix = nn.Linear(6, 6)
    net = syngrad.decouple(nn.Sequential(mix, nn.Linear(6, 6), mix), cuts=["1"])
    made = syngrad.Trainer(net, loss=nn.functional.mse_loss, estimator="linear", progress=False)
    made.bind((torch.randn(4, 6), torch.randn(4, 6)))
    assert [each.users for each in shared_parameters(made.model, made.stages)] == [(0, 1), (0, 1)]


def test_nothing_is_shared_once_it_is_untied() -> None:
    made = trainer(syngrad.decouple(model(), cuts=CUTS, untie=True))
    made.bind(tokens()[0])
    assert shared_parameters(made.model, made.stages) == []


def test_a_late_gradient_is_the_sum_that_one_minibatch_has_for_a_shared_weight() -> None:
    """`delayed(d)` by hand: weights of minibatch t, all its gradients, and an update when the first stage's turn is."""
    made = trainer(method="delayed(1)", optimizer=lambda p: torch.optim.SGD(p, 0.1), guard=None)
    twin = copy.deepcopy(made.model).eval()
    made.model.eval()  # dropout would draw from generators of the stages
    owners = {name: 0 for names in MEETS[True] for name in names}
    pending: dict[int, dict[str, torch.Tensor]] = {}
    for step, (x, y) in enumerate(tokens()):
        made.step((x, y))
        parameters = dict(twin.named_parameters())
        loss = nn.functional.cross_entropy(twin(x).flatten(0, 1), y.flatten())
        pending[step] = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        with torch.no_grad():
            for name, parameter in parameters.items():
                stage = owners.get(name, sum(int(name.split(".")[0]) >= int(cut) for cut in CUTS))
                late = step - (len(CUTS) - stage)
                if late >= 0:
                    parameter -= 0.1 * pending[late][name]
        for one, other in zip(made.model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
