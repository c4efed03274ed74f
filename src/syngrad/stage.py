"""A stage: a contiguous part of the model, its interface to the next, its randomness and its optimiser.

This is the only place where a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.interface import Interface

OptimizerFactory: TypeAlias = Callable[[Any], torch.optim.Optimizer]

SCOPES = ("model", "stage")


class Randomness:
    """A generator state of a stage's own, swapped in around its forward (about 2 µs).

    Dropout then draws the same numbers in whatever order and whatever process the stages run.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.state = torch.Generator().manual_seed(seed).get_state()
        self.device_state: Tensor | None = None
        if device.type == "cuda":
            self.device_state = torch.Generator(device).manual_seed(seed).get_state()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The default generators hold this stage's state inside, and their own again outside."""
        outside = torch.default_generator.get_state()
        outside_device = torch.cuda.get_rng_state(self.device) if self.device_state is not None else None
        torch.default_generator.set_state(self.state)
        if self.device_state is not None:
            torch.cuda.set_rng_state(self.device_state, self.device)
        try:
            yield
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(outside)
            if outside_device is not None:
                self.device_state = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(outside_device, self.device)


class Stage:
    """One segment of the model at work: runs forward, and updates.

    segment: the user's own modules. interface: to the next stage, None for the last. seed: of its dropout.
    """

    def __init__(self, name: str, segment: nn.Module, interface: Interface | None, seed: int, device: torch.device):
        self.name, self.segment, self.interface = name, segment, interface
        # frozen ones too: they may be trained later, and until then an optimiser passes them over
        self.parameters = list(segment.parameters())
        self.randomness = Randomness(seed, device)

    @property
    def estimator_parameters(self) -> list[nn.Parameter]:
        """Those of the interface that this stage sends through."""
        return [p for p in self.interface.parameters() if p.requires_grad] if self.interface is not None else []

    def run(self, *args: Any, stash: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        """The forward pass with this stage's own randomness; `stash` stands in for the parameters if given.

        What the model itself raises comes out as a TrainingError naming the stage.
        """
        with self.randomness.swapped():
            try:
                if stash is not None:
                    return torch.func.functional_call(self.segment, stash, args, kwargs)
                return self.segment(*args, **kwargs)
            except SyngradError:
                raise
            except Exception as error:
                hint = ""
                if "more than 1 value per channel" in str(error):
                    hint = "; a batch of one cannot be batch-normalised: use drop_last=True or another batch size"
                raise TrainingError(f"stage {self.name!r} raised {first_line(error)}{hint}") from error


class Updates:
    """The optimisers, and the steps they take.

    factory: parameter groups → optimiser; stage and estimator are two groups of one optimiser. scope: "stage" makes one
    optimiser a stage, "model" one for all, which is faster and numerically the same for every optimiser that acts
    parameter by parameter. scheduler: optimiser → scheduler, one an optimiser.
    """

    def __init__(
        self,
        stages: list[Stage],
        factory: OptimizerFactory,
        scope: str,
        estimator_lr: float,
        scheduler: Callable[[Any], Any] | None = None,
    ) -> None:
        parts = [[stage] for stage in stages] if scope == "stage" else [stages]
        groups = [found for found in map(parameter_groups, parts) if found]
        if not any(p.requires_grad for stage in stages for p in stage.parameters):
            raise ConfigError("there is nothing to train: no parameter of the model requires a gradient")
        self.optimizers = [make_optimizer(factory, found) for found in groups]
        self.schedulers = [make_scheduler(scheduler, optimizer) for optimizer in self.optimizers] if scheduler else []
        for index, optimizer in enumerate(self.optimizers):
            scale_rates(optimizer, self.schedulers[index] if self.schedulers else None, estimator_lr)
        self._parameters = [
            [p for group in optimizer.param_groups for p in group["params"]] for optimizer in self.optimizers
        ]

    def step(self, index: int = 0) -> None:
        """Apply what has gathered in `.grad` and clear it: stage `index`'s, or, with scope "model", everybody's."""
        self.optimizers[index].step()
        self.clear(index)
        torch.clear_autocast_cache()  # it holds casts of the weights as they were

    def step_all(self) -> None:
        """Every optimiser once."""
        for index in range(len(self.optimizers)):
            self.step(index)

    def clear(self, index: int = 0) -> None:
        """Forget gathered gradients."""
        for parameter in self._parameters[index]:
            parameter.grad = None

    def clear_all(self) -> None:
        """Forget all gathered gradients, as after an interrupted step."""
        for index in range(len(self.optimizers)):
            self.clear(index)


def parameter_groups(stages: list[Stage]) -> list[dict[str, Any]]:
    """The weights of some stages as one group, and their estimators' as one group a learning rate."""
    weights = [p for stage in stages for p in stage.parameters]
    groups: list[dict[str, Any]] = [{"params": weights, "name": "weights"}] if weights else []
    by_rate: dict[float, list[nn.Parameter]] = {}
    for stage in stages:
        for estimator in stage.interface.heads if stage.interface is not None else []:
            found = [p for p in estimator.parameters() if p.requires_grad]
            if found:
                by_rate.setdefault(float(estimator.learning_rate), []).extend(found)
    for rate, parameters in by_rate.items():
        groups.append({"params": parameters, "name": f"estimators ×{rate:g}", "estimator_scale": rate})
    return groups


def make_optimizer(factory: OptimizerFactory, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Call the user's factory; what it raises or returns amiss becomes one clear line."""
    if isinstance(factory, torch.optim.Optimizer) or not callable(factory):
        raise ConfigError(
            f"optimizer must be a function of parameters, got {type(factory).__name__}; "
            "write optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        )
    try:
        optimizer = factory(groups)
    except Exception as error:
        raise ConfigError(f"the optimizer could not be made: {first_line(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer= must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS needs the loss evaluated again within a step, which stages cannot do; use Adam or SGD")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = sum(id(p) not in held for group in groups for p in group["params"])
    if lost:
        raise ConfigError(
            f"the optimizer left out {lost} of the parameters it was given, estimators' among them maybe, which would "
            "never train; build it from its argument: optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        )
    return optimizer


def make_scheduler(factory: Callable[[Any], Any], optimizer: torch.optim.Optimizer) -> Any:
    """Call the user's factory of schedulers; what it raises becomes one clear line."""
    try:
        return factory(optimizer)
    except Exception as error:
        raise ConfigError(f"the scheduler could not be made: {first_line(error)}") from error


def scale_rates(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the estimators' learning rates, and what a scheduler has noted of them, by their own factors."""
    for index, group in enumerate(optimizer.param_groups):
        scale = group.get("estimator_scale", 1.0) * factor if "estimator_scale" in group else 1.0
        if scale == 1.0:
            continue
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                group[key] = group[key] * scale
        for one in [scheduler, *getattr(scheduler, "_schedulers", [])]:
            for noted in ("base_lrs", "max_lrs", "min_lrs"):
                rates = getattr(one, noted, None)
                if isinstance(rates, list) and index < len(rates):
                    rates[index] = rates[index] * scale
