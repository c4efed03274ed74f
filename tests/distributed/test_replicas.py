"""Replicas in processes of their own, over torchft: they average what they should, and outlive each other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.replica_runs import batches, launched, same, trainer
from tests._support.training import one_line
from tests._support.worker_programs import await_
from tests.conftest import child_processes

from syngrad.errors import ConfigError

pytest.importorskip("torchft")
pytestmark = pytest.mark.distributed

#: they wait for each other however busy the machine is
TOGETHER = {"wait_s": 60.0}


@pytest.mark.parametrize("options", [{"method": "backprop"}, {"estimator": "linear"}], ids=["exact", "estimates"])
def test_averaging_every_minibatch_is_data_parallelism(tmp_path: Path, options: dict[str, Any]) -> None:
    """With SGD the mean of the weights after a minibatch each is a step by the mean of the gradients."""
    settings = {
        "unnormed": True,
        "replicas": {"every": 1, "outer": None, **TOGETHER},
        "options": options,
        "batches": 8,
    }
    (first, second), said = launched(tmp_path, 2, settings)
    assert said == []
    assert same(first, second)
    assert same(first, second, "estimators")
    alone = trainer({**settings, "replicas": {}})
    small = batches(8)
    data = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(small[::2], small[1::2], strict=True)]
    history = alone.fit(data, 2, validate=batches(4))
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first["model"][name], value, rtol=1e-9, atol=1e-11)
    assert [each["accuracy"] for each in first["metrics"]] == [each.metrics["accuracy"] for each in history.epochs]
    assert [each["samples"] for each in (first, second)] == [[32, 32], [32, 32]]


OPTIONS = {
    "outer step": {"every": 3},
    "fragments": {"every": 4, "fragments": 2, "dtype": "bfloat16"},
    "late": {"every": 6, "fragments": 2, "delay": 1, "dtype": "int8"},
    "own estimators": {"every": 3, "estimators": False, "outer": "sgd(0.9)"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_all_end_with_the_same_weights_and_measure_the_same(tmp_path: Path, name: str) -> None:
    options = OPTIONS[name]
    (first, second), said = launched(tmp_path, 2, {"replicas": {**options, **TOGETHER}, "batches": 24})
    assert said == []
    assert same(first, second)
    assert same(first, second, "estimators") is (name != "own estimators")
    assert first["metrics"] == second["metrics"]
    assert first["minibatches"] == second["minibatches"] == 24
    every = options["every"] // options.get("fragments", 1)
    # the first meeting, one for each turn, and two ends of an epoch
    assert first["replica"]["averagings"] == 1 + 24 // every + 2
    assert second["replica"]["healed"] == 1
    assert first["replica"]["missed"] == 0
    assert first["replica"]["bytes_sent"] > 0


def test_a_killed_replica_is_started_again_and_takes_a_live_ones_state(tmp_path: Path) -> None:
    """And the one that lives trains on meanwhile."""
    settings = {
        "replicas": {"every": 5, "timeout_s": 5.0, "wait_s": 20.0},
        "batches": 120,
        "epochs": 4,
        "killed": {"1": 31},
        "slow": {"0": 0.02, "1": 0.02},
    }
    (first, second), said = launched(tmp_path, 2, settings)
    assert len(said) == 1
    assert "replica 1 was killed by signal 9 (SIGKILL)" in said[0]
    assert said[0].endswith("starting it again (1 of 3)")
    assert first["replica"]["healed"] == 0
    assert second["replica"]["healed"] == 1
    assert same(first, second)
    assert first["metrics"] == second["metrics"]  # those of the time before, too: they are the other one's
    assert first["minibatches"] == 240


def test_the_first_replica_is_no_other(tmp_path: Path) -> None:
    settings = {
        "replicas": {"every": 5, "timeout_s": 5.0, "wait_s": 20.0},
        "batches": 120,
        "epochs": 4,
        "killed": {"0": 31},
        "slow": {"0": 0.02, "1": 0.02},
        "fit": {"save": str(tmp_path / "run"), "callbacks": []},
    }
    (first, second), said = launched(tmp_path, 2, settings)
    assert [line.split()[1] for line in said] == ["0"]
    assert first["replica"]["healed"] == 1
    assert same(first, second)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name.isdigit())


def test_one_that_is_slow_holds_nobody(tmp_path: Path) -> None:
    settings = {"replicas": {"every": 5, "wait_s": 0.2}, "batches": 60, "epochs": 2, "slow": {"1": 0.2}}
    (first, second), said = launched(tmp_path, 2, settings)
    assert said == []
    assert first["minibatches"] == 60
    assert first["replica"]["missed"] > 0
    assert first["seconds"] < 30 * 0.2 + 15
    assert second is None or second["minibatches"] == 60


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"seed": 4}}, "replica 0001 has another option 'seed' than replica 0000: 4 instead of 0"),
        ({"unnormed": True}, "replica 0001 has another model than replica 0000: "),
        (
            {"replicas": {"every": 7}},
            "replica 0001 has another option 'replicas_every' than replica 0000: 7 instead of",
        ),
    ],
)
def test_one_that_would_train_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launched(tmp_path, 2, {"differs": {"1": changes}})
    assert said in one_line(caught)
    assert "run one script, one version and one set of options everywhere" in one_line(caught)


@pytest.mark.parametrize(
    "options",
    [{"every": 3}, {"every": 6, "fragments": 2, "delay": 1}],
    ids=["outer step", "late fragments"],
)
def test_every_worker_averages_its_stages_with_the_same_of_the_others(tmp_path: Path, options: dict[str, Any]) -> None:
    """At the same minibatch in every stage: as one process a replica does, whose feedback is as late."""
    settings = {
        "replicas": {**options, **TOGETHER},
        "batches": 24,
        "options": {"feedback_delay": 1, "place": [1, 2]},
    }
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    one, _ = launched(folders[0], 2, {**settings, "options": {"feedback_delay": 1}})
    two, said = launched(folders[1], 2, settings, workers=2)
    assert said == []
    for mine, its in zip(one, two, strict=True):
        assert mine["metrics"] == [pytest.approx(each, rel=1e-9) for each in its["metrics"]]
        for part in ("model", "estimators"):
            for value, other in zip(mine[part].values(), its[part].values(), strict=True):
                torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)
    assert same(*two)
    assert two[1]["replica"]["healed"] == 1
    # all that its workers have sent, each in whole blocks
    assert two[0]["replica"]["bytes_sent"] >= one[0]["replica"]["bytes_sent"]


def test_a_killed_worker_takes_its_replica_with_it_and_no_other(tmp_path: Path) -> None:
    settings = {
        "replicas": {"every": 5, "timeout_s": 5.0, "wait_s": 20.0},
        "batches": 160,
        "epochs": 4,
        "killed": {"1": 31},
        "slow": {"0": 0.03, "1": 0.03},
    }
    (first, second), said = launched(tmp_path, 2, settings, workers=2)
    assert len(said) == 1
    assert said[0].startswith("replica 1: rank 0")
    assert "killed by signal 9" in said[0]
    assert second["replica"]["healed"] == 1
    assert same(first, second)


def test_a_run_goes_on_with_another_number_of_replicas_and_workers(tmp_path: Path) -> None:
    """Also in the middle of an epoch: each goes on after what all have seen together."""
    saved = {"save": str(tmp_path / "run"), "save_every": 5, "keep": 9}
    settings = {"replicas": {"every": 3, **TOGETHER}, "batches": 24, "epochs": 1, "fit": saved}
    (first, _), said = launched(tmp_path, 2, settings, workers=2)
    assert first["minibatches"] == 12
    newest = sorted(path for path in (tmp_path / "run").iterdir() if path.name.isdigit())[-2]  # after ten of each
    again = {**settings, "batches": 24, "epochs": 2, "fit": {"resume": str(newest)}}
    found, more = launched(tmp_path, 3, again)
    assert said == more == []
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    # twenty minibatches were seen: seven of each of three, and one is left; and all of another epoch
    assert [each["minibatches"] for each in found] == [10 + 1 + 8] * 3


@contextmanager
def without_a_lighthouse(tmp_path: Path, again: bool) -> Iterator[None]:
    """Inside it the lighthouse is killed once the run has begun; `again`: whenever it is there."""
    over = threading.Event()

    def kill() -> None:
        await_(lambda: (tmp_path / "noted.0").exists())
        while not over.wait(0.01):
            for pid, command in child_processes().items():
                if "LighthouseServer" in command:
                    os.kill(pid, signal.SIGKILL)
                    if not again:
                        return

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield
    finally:
        over.set()
        killing.join()


LOST = "the lighthouse was lost; it is started again"


def test_without_a_lighthouse_each_trains_on_alone(tmp_path: Path) -> None:
    settings = {"replicas": {"every": 5}, "batches": 60, "noted": {"0": 21}, "slow": {"0": 0.01, "1": 0.01}}
    with without_a_lighthouse(tmp_path, again=True):
        (first, second), said = launched(tmp_path, 2, settings)
    assert set(said) <= {LOST}
    assert [first["minibatches"], second["minibatches"]] == [60, 60]
    assert not same(first, second)


def test_a_lighthouse_that_is_lost_is_started_again(tmp_path: Path) -> None:
    """Whoever meets there first may average alone; they are in step again when the epoch ends."""
    slow = {"0": 0.01, "1": 0.01}
    settings = {"replicas": {"every": 5, "wait_s": 20.0}, "batches": 100, "noted": {"0": 21}, "slow": slow}
    with without_a_lighthouse(tmp_path, again=False):
        (first, second), said = launched(tmp_path, 2, settings)
    assert said == [LOST]
    assert [first["minibatches"], second["minibatches"]] == [100, 100]
    for each in (first, second):  # who was healed in the middle keeps its own count of minibatches
        del each["model"]["1.num_batches_tracked"]
    assert same(first, second)
    assert first["metrics"] == second["metrics"]


def test_one_that_never_comes_is_waited_for_no_longer_than_was_said(tmp_path: Path) -> None:
    settings = {"replicas": {"every": 5, "start_wait_s": 1.0}}
    (alone,), said = launched(tmp_path, 1, settings, environment={"NUM_REPLICA_GROUPS": "2"})
    assert said == []
    assert alone["minibatches"] == 12
    assert 1.0 <= alone["seconds"] < 30.0


def test_one_that_was_killed_before_the_run_began_begins_with_the_others(tmp_path: Path) -> None:
    (first, second), said = launched(tmp_path, 2, {"replicas": {"every": 3, **TOGETHER}, "killed_early": ["1"]})
    assert len(said) == 1
    assert [first["minibatches"], second["minibatches"]] == [12, 12]
    assert same(first, second)
