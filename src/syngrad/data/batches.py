"""A loader over tensors that are in memory already.

`torch.utils.data.DataLoader` fetches sample by sample and collates them; for a set that is a few tensors that costs
more than a small network's step does. Here a minibatch is one `index_select` a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from syngrad.checks import whole
from syngrad.errors import ConfigError


class TensorBatches:
    """Minibatches of tensors that share their first dimension, in an order of the loader's own.

    Each `for` over it is one epoch, and each epoch draws a new order from the loader's generator: neither the global
    generator nor anything else that draws numbers moves it, so two processes with the same seed see the same
    minibatches. The batches are copies: changing one in place leaves the set as it was.

    Its place in the data can be saved between any two minibatches. After `load_state_dict` the next `for` goes on with
    the epoch where it stood; an epoch whose last minibatch had been handed out goes on with none.

    Args:
        tensors: one or more, on one device, each `(n, ...)`. A minibatch is a tuple with a piece of each.
        batch_size: samples a minibatch; the last of an epoch may have fewer.
        shuffle: draw an order each epoch, or keep the given one.
        seed: of the loader's own generator; 0 unless given.
        generator: a CPU generator to draw from instead of one made from `seed`.
        drop_last: leave a last minibatch of fewer samples out.

    Raises:
        ConfigError: no tensors, an empty one, unequal lengths, a batch size below 1, or not one full minibatch where
            `drop_last` asks for full ones.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> None:
        self._length = _common_length(tensors)
        size = whole(batch_size)
        if size is None or size < 1:
            raise ConfigError(f"batch_size={batch_size!r}: give the samples of a minibatch, a whole number from 1 up")
        if seed is not None and whole(seed) is None:
            raise ConfigError(f"seed={seed!r}: give a whole number")
        if drop_last and size > self._length:
            raise ConfigError(
                f"batch_size={size} with drop_last=True leaves no minibatch of {self._length} samples; "
                "give a smaller batch_size, or drop_last=False"
            )
        if generator is not None and seed is not None:
            raise ConfigError(f"both seed={seed} and a generator were given; give one of them")
        if generator is not None and generator.device.type != "cpu":
            raise ConfigError(f"the generator is on {generator.device}; the order is drawn on the CPU: give a CPU one")
        self.tensors = tensors
        self.batch_size = size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._generator = torch.Generator().manual_seed(whole(seed) or 0) if generator is None else generator
        # Of the epoch under way: the generator before its order was drawn, and how many minibatches were handed out.
        # None between epochs. A new `for` replaces it, and an abandoned iterator then moves nothing.
        self._epoch: _Epoch | None = None
        self._resume_at = 0

    @property
    def samples(self) -> int:
        """How many samples one epoch hands out: all, or with `drop_last` those of full minibatches."""
        return len(self) * self.batch_size if self.drop_last else self._length

    def __len__(self) -> int:
        """How many minibatches one epoch has."""
        full, rest = divmod(self._length, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, or what is left of the one that was loaded."""
        epoch = self._epoch = _Epoch(self._generator.get_state(), self._resume_at)
        self._resume_at = 0
        device = self.tensors[0].device
        # The order is drawn here and not with the first minibatch: epochs begin in the order of their iter() calls.
        order = torch.randperm(self._length, generator=self._generator).to(device) if self.shuffle else None
        return self._deliver(epoch, order)

    def _deliver(self, epoch: _Epoch, order: Tensor | None) -> Iterator[tuple[Tensor, ...]]:
        for index in range(epoch.delivered, len(self)):
            start = index * self.batch_size
            stop = min(start + self.batch_size, self._length)
            if order is None:
                batch = tuple(tensor[start:stop].clone() for tensor in self.tensors)
            else:
                batch = tuple(tensor.index_select(0, order[start:stop]) for tensor in self.tensors)
            epoch.delivered = index + 1
            yield batch
        if self._epoch is epoch:
            self._epoch = None

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, in any epoch and between any two minibatches.

        `generator` is its state as the epoch began, `index` the minibatches handed out of that epoch; the rest is there
        to refuse the state of another set. Tensors and numbers only, so that `torch.load(weights_only=True)` reads it.
        """
        if self._epoch is None:
            generator, index = self._generator.get_state(), self._resume_at
        else:
            generator, index = self._epoch.generator.clone(), self._epoch.delivered
        return {"generator": generator, "index": index} | self._identity()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was taken; the next `for` hands out what followed.

        Raises:
            ConfigError: the state is of another set or batch size, or is not a loader's.
        """
        identity = self._identity()
        missing = [key for key in ("generator", "index", *identity) if key not in state]
        if missing:
            raise ConfigError(f"this is not the state of a TensorBatches: it has no {', '.join(missing)}")
        for key, own in identity.items():
            if state[key] != own:
                raise ConfigError(
                    f"the saved place in the data has {key}={state[key]}, this loader {own}; make them equal"
                )
        index = int(state["index"])
        if not 0 <= index <= len(self):
            raise ConfigError(f"the saved place is after minibatch {index}, but an epoch has {len(self)}")
        generator = state["generator"]
        own_state = self._generator.get_state()
        if (
            not isinstance(generator, Tensor)
            or generator.dtype != own_state.dtype
            or generator.shape != own_state.shape
        ):
            raise ConfigError("the saved place in the data has no CPU generator's state under 'generator'")
        self._generator.set_state(generator.cpu())
        self._epoch = None
        self._resume_at = index

    def _identity(self) -> dict[str, int | bool]:
        """What has to be the same for a saved place to mean the same samples."""
        return {"length": self._length, "batch_size": self.batch_size, "shuffle": self.shuffle}


class _Epoch:
    """One epoch under way."""

    def __init__(self, generator: Tensor, delivered: int) -> None:
        self.generator = generator
        self.delivered = delivered


def _common_length(tensors: tuple[Tensor, ...]) -> int:
    if not tensors:
        raise ConfigError("TensorBatches was given no tensors; give inputs and targets, as in TensorBatches(x, y, ...)")
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise ConfigError(
                f"TensorBatches takes tensors; argument {position} is a {type(tensor).__name__}: use torch.as_tensor"
            )
        if tensor.dim() == 0:
            raise ConfigError(
                f"TensorBatches needs a first dimension to cut, but argument {position} is a scalar tensor"
            )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ConfigError(f"the tensors have first dimensions {', '.join(map(str, lengths))}; they must be equal")
    if lengths[0] == 0:
        raise ConfigError("the tensors are empty: their first dimension is 0")
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ConfigError(f"the tensors are on {' and '.join(devices)}; move them to one device")
    return lengths[0]
