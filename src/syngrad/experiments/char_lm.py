"""English, character by character, with an LSTM: one long stream a sample, trained in windows of a few characters.

The metric is bits per character on text that none of the windows comes from. Estimators see the next characters beside
the state: at a boundary they are known, and the gradient of the losses to come depends on them.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3.1, where the text is Penn Treebank's. Deviations: books from
Project Gutenberg, an LSTM of 128, and estimators that see what is to come (`synthetic:linear(context=False)` does not).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.experiments.char_gpt import text
from syngrad.experiments.experiment import adam
from syngrad.recurrent.curriculum import Curriculum, LearnerAdapter, SequenceBatch
from syngrad.recurrent.recurrent_experiment import RecurrentExperiment

EMBEDDED, HIDDEN, RATE = 32, 128, 2e-3
#: characters of one piece of a stream; a multiple of 8 and of 20, so that windows of both come out even
PIECE = 200
#: of the text, held out at its end; streams and characters of one that are examined on
HELD_OUT, STREAMS, EXAMINED = 0.05, 64, 600
#: characters to come that an estimator sees
SEEN = 4

PUBLISHED = ()
"""On Penn Treebank, of which this project has no copy."""


@cache
def parts() -> tuple[Tensor, Tensor, int]:
    """The text that is learnt from, that which is examined on (STREAMS, EXAMINED + 1), and the number of characters."""
    numbers, characters = text()
    split = int(len(numbers) * (1 - HELD_OUT))
    held = numbers[split:]
    starts = torch.arange(STREAMS) * ((len(held) - EXAMINED - 1) // STREAMS)
    return numbers[:split], torch.stack([held[k : k + EXAMINED + 1] for k in starts.tolist()]), characters


class Characters(nn.Module):
    """(n, t) numbers of characters → (n, t, HIDDEN), by an embedding and an LSTM."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, HIDDEN, batch_first=True)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(outputs, state)."""
        outputs, state = self.lstm(self.embedding(inputs), state)
        return outputs, state


def to_come(numbers: Tensor, characters: int, most: int = SEEN) -> Tensor:
    """(n, t, most·characters): one-hot, the characters 1 … `most` steps after each of (n, t + most) numbers."""
    ahead = numbers[:, 1:].unfold(1, most, 1)
    return F.one_hot(ahead, characters).flatten(2).float()


class Reading(Curriculum):
    """n streams through the text, as far from one another as can be; where the seed says they begin."""

    def __init__(self, n: int, seed: int) -> None:
        self.text, self.examined, self.characters = parts()
        first = int(torch.randint(len(self.text), (), generator=torch.Generator().manual_seed(seed)))
        self.places = first + torch.arange(n) * (len(self.text) // n)

    def take(self) -> SequenceBatch:
        """The next PIECE characters of every stream."""
        piece = self._piece(self.places)
        self.places = self.places + PIECE
        return piece

    def _piece(self, places: Tensor) -> SequenceBatch:
        numbers = self.text[(places[:, None] + torch.arange(PIECE + SEEN + 1)) % len(self.text)]
        # the first of the characters seen is the step's own target, which is the next step's input
        context = to_come(numbers, self.characters)[:, :PIECE]
        return SequenceBatch(numbers[:, :PIECE], numbers[:, 1 : PIECE + 1], context, stream=True)

    def examine(self, student: LearnerAdapter) -> float:
        """Bits per character on what is held out, each stream from its beginning."""
        nats = student.evaluate(self.examined[:, :-1], self.examined[:, 1:])
        return float(nats) / math.log(2)

    def probe(self) -> SequenceBatch:
        """A piece of the text, from its beginning on."""
        return self._piece(torch.arange(8) * 997)


def char_lm() -> RecurrentExperiment:
    """The whole recipe: 1.9 million characters."""
    return RecurrentExperiment(
        name="char-lm",
        dataset="books from Project Gutenberg",
        model=lambda: (Characters(parts()[2]), nn.Linear(HIDDEN, parts()[2])),
        course=Reading,
        metric="bits per character",
        higher_is_better=False,
        window=8,
        estimator="linear",
        online="low_rank(rank=16, outputs=16)",  # what is seen to come makes traces of all outputs too long
        rows=("bptt(8)", "bptt(20)", "synthetic(8)", "auxiliary(8)", "zero"),
        optimizer=adam(RATE),
        batch_size=32,
        steps=6_000,
        epochs=10,
        patience=3,
        options={"inject": 0.3},  # a stream without end: estimates made of estimates grow otherwise
    )
