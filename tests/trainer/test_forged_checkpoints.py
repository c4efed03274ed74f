"""Checkpoints whose tensors are not what they are for: refused in one line before anything is moved."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.forged import forge
from tests._support.models import assert_same, momentum, tensors_of
from tests._support.training import one_line
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad import tagged_json
from syngrad.errors import CheckpointError, MessageError
from syngrad.optim.factory import parse_optimizer
from syngrad.runtime import state as run_state

LATE = syngrad.Feedback(delay=2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def trainer(**options: Any) -> syngrad.Trainer:
    net = syngrad.decouple(network(), cuts=["3", "5"])
    return syngrad.Trainer(net, loss=F.cross_entropy, progress=False, **options)


def batches(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 5, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(n)]


def saved(root: Path, **options: Any) -> Path:
    made = trainer(**options)
    for batch in batches(5):
        made.step(batch)
    return made.save(root)


def everything(made: syngrad.Trainer) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    tagged_json.encode([optimizer.state_dict() for optimizer in made.optimizers], kept)
    kept = {name: value.clone() for name, value in kept.items()}
    estimators = {f"estimators.{name}": value for name, value in tensors_of(made.net.estimators).items()}
    return tensors_of(made.model) | estimators | kept


def put_elsewhere(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change what a checkpoint says, and its tensors, and make every digest right again."""
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(path / "training.safetensors").items()}
    document = json.loads((path / "training.json").read_text())["state"]
    change(document, tensors)
    save_file(tensors, path / "training.safetensors")
    forge(path, lambda whole: whole.update(state=document))


def moments(document: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return [(int(index), each) for index, each in document["optimizers"][0]["state"]["map"]]


def smaller(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """What ended a process by signal 11: fused Adam writes as far as its parameter goes."""
    for _, each in moments(document):
        for name in ("exp_avg", "exp_avg_sq"):
            tensors[each[name]["tensor"]] = torch.zeros(3)


def of_half_the_bytes(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for _, each in moments(document):
        tensors[each["exp_avg"]["tensor"]] = tensors[each["exp_avg"]["tensor"]].bfloat16()


def missing(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for _, each in moments(document):
        tensors.pop(each.pop("exp_avg_sq")["tensor"])


def renamed(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for _, each in moments(document):
        each["exp_average"] = each.pop("exp_avg")


def a_number(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for _, each in moments(document):
        tensors.pop(each["exp_avg"]["tensor"])
        each["exp_avg"] = 0.5


def others_numbers(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    group = document["optimizers"][0]["param_groups"][0]
    group["params"] = group["params"][::-1]


def one_too_many(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    pairs = document["optimizers"][0]["state"]["map"]
    pairs[-1][0] = 10_000


def stages(where: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Put a tensor (a function of the one that is there) or another value into the part of all stages."""

    def change(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        here: Any = document["stages"]
        *path, last = where.split("/")
        for name in path:
            here = here[int(name) if isinstance(here, list) else name]
        last = int(last) if isinstance(here, list) else last
        if callable(value):
            name = here[last]["tensor"]
            tensors[name] = value(tensors[name]).contiguous()
        else:
            here[last] = value

    return change


FORGED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], None], dict[str, Any], str]] = {
    "smaller moments": (
        smaller,
        {},
        r"'exp_avg' of '0\.weight' is \(3,\) of float32, and has to be \(7, 5\) of float32",
    ),
    "moments of half the bytes": (of_half_the_bytes, {}, r"is \(7, 5\) of bfloat16, and has to be \(7, 5\) of float32"),
    "a missing moment": (missing, {}, r"'exp_avg_sq' of '0\.weight' is missing"),
    "a moment of another name": (renamed, {}, r"'exp_avg' of '0\.weight' is missing"),
    "a number for a moment": (a_number, {}, r"'exp_avg' of '0\.weight' is 0\.5, and has to be a tensor"),
    "other parameters' numbers": (others_numbers, {}, "not numbered one by one"),
    "a parameter that is not there": (one_too_many, {}, "moments of parameter 10000"),
    "an estimator's dtype": (
        stages("estimators/0/estimators.0.body.1.weight", lambda t: t.double()),
        {},
        r"of the estimators of stage 'input' is .* of float64, and has to be",
    ),
    "a generator": (stages("randomness/1/cpu", lambda t: t[:-8]), {}, "a generator's state is"),
    "a generator of nonsense": (stages("randomness/1/cpu", lambda t: t * 0 + 255), {}, "RuntimeError"),
    "the sporadic draws": (stages("generator", lambda t: t.float()), {}, "a generator's state is"),
    "a message that waits": (
        stages("waiting/0/0/leaves/0", lambda t: t[:, :2]),
        {"feedback": LATE},
        "changed shape",
    ),
    "what came back for it": (
        stages("waiting/0/0/received/0", lambda t: t[:3]),
        {"feedback": LATE},
        r"a gradient of \(3, 7\) of float32 came back for a message of \(8, 7\)",
    ),
    "its context": (
        stages("waiting/0/0/context", lambda t: t.float()),
        {"feedback": LATE},
        "the target of a minibatch in flight",
    ),
    "an integer message": (
        stages("waiting/0/0/leaves/0", lambda t: t.long()),
        {"feedback": LATE},
        "something else than tensors of floating numbers",
    ),
    "weights in flight": (
        stages("flights/0/0/stash/body.0.weight", lambda t: t[:2]),
        {"method": "delayed(2)"},
        r"is \(2, 5\) of float32, and has to be \(7, 5\)",
    ),
    "inputs in flight": (
        stages("flights/0/0/args/0", lambda t: t.double()),
        {"method": "delayed(2)"},
        "the inputs of a minibatch in flight",
    ),
    "a message in flight": (
        stages("flights/1/0/args/0", lambda t: t[:, :2]),
        {"method": "delayed(2)"},
        "changed shape",
    ),
    "a late gradient": (stages("due/0/0/2/0", lambda t: t[:, :2]), {"method": "delayed(2)"}, "changed shape"),
    "a gradient for nobody": (stages("due/0/0/0", 99), {"method": "delayed(2)"}, "not in flight"),
    "a stage too many": (stages("due", [[], [], [], []]), {}, r"'due' is of 4 stages, and there are 3"),
    "a count": (stages("count", "many"), {}, "count is 'many', which is no whole number"),
    "stages": (stages("span", [0, 9]), {}, "it is of stages 0 to 9, and there are 3"),
    "a guard": (stages("guard", {"admits": {"input": 1}}), {}, "'admits' is nothing that the guard counts"),
    "samples": (stages("quality/0/history", [[1, 2]]), {}, "TypeError"),
    "a group's parameters": (stages("options/groups/0/0/params", [0]), {}, "a group's options name parameters"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_what_is_not_for_its_place_is_refused_before_anything_is_moved(kind: str, tmp_path: Path) -> None:
    change, options, said = FORGED[kind]
    path = saved(tmp_path, **options)
    put_elsewhere(path, change)
    made = trainer(**options)
    made.step(batches(1)[0])
    before = everything(made)
    with pytest.raises(CheckpointError, match=said) as caught:
        made.load(path)
    assert "does not fit this Trainer" in one_line(caught)
    assert_same(everything(made), before)
    assert made.minibatches == 1
    made.step(batches(1)[0])


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    for name, options in {"late": {"feedback": LATE}, "delayed": {"method": "delayed(2)"}, "plain": {}}.items():
        path = saved(tmp_path / name, **options)
        put_elsewhere(path, lambda document, tensors: None)
        trainer(**options).load(path)


def test_a_buffer_of_another_dtype_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    from safetensors.torch import load_file, save_file

    model = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    model["1.running_mean"] = model["1.running_mean"].double()
    save_file(model, path / "model.safetensors")
    forge(path, lambda document: None)
    with pytest.raises(CheckpointError, match=r"'1\.running_mean' is \(7,\) of float64 there and \(7,\) of float32"):
        trainer().load(path)


@pytest.mark.parametrize(
    "optimizer",
    [
        momentum,
        lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True, fused=True),
        lambda p: torch.optim.Adam(p, 1e-3, foreach=True),
        lambda p: torch.optim.SGD(p, 1e-3),
        *map(parse_optimizer, ["adamw", "nadam", "radam", "adamax", "adadelta", "adagrad", "rmsprop", "rprop", "asgd"]),
        lambda p: torch.optim.Adafactor(p, lr=1e-3),
    ],
)
def test_what_any_optimiser_of_pytorch_keeps_is_right(optimizer: Any, tmp_path: Path) -> None:
    made = trainer(optimizer=optimizer)
    path = saved(tmp_path, optimizer=optimizer)
    made.load(path)
    for batch in batches(2):
        made.step(batch)


class Own(torch.optim.Optimizer):
    """Keeps what is like no parameter, and something that is."""

    def __init__(self, params: Any, rate: float) -> None:
        super().__init__(params, {"rate": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p]
                    kept["factor"] = torch.ones(2, len(kept) + 1)
                    kept["sum"] = kept.get("sum", torch.zeros_like(p)) + p.grad
                    p.sub_(group["rate"] * kept["sum"])


def test_of_an_optimiser_of_ones_own_what_is_like_the_parameter_is_held_against_it(tmp_path: Path) -> None:
    options = {"optimizer": lambda p: Own(p, 1e-3)}
    path = saved(tmp_path, **options)
    trainer(**options).load(path)

    def change(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[moments(document)[0][1]["sum"]["tensor"]] = torch.zeros(1)

    put_elsewhere(path, change)
    with pytest.raises(CheckpointError, match=r"'sum' of '0\.weight' is \(1,\) of float32, and has to be \(7, 5\)"):
        trainer(**options).load(path)


# --- from another worker


def part_of(made: syngrad.Trainer, span: tuple[int, int]) -> dict[str, Any]:
    """As it comes over a link: nothing of it is shared."""
    return copy.deepcopy(run_state.take(made.bound, span))


def put(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(part: dict[str, Any]) -> None:
        here: Any = part
        *path, last = where.split("/")
        for name in path:
            here = here[int(name) if isinstance(here, list) else name]
        last = int(last) if isinstance(here, list) else last
        here[last] = value(here[last]) if callable(value) else value

    return change


HANDED = {
    "a moment": (put("moments/0/exp_avg", lambda t: t[:1]), r"'exp_avg' of '0\.weight' is \(1, 5\)"),
    "too few moments": (put("moments", lambda m: m[:-1]), "zip"),
    "a weight": (put("weights/0/0.weight", lambda t: t.double()), r"'0\.weight' is \(7, 5\) of float64"),
    "a weight less": (put("weights/0", lambda w: {k: v for k, v in w.items() if k != "0.weight"}), "is no tensor"),
    "a weight of another stage": (
        put("weights/0", lambda w: {**w, "5.weight": torch.ones(3, 6)}),
        r"'5\.weight' is no buffer of stage 'input'",
    ),
    "a buffer": (put("weights/0/1.running_var", lambda t: t.long()), r"'1\.running_var' is \(7,\) of int64"),
    "an estimator": (put("estimators/0", {}), "the estimators of stage 'input' has no"),
    "options": (put("options/groups", []), "zip"),
    "an option": (put("options/groups/0/0/lr", torch.ones(3)), "an option of a group is a tensor of"),
}


@pytest.mark.parametrize("kind", HANDED)
def test_what_another_worker_hands_over_is_held_against_its_place_too(kind: str) -> None:
    change, said = HANDED[kind]
    one, other = trainer(), trainer()
    for batch in batches(3):
        one.step(batch)
        other.step(batch)
    one.step(batches(1)[0])
    part = part_of(one, (0, 2))
    run_state.check(other.bound, part)
    before = everything(other)
    change(part)
    with pytest.raises(MessageError, match=f"another worker has handed over does not fit here: .*{said}") as caught:
        run_state.put(other.bound, part)
    one_line(caught)
    assert_same(everything(other), before)


def test_a_whole_model_from_another_worker_is_too() -> None:
    made = trainer()
    given = {name: value.clone() for name, value in made.model.state_dict().items()}
    given["0.weight"] = given["0.weight"].double()
    with pytest.raises(MessageError, match=r"'0\.weight' of the model is \(7, 5\) of float64"):
        run_state.put_model(made.model, given, {})


def test_options_from_another_worker_are_too() -> None:
    made = trainer()
    made.step(batches(1)[0])
    given = run_state.options(made.bound)
    given["groups"][0][0]["params"] = []
    with pytest.raises(MessageError, match="a group's options name parameters"):
        run_state.put_options(made.bound, given)
