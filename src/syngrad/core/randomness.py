"""A stage's own randomness, so that a run draws the same numbers whatever process each stage runs in."""

from __future__ import annotations

import torch
from torch import Tensor


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

    def save(self) -> dict[str, Tensor]:
        """Where the generators stand: one a device."""
        return {"cpu": self.state} | ({"device": self.device_state} if self.device_state is not None else {})

    def load(self, saved: dict[str, Tensor]) -> None:
        """Put them back there. A run saved without this kind of device leaves the device's generator as it was."""
        self.state = saved["cpu"].cpu()
        if self.device_state is not None and "device" in saved:
            self.device_state = saved["device"].cpu()

    def swapped(self) -> Swapped:
        """A context: the default generators hold this stage's state inside, and their own again outside."""
        return Swapped(self)


class Swapped:
    """See :meth:`Randomness.swapped`; written out, as it is entered twice a stage in every minibatch."""

    __slots__ = ("_outside", "_outside_device", "_own")

    def __init__(self, own: Randomness) -> None:
        self._own = own

    def __enter__(self) -> None:
        own = self._own
        self._outside = torch.default_generator.get_state()
        torch.default_generator.set_state(own.state)
        if own.device_state is not None:
            self._outside_device = torch.cuda.get_rng_state(own.device)
            torch.cuda.set_rng_state(own.device_state, own.device)

    def __exit__(self, *error: object) -> None:
        own = self._own
        own.state = torch.default_generator.get_state()
        torch.default_generator.set_state(self._outside)
        if own.device_state is not None:
            own.device_state = torch.cuda.get_rng_state(own.device)
            torch.cuda.set_rng_state(self._outside_device, own.device)
