"""The course of a user's experiment, with its faults named as the course's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.recurrent import Course, Piece
from syngrad.recurrent.student import Student


class Checked(Course):
    """What another course says, checked; `said` begins each message.

    Raises TrainingError for what it raises itself, for what is no Piece, and for an examination that gives no finite
    number.
    """

    def __init__(self, course: Course, said: str) -> None:
        self.course, self.said = course, said

    def take(self) -> Piece:
        """What is learnt next."""
        return self._piece("take", self.course.take)

    def sample(self) -> Piece:
        """Of a typical length."""
        own = type(self.course).sample is not Course.sample
        return self._piece("sample" if own else "take", self.course.sample)

    def probe(self) -> Piece | None:
        """Where estimates are held against the true gradient."""
        made = self._called("probe", self.course.probe)
        return made if made is None or isinstance(made, Piece) else self._no_piece("probe", "a Piece or None", made)

    def heard(self, loss: float, piece: Piece) -> None:
        """The loss of the piece just learnt."""
        self._called("heard", self.course.heard, loss, piece)

    def examine(self, student: Student) -> float:
        """The metric, as a plain number."""
        made = self._called("examine", self.course.examine, student)
        try:
            value = float("" if isinstance(made, str) else made)
        except (TypeError, ValueError, RuntimeError) as error:
            shape = f" of shape {tuple(made.shape)}" if hasattr(made, "shape") else ""
            raise TrainingError(
                f"{self.said}: examine() must return a number, got {type(made).__name__}{shape}"
            ) from error
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.said}: examine() gave {value}, which nothing can be held against; lower the learning rate, or "
                "check the metric"
            )
        return value

    def _piece(self, name: str, function: Callable[[], Any]) -> Piece:
        made = self._called(name, function)
        return made if isinstance(made, Piece) else self._no_piece(name, "a Piece", made)

    def _no_piece(self, name: str, wished: str, made: Any) -> NoReturn:
        raise TrainingError(
            f"{self.said}: {name}() must return {wished}, as in Piece(inputs, targets), got {type(made).__name__}"
        )

    def _called(self, name: str, function: Callable[..., Any], *given: Any) -> Any:
        try:
            return function(*given)
        except (SyngradError, Warning):
            raise
        except (Exception, SystemExit) as error:
            raise TrainingError(f"{self.said}: {name}() raised {first_line(error)}") from error
