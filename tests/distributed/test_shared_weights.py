"""Weights that stages of several workers share: exact where a stage waits for true gradients, averaged elsewhere.

One launch a number of workers takes all cases, one after the other.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.shared_runs import CUTS, MEETS, model, network, run, tokens, trainer
from torch import Tensor

import syngrad
from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed

Left = dict[str, list[dict[str, Any]]]

#: what has to be as in one process
EXACT: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "clipped, sporadic": {"method": "backprop", "clip_norm": 0.3, "update_probability": 0.6},
    "mixed(0.4)": {"method": "mixed(0.4)", "feedback_delay": 0},
    "true feedback": {"feedback": "true", "feedback_delay": 1},
    "warm-up": {"feedback_delay": 0, "warmup": 100, "share_every": 1},
    "delayed": {"method": "delayed(2)"},
    "late, sporadic": {"method": "delayed(1)", "update_probability": 0.6},
    "corrected at once": {"method": "corrected(0, every=1)", "feedback_delay": 0, "share_every": 1},
}
#: what has to be as untied weights that are averaged by hand: options, and (minibatches between two averagings, delay)
AVERAGED: dict[str, tuple[dict[str, Any], int, int]] = {
    "at once": ({"feedback_delay": 0, "share_every": 1}, 1, 0),
    "late": ({"feedback_delay": 1, "share_every": 4}, 4, 1),
    "often and late": ({"feedback_delay": 2, "share_every": 1, "clip_norm": 0.3}, 3, 2),
    "zero": ({"method": "zero", "feedback_delay": 0, "share_every": 2}, 2, 0),
    "corrected": ({"method": "corrected(1, every=2)", "share_every": 4}, 4, 0),
    "inputs predicted": ({"feedback_delay": 1, "inputs": "guess", "share_every": 3}, 3, 1),
}
RECORDED: dict[str, Any] = {"method": "delayed(1)"}
#: runs that are saved on the way, and taken again from there
SAVED = {"late": AVERAGED["late"][0], "delayed": EXACT["delayed"]}
PLACES = {2: [1, 2], 3: [1, 1, 1]}
#: what each number of workers takes
OF = {
    2: [*EXACT, *AVERAGED, "free", "recorded"],
    3: ["backprop", "mixed(0.4)", "delayed", "late", "inputs predicted"],
}


@pytest.fixture(scope="module", params=[2, 3])
def taken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Left]:
    """(workers, folder, what every rank has of each case)."""
    workers: int = request.param
    folder = tmp_path_factory.mktemp(f"of {workers}")
    place = {"place": PLACES[workers]}
    options = {**EXACT, **{name: options for name, (options, _, _) in AVERAGED.items()}}
    options |= {"free": {"share_every": 2}, "recorded": RECORDED}
    cases: list[dict[str, Any]] = [
        {"name": name, "options": {**options[name], **place}, "kind": kind(name, workers), "fit": {}}
        for name in OF[workers]
    ]
    for case in [case for case in cases if case["name"] in SAVED]:
        saved = folder / f"{case['name']} saved"
        case["fit"] = {"save": str(saved), "save_every": 5, "keep": 9}
        fit = {"save": str(folder / f"{case['name']} again"), "resume": str(saved / "000001")}
        cases.append({**case, "name": f"{case['name']} again", "fit": fit})
    command = [sys.executable, "-m", "tests._support.shared_runs", str(folder), json.dumps(cases)]
    assert launch(command, workers, restarts=0, environment={"PYTHONPATH": os.pathsep.join(sys.path)}) == 0
    names = [case["name"] for case in cases]
    return workers, folder, {n: [torch.load(folder / f"{n}.{rank}") for rank in range(workers)] for n in names}


def kind(name: str, workers: int) -> str:
    """The network of a case: where one worker has two stages, averaging what they mix would be another thing."""
    if name == "recorded":
        return name
    return "mixing" if name in EXACT or workers == 3 else "plain"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_true_gradients_make_workers_take_the_steps_of_one_process(taken: tuple[int, Path, Left]) -> None:
    for name in EXACT.keys() & taken[2].keys():
        reference = run(EXACT[name])
        for found in taken[2][name]:
            assert same(reference["model"], found["model"]), name
            assert found["tied"]
            assert found["losses"] == reference["losses"], name
            assert found["points"] == reference["points"], name


def test_a_recorded_model_goes_back_through_the_weights_that_it_went_forward_with(
    taken: tuple[int, Path, Left],
) -> None:
    for found in taken[2].get("recorded", []):
        assert found["tied"]
        for name, value in run(RECORDED, kind="recorded")["model"].items():
            torch.testing.assert_close(found["model"][name], value, rtol=0, atol=1e-12)


def averaged_by_hand(options: dict[str, Any], every: int, delay: int, mixing: bool) -> dict[str, Tensor]:
    """Untied weights in one process, brought to their mean as the workers do it; every use is another worker's."""
    net = syngrad.decouple(model(mixing), cuts=CUTS, untie=True)
    made = trainer(net, **{name: value for name, value in options.items() if name != "share_every"})
    groups = [[made.model.get_parameter(name) for name in names] for names in MEETS[mixing]]
    noted: list[list[Tensor]] = []
    begun = 0
    for step, batch in enumerate(tokens() + tokens()):
        if step > 0 and step % every == 0:
            noted, begun = [[p.detach().clone() for p in group] for group in groups], step
        made.step(batch)
        if noted and step == begun + delay:
            with torch.no_grad():
                for group, own in zip(groups, noted, strict=True):
                    for rank, parameter in enumerate(group):
                        parameter.add_(total(own, rank) / len(own) - own[rank])
            noted = []
    made.flush()
    with torch.no_grad():
        for group in groups:
            mean = total([p.detach().clone() for p in group], len(group) - 1) / len(group)
            for parameter in group:
                parameter.copy_(mean)
    return dict(made.model.state_dict())


def total(own: list[Tensor], rank: int) -> Tensor:
    """The sum as a worker has it: of those before it, its own, and the sum of those after it."""
    made = own[0]
    for each in own[1 : rank + 1]:
        made = made + each
    later = own[rank + 1 :]
    return made if not later else made + (later[0] if len(later) == 1 else later[0] + later[1])


def test_copies_are_averaged_at_fixed_minibatches(taken: tuple[int, Path, Left]) -> None:
    workers, _, left = taken
    for name in AVERAGED.keys() & left.keys():
        options, every, delay = AVERAGED[name]
        reference = averaged_by_hand(options, every, delay, workers == 3)
        for found in left[name]:
            assert same(reference, found["model"]), name
            assert found["tied"]


def test_what_is_evaluated_is_what_is_left(taken: tuple[int, Path, Left]) -> None:
    workers, _, left = taken
    for name in ("late", "backprop"):
        made = trainer(network(kind(name, workers)))
        made.model.load_state_dict(left[name][0]["model"])
        assert made.evaluate(tokens()) == left[name][0]["points"][-1]


def test_copies_that_are_averaged_as_it_comes_stay_together(taken: tuple[int, Path, Left]) -> None:
    ranks = taken[2].get("free", [])
    assert all(found["tied"] and same(found["model"], ranks[0]["model"]) for found in ranks)
    assert all(found["losses"][1] < found["losses"][0] for found in ranks)


@pytest.mark.parametrize("name", SAVED)
def test_a_run_goes_on_as_if_it_had_never_stopped(taken: tuple[int, Path, Left], name: str) -> None:
    left = taken[2]
    for found in left[f"{name} again"]:
        assert same(left[name][0]["model"], found["model"])
        assert found["losses"] == left[name][0]["losses"]


def test_one_process_goes_on_with_what_several_have_saved(taken: tuple[int, Path, Left]) -> None:
    workers, folder, left = taken
    again = {"resume": str(folder / "delayed saved" / "000001"), "save": str(folder / "by one")}
    assert same(run(EXACT["delayed"], again)["model"], left["delayed"][0]["model"])
    made = trainer(network(kind("late", workers)), **SAVED["late"])
    made.load(folder / "late saved")
    assert same(dict(made.model.state_dict()), left["late"][0]["model"])
    assert made.step(tokens()[0]).isfinite()


def test_what_crosses_is_counted_and_told(taken: tuple[int, Path, Left]) -> None:
    left, size = taken[2], 11 * 8 * 8
    for name, every in (("backprop", 1), ("late", 4)):
        processes = left[name][0]["processes"]
        for process in processes[:-1]:
            assert ["0.weight", size, every] in process["shared"]
        assert processes[-1]["shared"] == []
        rounds = 17 // every
        assert all(process["bytes_sent"] > rounds * size for process in processes)
