"""The rivals: each computes what back-propagation in one process computes, and fails in one line."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests._support.running_workers import workers_of
from tests._support.worker_programs import lives

from syngrad import Trainer
from syngrad.compare.rivals import RIVALS, Rival, RivalRun, parse_rival, run_rival
from syngrad.compare.rivals.data_parallel import WHOLE_STEPS
from syngrad.errors import ConfigError, SyngradError, TrainingError
from syngrad.experiments import registry
from syngrad.launch.emulated_link import able, emulated, parse_link
from syngrad.replicas.options import Replicas

#: in float64, a last minibatch of 7 (of which no number of microbatches but 1 and 7 is a divisor), a loss that counts
OWN = """
import torch, torch.nn.functional as F
from torch import nn
from syngrad import Experiment
from syngrad.data import TensorBatches

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x):
        return self.one(x).tanh(), self.two(x).tanh()

class Join(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)
    def forward(self, pair):
        return self.layer(pair[0] * pair[1])

def model(pair):
    middle = [Pair(), Join()] if pair else [nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), *middle).double()

def data(batch_size, seed):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(55, 6, generator=generator, dtype=torch.float64)
    y = x[:, :3].argmax(1)
    y[::5] = -100
    return TensorBatches(x, y, batch_size=batch_size, shuffle=True, seed=seed), TensorBatches(x, y, batch_size=64)

def made(pair, **more):
    given = dict(model=lambda: model(pair), data=data, loss=F.cross_entropy, cuts=["2", "4"],
                 batch_size=16, epochs=2, name="own", optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
                 scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    given["metric"] = metric
    given["options"] = {"loss_count": lambda target: float((target != -100).sum()), "groups": {"*.bias": {"lr": 0.2}}}
    return Experiment(**{**given, **more})

def metric(output, target):
    return F.cross_entropy(output, target, reduction="sum")

metric.higher_is_better = False

def one(epochs=2):
    return made(False, epochs=epochs)

def two(epochs=2):
    return made(True, epochs=epochs)

def clipped():
    return made(False, options={"clip_norm": 1.0})

def failing():
    def loss(output, target):
        raise ValueError("no loss today\\nnor tomorrow")
    return made(False, loss=loss)

def endless():
    import time
    def loss(output, target):
        time.sleep(1000)
    return made(False, loss=loss)
"""


@pytest.fixture
def own(own_file: Callable[[str], Path]) -> str:
    return str(own_file(OWN))


def reference(experiment: str, epochs: int) -> tuple[dict[str, torch.Tensor], list[tuple[float, float, float]]]:
    """The weights and the metrics of back-propagation in one process."""
    made = registry.load(experiment, epochs=epochs)
    torch.manual_seed(0)
    model = made.model()
    train, test = made.data(made.batch_size, 0)
    trainer = Trainer(
        model,
        loss=made.loss,
        optimizer=made.optimizer,
        scheduler=made.scheduler,
        method="backprop",
        metric=made.metric,
        progress=False,
        guard=None,
        **made.options,
    )
    history = trainer.fit(train, epochs, validate=test, validate_every=1)
    return model.state_dict(), history.values()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("row", "experiment", "workers", "epochs", "tolerance"),
    [
        ("plain", "one", 1, 2, 1e-12),
        ("ddp", "one", 2, 2, 1e-12),
        ("ddp:bf16", "one", 2, 2, 0.02),
        ("gpipe", "one", 2, 2, 1e-12),
        ("1f1b", "one", 3, 2, 1e-12),
        ("gpipe", "two", 3, 1, 1e-12),
        ("gpipe:bf16", "one", 2, 2, 0.02),
        ("gpipe:int8", "two", 3, 1, 0.02),
        ("1f1b:int8", "one", 3, 2, 0.02),
        ("zb1p", "one", 2, 2, 1e-12),
        ("zb1p:bf16", "two", 3, 1, 0.02),
    ],
)
def test_what_is_trained_is_what_backpropagation_trains(
    own: str, tmp_path: Path, row: str, experiment: str, workers: int, epochs: int, tolerance: float
) -> None:
    state = tmp_path / "state"
    spec = f"{own}:{experiment}"
    found = run_rival(RivalRun(row, spec, epochs=epochs, state=str(state)), workers, timeout_s=100)
    weights, values = reference(spec, epochs)
    for name, value in load_file(state).items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=tolerance)
    assert (found["method"], found["estimator"]) == ((*row.split(":"), "")[0], (*row.split(":"), "")[1])
    assert (found["status"], found["processes"], found["optimizer"]) == ("ok", workers, "SGD")
    history = found["metric"]["history"]
    assert [point[0] for point in history] == [point[0] for point in values]
    assert [point[2] for point in history] == pytest.approx([point[2] for point in values], abs=tolerance * 50)
    seconds = [point[1] for point in history]
    assert seconds == sorted(seconds)
    assert found["train_s"] == seconds[-1] > 0
    assert found["peak_memory_bytes"] > 1e6
    if Rival(row.partition(":")[0]).pipelined:
        assert found["microbatches"] in (1, 2, 4, 8, 16)
        assert found["placement"].startswith("rank 0: input; rank 1: ")
    floats = 8
    sent = {
        "plain": 0,
        "ddp": 2 * epochs * 4 * (6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3) * floats,
        "ddp:bf16": 2 * epochs * 4 * (6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3) * 2,
    }
    if row in sent:
        assert found["bytes_sent"] == sent[row]
    elif experiment == "one":  # 55 samples an epoch, 8 features across each cut, forward and backward
        sample = {"bf16": 8 * 2, "int8": 8 + 4}.get(row.partition(":")[2], 8 * floats)
        assert found["bytes_sent"] == 2 * epochs * 55 * sample * (workers - 1)


@pytest.mark.distributed
def test_powersgd_sends_factors_of_the_gradients_after_its_first_steps(own: str, tmp_path: Path) -> None:
    """The biases go as they are."""
    Path(own).write_text(OWN)
    spec = f"{own}:one"
    found = run_rival(RivalRun("ddp:powersgd(rank=1)", spec, epochs=5), 2, timeout_s=100)
    _, values = reference(spec, 5)
    assert found["estimator"] == "powersgd(rank=1)"
    whole = 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    factors = (6 + 8) + 8 + (8 + 8) + 8 + (8 + 3) + 3
    assert found["bytes_sent"] == 2 * (WHOLE_STEPS * whole + (5 * 4 - WHOLE_STEPS) * factors) * 8
    assert found["metric"]["history"][-1][2] < 1.2 * values[-1][2] < values[0][2] * 1.2


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_diloco_is_local_steps_and_an_outer_nesterov_step(own: str, tmp_path: Path, dtype: str) -> None:
    """Held against two copies of the model in one process, each of which takes every other minibatch."""
    state, spec = tmp_path / "state", f"{own}:one"
    row = f"diloco(every=2, rate=0.5, momentum=0.6, dtype={dtype})"
    found = run_rival(RivalRun(row, spec, epochs=2, state=str(state)), 2, timeout_s=100)
    made = registry.load(spec, epochs=2)
    torch.manual_seed(0)
    copies = [made.model()]
    copies.append(copy.deepcopy(copies[0]))
    optimizers = [torch.optim.SGD(parameter_groups(each), 0.1, momentum=0.9) for each in copies]
    start = [p.detach().clone() for p in copies[0].parameters()]
    velocity = [torch.zeros_like(p) for p in start]
    train, _ = made.data(made.batch_size, 0)
    for seen, (x, y) in enumerate(batch for _ in range(2) for batch in train):
        if seen == 4:  # the schedule, once an epoch
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] /= 2
        model, optimizer = copies[seen % 2], optimizers[seen % 2]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if seen % 4 != 3:
            continue
        for k, both in enumerate(zip(*(each.parameters() for each in copies), strict=True)):
            delta = start[k] - (both[0].detach() + both[1].detach()) / 2
            velocity[k] = 0.6 * velocity[k] + delta
            start[k] = start[k] - 0.5 * (delta + 0.6 * velocity[k])
            for p in both:
                p.data.copy_(start[k])
    tolerance = 1e-12 if dtype == "float32" else 2e-3
    weights = dict(copies[0].named_parameters())
    for name, value in load_file(state).items():
        torch.testing.assert_close(value, weights[name].detach(), rtol=0, atol=tolerance)
    assert found["method"] == "diloco"
    block, averagings = 256, 2  # the few weights that there are fill one block a worker
    assert found["bytes_sent"] == averagings * 2 * 2 * (block * 8 if dtype == "float32" else block + 4)


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    return [{"params": others}, {"params": biases, "lr": 0.2}]


@pytest.mark.distributed
def test_periodic_averaging_averages(own: str, tmp_path: Path) -> None:
    """After one step from equal weights the average of the models is what one step of the whole minibatch gives."""
    state = tmp_path / "state"
    text = OWN.replace("randn(55,", "randn(16,").replace("y[::5] = -100", "").replace("momentum=0.9", "momentum=0.0")
    Path(own).write_text(text)
    spec = f"{own}:one"
    found = run_rival(RivalRun("ddp:periodic(every=3)", spec, epochs=1, state=str(state)), 2, timeout_s=100)
    weights, _ = reference(spec, 1)
    for name, value in load_file(state).items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-12)
    assert found["estimator"] == "periodic(every=3)"


@pytest.mark.distributed
@pytest.mark.parametrize(("row", "workers"), [("ddp:periodic", 2), ("1f1b", 2)])
def test_a_number_of_minibatches_is_timed(own: str, row: str, workers: int) -> None:
    found = run_rival(RivalRun(row, f"{own}:one", minibatches=14), workers, timeout_s=100)
    assert found["samples_per_s"] > 0
    assert found["train_s"] > 0
    assert found["metric"]["history"] == []
    assert found["bytes_sent"] > 0


@pytest.mark.distributed
def test_microbatches_are_not_tried_where_they_are_given(own: str) -> None:
    found = run_rival(RivalRun("gpipe", f"{own}:one", microbatches=8, minibatches=7, warm_up=2), 2, timeout_s=100)
    assert found["microbatches"] == 8
    assert found["bytes_sent"] == 2 * 7 * 16 * 8 * 8  # of the minibatches that are timed alone, 8 floats a sample


@pytest.mark.distributed
def test_a_run_ends_when_it_has_reached_its_target(own: str) -> None:
    whole = run_rival(RivalRun("plain", f"{own}:one", epochs=2), 1, timeout_s=100)["metric"]["history"]
    target = whole[2][2]
    found = run_rival(RivalRun("ddp", f"{own}:one", epochs=2, target=target + 1e-9), 2, timeout_s=100)
    reached = next(index for index, point in enumerate(whole) if point[2] <= target + 1e-9)
    assert [point[0] for point in found["metric"]["history"]] == [point[0] for point in whole[: reached + 1]]


@pytest.mark.skipif(not able(), reason="needs root, /dev/net/tun and ip")
@pytest.mark.distributed
def test_a_run_between_two_hosts_stops_when_its_time_is_over(own: str) -> None:
    with emulated(parse_link("5ms,100mbit")) as pair:
        found = run_rival(RivalRun("gpipe", f"{own}:one", epochs=50, most_s=1e-9), 2, pair, timeout_s=100)
    ((epoch, seconds, _),) = found["metric"]["history"]
    assert epoch == 0.25  # where it was first validated
    assert found["train_s"] == seconds >= 0.01  # every minibatch goes there and back


@pytest.mark.distributed
def test_a_failing_worker_is_reported_in_one_line(own: str) -> None:
    with pytest.raises(TrainingError) as error:
        run_rival(RivalRun("ddp", f"{own}:failing"), 2, timeout_s=100)
    assert str(error.value) == "row 'ddp' over 2 workers: process 0 failed: ValueError: no loss today"


@pytest.mark.distributed
def test_a_run_that_takes_too_long_is_ended(own: str) -> None:
    with pytest.raises(TrainingError, match="row 'plain' did not end within 3 s"):
        run_rival(RivalRun("plain", f"{own}:endless"), 1, timeout_s=3)


@pytest.mark.distributed
def test_a_killed_worker_ends_the_run(own: str) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            workers = [pid for pid, rank in workers_of(os.getpid()).items() if rank == 1]
            if workers:
                time.sleep(1)  # most likely while it trains
                os.kill(workers[0], signal.SIGKILL)
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(TrainingError, match="process 1 failed: it was ended by signal 9"):
            run_rival(RivalRun("ddp", f"{own}:endless"), 2, timeout_s=100)
    finally:
        killer.join()
    assert workers_of(os.getpid()) == {}


@pytest.mark.distributed
def test_no_worker_outlives_the_one_that_started_it(own: str) -> None:
    text = f"""
from syngrad.compare.rivals import RivalRun, run_rival
run_rival(RivalRun("ddp", "{own}:endless"), 2)
"""
    starter = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.DEVNULL)
    try:
        _until(lambda: len(workers_of(starter.pid)) == 2)
        workers = list(workers_of(starter.pid))
        time.sleep(1)
    finally:
        starter.kill()
        starter.wait()
    _until(lambda: not any(map(lives, workers)))


@pytest.mark.parametrize(
    ("row", "workers", "more", "said"),
    [
        ("ddp", 3, {}, "row 'ddp': a batch of 16 does not divide over 3 workers; give --batch-size 15"),
        ("gpipe", 4, {}, "row 'gpipe' over 4 workers needs as many stages, and experiment 'own' has 3"),
        ("1f1b", 1, {}, "row '1f1b' needs at least 2 workers, got 1"),
        ("plain", 2, {}, "row 'plain' is one process, got workers=2"),
        ("1f1b", 3, {"place": ["2"]}, "1 places part the model into 2, and there are 3 workers; name 2"),
        ("ddp:fp8", 2, {}, "unknown row 'ddp:fp8'; did you mean 'ddp:bf16'?"),
        ("ddp", 2, {"minibatches": 0}, "minibatches must be a whole number of at least 1"),
        ("gpipe", 2, {"microbatches": 3}, "a batch of 16 does not divide into 3 microbatches"),
        ("1f1b", 2, {"microbatches": 1}, "row '1f1b' over 2 workers needs as many microbatches, got 1"),
    ],
)
def test_what_cannot_run_is_refused_beforehand(
    own: str, row: str, workers: int, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        run_rival(RivalRun(row, f"{own}:one", **more), workers)
    assert said in str(error.value)


def test_an_option_that_rivals_do_not_know_is_refused(own: str) -> None:
    with pytest.raises(SyngradError, match=r"option clip_norm=1\.0, which the rows of exact rivals do not know"):
        run_rival(RivalRun("plain", f"{own}:clipped"), 1)


def test_rows_are_read_and_shown() -> None:
    assert [str(parse_rival(row)) for row in RIVALS] == list(RIVALS)
    assert parse_rival(" DDP:periodic(every = 16) ") == Rival("ddp", "periodic", {"every": 16})
    assert str(parse_rival("ddp:periodic(every=16)")) == "ddp:periodic(every=16)"
    assert str(parse_rival("ddp:periodic(every=8)")) == "ddp:periodic"
    assert parse_rival("ddp:powersgd(rank=2)") == Rival("ddp", "powersgd", {"rank": 2})
    assert str(parse_rival("ddp:powersgd(rank=2)")) == "ddp:powersgd(rank=2)"
    row = "diloco(every=64, dtype=int8)"
    assert str(parse_rival("diloco(every = 64,rate=0.7, dtype=INT8)")) == row
    assert parse_rival(row).replicas() == Replicas(every=64, dtype="int8")
    for text, said in (
        ("diloco(dtype=int4)", "dtype must be one of 'float32', 'bfloat16', 'int8', got 'int4'"),
        ("diloco(every=10, fragments=3)", "every=10 minibatches cannot be divided among fragments=3 turns"),
        ("diloco(every=ten)", "every must be a whole number of at least 1, got 'ten'"),
        ("diloco(64)", "cannot read its option '64'; write diloco(every=100"),
        ("diloco(every=64, every=32)", "cannot read its option 'every=32'"),
        ("ddp(every=3)", "it takes none; write ddp"),
        ("ddp:periodic(often=3)", "write ddp:periodic"),
        ("ddp:periodic(every=1)", "every must be a whole number of at least 2"),
        ("", "unknown row"),
    ):
        with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
            parse_rival(text)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
