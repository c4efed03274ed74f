"""What a plan is computed from: plain numbers of a model, a machine and a link, as measured or as written by hand.

All of it goes into JSON and comes out of it as it was, so that a plan can be repeated without the machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from syngrad.errors import ConfigError

#: the form in which messages travel → bytes a value of float32 has in it
DTYPES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}


@dataclass(frozen=True)
class Unit:
    """A part of the model that is not cut further. Seconds are of a whole minibatch, by one thread.

    Args:
        name: the module that starts it; "input" for the first.
        forward_s: of its forward pass; backward_s: of its backward pass, the gradient of its input included.
        input_gradient_s: of that, what the gradient of its input takes.
        fixed_forward_s: of the forward pass, what does not shrink with the batch; fixed_backward_s: likewise.
        parameters: how many tensors it trains; parameter_bytes: of these.
        optimizer_s: what the optimiser takes for them; optimizer_bytes: what it keeps.
        activation_bytes: what autograd keeps of a minibatch until its backward pass is over.
        message_bytes: of the differentiable leaves that go on to the next unit, a minibatch; 0 after the last one.
        context_bytes: of what travels with them as it is (labels, masks).
        row_bytes: of a row of the message, for which int8 keeps a scale.
        shared_bytes: of the parameters that it, or a unit before it, has in common with a later one.
        low_rank_bytes: of what PowerSGD of rank 4 sends of its gradients.
    """

    name: str
    forward_s: float
    backward_s: float
    input_gradient_s: float = 0.0
    fixed_forward_s: float = 0.0
    fixed_backward_s: float = 0.0
    parameters: int = 1
    parameter_bytes: int = 0
    optimizer_s: float = 0.0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    message_bytes: int = 0
    context_bytes: int = 0
    row_bytes: int = 4
    shared_bytes: int = 0
    low_rank_bytes: int = 0


@dataclass(frozen=True)
class Estimates:
    """What an estimator at the cut after a unit costs; seconds of a whole minibatch, by one thread.

    Args:
        estimate_s: of an estimate; fit_s: of a fit to what comes back.
        every: feedback is asked for on every n-th minibatch; 0 where nothing comes back.
        parameter_bytes: of what is trained; optimizer_s: what the optimiser takes for it; optimizer_bytes: what it
            keeps.
        saved_bytes: the most that is kept within an estimate or a fit.
    """

    estimate_s: float
    fit_s: float = 0.0
    every: int = 0
    parameter_bytes: int = 0
    optimizer_s: float = 0.0
    optimizer_bytes: int = 0
    saved_bytes: int = 0


@dataclass(frozen=True)
class Profile:
    """A user's model with its data, loss and optimiser.

    Args:
        name: of the experiment.
        batch_size: samples of a minibatch.
        units: in the order of execution.
        estimates: an estimator's name → what it costs at the cut after each unit but the last; None where it cannot
            stand there.
        cuts: the units that start a stage where the experiment says so itself; none: it does not.
        reading_s: seconds to read a minibatch.
        step_s: of a whole step of back-propagation in one process, one thread; threads_s: with all of them; 0: not
            measured.
        overhead_s: what Syngrad adds to a stage's step beside the estimator.
        low_rank_s: what PowerSGD of rank 4 computes for the whole model.
        base_bytes: of a process before it holds any of this.
        others: the share of the cores that others used before it was measured.
        spread: how much longer the middle one of the timed steps took than a quick one; 0.1 is 10 %.
    """

    name: str
    batch_size: int
    units: tuple[Unit, ...]
    estimates: Mapping[str, tuple[Estimates | None, ...]] = field(default_factory=dict)
    cuts: tuple[int, ...] = ()
    reading_s: float = 0.0
    step_s: float = 0.0
    threads_s: float = 0.0
    overhead_s: float = 0.0
    low_rank_s: float = 0.0
    base_bytes: int = 0
    spread: float = 0.0
    others: float = 0.0

    def __post_init__(self) -> None:
        if not self.units:
            raise ConfigError(f"profile {self.name!r} has no unit; measure it anew")
        for name, each in self.estimates.items():
            if len(each) != len(self.units) - 1:
                raise ConfigError(
                    f"profile {self.name!r}: estimator {name!r} has {len(each)} costs for {len(self.units) - 1} cuts; "
                    "measure it anew"
                )

    @property
    def parameter_bytes(self) -> int:
        """Of the whole model."""
        return sum(unit.parameter_bytes for unit in self.units)


@dataclass(frozen=True)
class Linear:
    """Seconds that are a fixed time and so much more a byte.

    Args:
        fixed_s: however little it is.
        byte_s: for every byte.
    """

    fixed_s: float = 0.0
    byte_s: float = 0.0

    def __call__(self, size: float) -> float:
        """Seconds of so many bytes."""
        return self.fixed_s + self.byte_s * size


_NOTHING = Linear()


@dataclass(frozen=True)
class Machine:
    """One machine, as several processes on it see it.

    Args:
        cores: that it has.
        busy: what a step takes while another process computes too, in multiples of what it takes alone.
        message: from one process here to another over Syngrad's own link.
        exchange: the same over gloo, as PyTorch's pipelines send.
        all_reduce: of a tensor of so many bytes over gloo, two processes here.
        copy: of so many bytes from one place in memory to another.
        action_s: what PyTorch's pipelines add to every pass of a part through a worker.
        pack: a message's form → what it takes to bring a byte of float32 into it and back.
    """

    cores: int = 1
    busy: float = 1.0
    message: Linear = _NOTHING
    exchange: Linear = _NOTHING
    all_reduce: Linear = _NOTHING
    copy: Linear = _NOTHING
    action_s: float = 0.0
    pack: Mapping[str, Linear] = field(default_factory=dict)

    def slowdown(self, processes: int) -> float:
        """What a step takes with so many processes computing here, in multiples of what it takes alone."""
        return 1.0 if processes <= 1 else self.busy * max(1.0, processes / self.cores)


@dataclass(frozen=True)
class Link:
    """What lies between two hosts, each direction for itself.

    Args:
        delay_s: seconds from one end to the other.
        bytes_per_s: in each direction.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf

    def seconds(self, size: float) -> float:
        """How long so many bytes hold it."""
        return size / self.bytes_per_s


#: a class by the name of the field it stands in, where that is no plain number
_NESTED: dict[str, Any] = {"message": Linear, "exchange": Linear, "all_reduce": Linear, "copy": Linear}


def to_json(kept: Profile | Machine | Link) -> str:
    """As JSON, which `profile_of` and `machine_of` read once it is parsed; an endless rate is left out."""
    plain = dataclasses.asdict(kept)
    return json.dumps({name: value for name, value in plain.items() if value != math.inf}, indent=1)


def profile_of(plain: Mapping[str, Any]) -> Profile:
    """A profile from the mapping that its JSON holds.

    Raises:
        ConfigError: where it is none of this version's.
    """
    try:
        estimates = {
            name: tuple(None if each is None else Estimates(**each) for each in costs)
            for name, costs in plain.get("estimates", {}).items()
        }
        units = tuple(Unit(**unit) for unit in plain["units"])
        rest = {name: value for name, value in plain.items() if name not in ("units", "estimates", "cuts")}
        return Profile(**rest, units=units, estimates=estimates, cuts=tuple(plain.get("cuts", ())))
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"this profile is none of this version ({error}); measure it anew") from error


def machine_of(plain: Mapping[str, Any]) -> Machine:
    """A machine from the mapping that its JSON holds.

    Raises:
        ConfigError: where it is none of this version's.
    """
    try:
        made = {name: _NESTED[name](**value) if name in _NESTED else value for name, value in plain.items()}
        made["pack"] = {name: Linear(**value) for name, value in plain.get("pack", {}).items()}
        return Machine(**made)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"these figures of a machine are none of this version ({error}); measure it anew") from error
