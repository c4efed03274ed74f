"""What a recurrent net learns from, and by what it is judged: minibatches, a curriculum, an examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syngrad.errors import ConfigError

if TYPE_CHECKING:
    from syngrad.recurrent.student import Student


@dataclass(frozen=True)
class Piece:
    """A minibatch. inputs, targets, context: with a dimension of time; context is what estimators may look at beside
    the state. lengths: (n,), where sequences are unequal. stream: the streams of the last piece go on; otherwise these
    are whole sequences, from their first step to their last.
    """

    inputs: Any
    targets: Any
    context: Any = None
    lengths: Any = None
    stream: bool = False


class Course:
    """Made anew for every run, from (batch size, seed), so that every run hears the same."""

    def take(self) -> Piece:
        """What is learnt next."""
        raise ConfigError(f"{type(self).__name__} has no take(); a course needs one, which returns a Piece")

    def heard(self, loss: float, piece: Piece) -> None:
        """The loss of the piece just learnt: a curriculum goes on by it."""

    def examine(self, student: Student) -> float:
        """The metric; in evaluation mode, on what is not learnt from."""
        raise ConfigError(f"{type(self).__name__} has no examine(student); a course needs one, which returns a number")

    def sample(self) -> Piece:
        """Of a typical length: what step times and memory are taken on."""
        return self.take()

    def probe(self) -> Piece | None:
        """Sequences over which the true gradient is found that an estimate stands for; None where there is none."""
        return None
