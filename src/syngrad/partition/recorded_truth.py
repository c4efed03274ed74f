"""What a recording has taken for granted, to be seen when it no longer holds.

An exported graph has every module's mode and rates in it as constants, and one of torch.fx what Python read in the
forwards that it followed. Put a norm into evaluation mode, change a dropout rate or a temperature after the first
batch, and the graph would go on as before, in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from syngrad.errors import TrainingError
from syngrad.partition.reads import CALLED, Place, is_object

EXPORTED = "set it before the first batch, or train in one process without Feedback(delay=…)"
FOLLOWED = "set it before the first batch, or keep it in a buffer, whose value is read every time"


class RecordedTruth:
    """What was read when the model was recorded, as it was.

    Args:
        model: the user's.
        holds: records anew, and gives what was read if that is the recording there is, otherwise None: asked before an
            error, as what has changed may have made no difference. None for recordings that are not made anew.
    """

    def __init__(self, model: nn.Module, holds: Callable[[], list[Place] | None] | None = None) -> None:
        self._model, self._holds = model, holds
        #: by the model's mode
        self._read: dict[bool, list[tuple[Place, Any]]] = {}
        # the same, laid out for a check at every step
        self._tables: dict[bool, list[Any]] = {}

    def note(self, places: list[Place]) -> None:
        """Remember what was read for the mode that the model is in, as it is now."""
        mode, read = self._model.training, [(place, place.now()) for place in places]
        self._read[mode] = read
        self._tables[mode] = [(place.table, place.key, place.look, then) for place, then in read]

    def check(self) -> None:
        """Raise a TrainingError that names what has changed since."""
        for table, key, look, then in self._tables.get(self._model.training, ()):
            now = table.get(key, "nothing")
            if now is then:
                continue
            if look is not None:
                now = look(now)
            if type(now) is not type(then) or now != then:
                self._changed()
                return

    def _changed(self) -> None:
        found = [(place, then, place.now()) for place, then in self._read[self._model.training]]
        found = [(place, then, now) for place, then, now in found if type(now) is not type(then) or now != then]
        # what a recording made anew does not run itself is not to be asked of it
        called = [each for each in found if each[0].key in CALLED]
        if self._holds is not None and not called and (places := self._holds()) is not None:
            self.note(places)
            return
        place, then, now = (called or found)[0]
        said = f"{place.what} is {now!r} and was {then!r}"
        if called or is_object(now) or is_object(then):
            said = f"{place.what} is not what it was"
        how, remedy = (" as for several workers", EXPORTED) if self._holds is None else ("", FOLLOWED)
        raise TrainingError(f"{said} when the model was recorded{how}: {remedy}")
