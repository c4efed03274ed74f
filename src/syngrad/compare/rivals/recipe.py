"""What every rival is made of: an experiment as a loop written by hand needs it, and the other workers of its run.

The experiment's part is model, minibatches, loss, optimiser, schedule and validation.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syngrad import metrics
from syngrad.compare.rivals.rival_row import Rival
from syngrad.core.batch import Batch, batches, read, unpack
from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, TrainingError
from syngrad.experiments.experiment import Experiment
from syngrad.optim.groups import make_optimizer, make_scheduler, matches, names_of, parameter_groups
from syngrad.partition import Segment
from syngrad.runtime.evaluation import evaluate
from syngrad.runtime.precision import Precision
from syngrad.tree import map_tensors, tensors

#: options of the Trainer that change what any row computes, and that the rivals have no answer to
UNSUPPORTED = ("autocast", "clip_norm", "device")


class GlooGroup:
    """This worker, of `rank` 0 … `size` − 1, among the others. One alone needs no others and starts nothing."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the worker that measures and writes."""
        return self.rank == 0

    @classmethod
    def join(cls, timeout_s: float = 600.0) -> GlooGroup:
        """Meet the others as torchrun's environment says; over gloo, whose interface GLOO_SOCKET_IFNAME names."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
        return cls(dist.get_rank(), size)

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, value: Any) -> Any:
        """What the first one says, plain data."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def all(self, value: Any) -> list[Any]:
        """What each one says, in their order, on every rank."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, value)
        return said

    def first_two(self) -> Any:
        """A process group of the first two workers alone; every worker has to ask for it."""
        return dist.new_group([0, 1])

    def there_and_back(self, tensor: Tensor) -> None:
        """Send a tensor from the first one to the second, which sends it back; the others take no part."""
        for sender in (0, 1):
            if self.rank == sender:
                dist.send(tensor, 1 - sender)
            elif self.rank == 1 - sender:
                dist.recv(tensor, sender)

    def bring(self, owned: Sequence[tuple[int, Tensor]]) -> None:
        """Bring tensors to the first one: (who has it, the tensor), the same list on every rank."""
        with torch.no_grad():
            for owner, tensor in owned:
                if owner == 0 or self.rank not in (0, owner):
                    continue
                whole = tensor.detach().contiguous()
                if self.rank == owner:
                    dist.send(whole, 0)
                else:
                    dist.recv(whole, owner)
                    if whole.data_ptr() != tensor.data_ptr():
                        tensor.copy_(whole)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its mean over all."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)


class Recipe:
    """What all rivals are made of. The model is made as the Trainer's is, from the same seed.

    Raises:
        ConfigError: An option that a rival would have to follow and cannot.
    """

    def __init__(self, experiment: Experiment, seed: int) -> None:
        options = experiment.options
        for name in UNSUPPORTED:
            if options.get(name) is not None:
                raise ConfigError(
                    f"experiment {experiment.name!r} has option {name}={options[name]!r:.30}, which the rows of exact "
                    "rivals do not know; leave it or them out"
                )
        self.experiment, self.seed = experiment, seed
        torch.manual_seed(seed)
        self.model: nn.Module = experiment.model()
        self.train, self.test = experiment.data(experiment.batch_size, seed)
        self.metric = metrics.resolve(experiment.metric)
        self.read = functools.partial(
            read, unpack_with=options.get("unpack", unpack), count=options.get("loss_count"), device=None
        )
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if any(matches(name, pattern) for pattern in options.get("freeze", ())):
                parameter.requires_grad_(False)
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.by_step = options.get("scheduler_every", "epoch") == "step"

    def batches(self) -> Iterator[Batch]:
        """One epoch."""
        return (self.read(raw) for raw in batches(self.train))

    def endless(self) -> Iterator[Batch]:
        """Epoch after epoch, of full minibatches alone."""
        while True:
            count = 0
            for batch in self.batches():
                if batch.size == self.experiment.batch_size:
                    count += 1
                    yield batch
            if not count:
                raise TrainingError(
                    f"experiment {self.experiment.name!r}: the training loader yields no batch of "
                    f"{self.experiment.batch_size}"
                )

    def own(self, segments: Sequence[Segment]) -> None:
        """Make the optimiser, and its schedule, of the parameters that this process trains."""
        stages = [Stage(segment.name, segment, None, 0, torch.device("cpu")) for segment in segments]
        groups: Mapping[str, Any] = self.experiment.options.get("groups") or {}
        made = parameter_groups(stages, names_of(self.model), groups)
        self.optimizer = make_optimizer(self.experiment.optimizer, made)
        if self.experiment.scheduler is not None:
            self.scheduler = make_scheduler(self.experiment.scheduler, self.optimizer)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "ReduceLROnPlateau looks at a loss that not every process of a rival has; take another schedule"
            )

    def update(self, after: Callable[[], None] | None = None) -> None:
        """Step, call `after`, and forget the gradients."""
        assert self.optimizer is not None
        self.optimizer.step()
        if after is not None:
            after()
        self.optimizer.zero_grad(set_to_none=True)
        if self.by_step and self.scheduler is not None:
            self.scheduler.step()

    def end_epoch(self) -> None:
        """Step a schedule that goes by epochs."""
        if not self.by_step and self.scheduler is not None:
            self.scheduler.step()

    def loss(self, output: Any, part: Batch, whole: Batch) -> Tensor:
        """A part's share of the whole minibatch's mean loss: over all parts the shares add up to it."""
        if part is whole:
            return self.experiment.loss(output, part.target)
        return self.share(output, part.target, part.size, whole.scale)

    def share(self, output: Any, target: Any, size: int, scale: float) -> Tensor:
        """The share that `size` samples have in the mean loss of a minibatch of this scale."""
        count = self.experiment.options.get("loss_count")
        number = float(size if count is None else count(target))
        if number == 0:  # padding alone, say, of which there is no mean
            return torch.stack([leaf.sum() for leaf in tensors(output) if leaf.requires_grad]).sum() * 0.0
        return self.experiment.loss(output, target) * (number * scale)

    def validate(self) -> float:
        """The metric, or the loss where there is none, of the model on the test data."""
        found = evaluate(self.model, self.test, self.read, self.experiment.loss, self.metric, Precision(None))
        return found[self.metric[0] if self.metric is not None else "loss"]


class RivalWorker(ABC):
    """One rival at work in one process.

    `sent_bytes` counts tensors' contents that all workers together have sent for training so far, as the algorithms
    move them, without headers; `microbatches` and `placement` are for the row, None where there are none.
    """

    microbatches: int | None = None
    placement: str | None = None

    def __init__(self, rival: Rival, recipe: Recipe, group: GlooGroup) -> None:
        self.rival, self.recipe, self.group = rival, recipe, group
        self.sent_bytes = 0

    def prepare(self, batch: Batch) -> None:
        """Whatever is to be chosen or built beforehand, with a full minibatch as the example."""
        return

    @abstractmethod
    def step(self, batch: Batch) -> None:
        """Train on one minibatch, of which this worker uses its own share."""

    @abstractmethod
    def collect(self) -> None:
        """See to it that the first worker's model is the trained one, for validation; training is not changed."""

    def release(self) -> None:
        """Put back what :meth:`collect` has moved, and go on training."""
        return


def part_of(batch: Batch, index: int, parts: int) -> Batch | None:
    """The share of one worker: consecutive samples, as many as the others' or one fewer; None for no sample.

    Its scale stays the whole minibatch's.
    """
    if parts == 1:
        return batch
    start, end = (k * batch.size // parts for k in (index, index + 1))
    if start == end:
        return None

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:end] if tensor.dim() and tensor.shape[0] == batch.size else tensor

    args, kwargs, target = (map_tensors(cut, each) for each in (batch.args, batch.kwargs, batch.target))
    return Batch(args, kwargs, target, batch.scale, end - start)
