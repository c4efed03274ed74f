"""Copy and Repeat Copy: bits are shown once, and asked for after a delimiter, all of them, once or several times.

    copy            10110010 …L vectors… | delimiter |  the same L vectors
    repeat copy     10110010 …L vectors… | delimiter, and how often: R |  the same L vectors, R times

Every vector has to be kept for L + 1 steps at least, so that what a window of T steps can teach ends soon. The lesson
grows: it gets longer, and for repeat copy then has one repeat more, by turns, whenever the running loss is under 0.15
bits a bit. The metric is the longest output solved so: L, or L·R.

Estimators see, beside the state, the vectors that are still to come, by how many steps away they are. That is the time
to go and the target in one: what the gradient of later losses depends on beside the state.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3.1 and App. C.2; the threshold from a reader's log of a third
party. Deviations: an LSTM of 128; minibatches have one length; the loss of a step is a mean over the 8 bits; estimators
see what is to come (there they saw the state alone, which `synthetic:linear(context=False)` does here).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.experiments.experiment import adam
from syngrad.recurrent.curriculum import Curriculum, LearnerAdapter, SequenceBatch
from syngrad.recurrent.recurrent_experiment import RecurrentExperiment

BITS, HIDDEN, RATE = 8, 128, 1e-3
#: bits a bit under which a lesson counts as learnt, and what its running mean keeps a minibatch
SOLVED, KEPT = 0.15, 0.9
#: where the running mean stands at a new lesson
BEGIN = 0.3
#: vectors to come that an estimator sees, at most
SEEN = 40
#: of no bit: a step at which nothing is asked
NOTHING = -1.0

PUBLISHED = ()
"""The paper's longest lengths could not be checked; a reader's notes say: at least twice those of truncated BPTT."""


def sequences(n: int, length: int, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (n, t, 10) and targets (n, t, 8), t = length + 1 + length·repeats; −1 where nothing is asked.

    Of the inputs the ninth number is the delimiter, and the tenth R/10 beside it where R > 1.
    """
    bits = torch.randint(0, 2, (n, length, BITS), generator=generator).float()
    steps = length + 1 + length * repeats
    inputs, targets = torch.zeros(n, steps, BITS + 2), torch.full((n, steps, BITS), NOTHING)
    inputs[:, :length, :BITS] = bits
    inputs[:, length, BITS] = 1.0
    if repeats > 1:
        inputs[:, length, BITS + 1] = repeats / 10
    targets[:, length + 1 :] = bits.repeat(1, repeats, 1)
    return inputs, targets


def to_come(targets: Tensor, most: int = SEEN) -> Tensor:
    """(n, t, most·8): at each step the next vectors that will be asked, ±1 a bit, and 0 where nothing is."""
    n, steps, _ = targets.shape
    signs = torch.where(targets < 0, 0.0, targets * 2 - 1)
    padded = torch.cat([signs, signs.new_zeros(n, most, BITS)], 1)
    return padded[:, 1:].unfold(1, most, 1)[:, :steps].transpose(2, 3).flatten(2)


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the bits asked for, in nats, summed over them / 8, averaged over all steps; (n, t, 8) both."""
    each = F.binary_cross_entropy_with_logits(scores, targets.clamp_min(0), reduction="none")
    return (each * (targets >= 0)).sum() / (BITS * targets.shape[0] * targets.shape[1])


class Copying(Curriculum):
    """Lessons that grow. repeating: by turns in length and in repeats."""

    def __init__(self, n: int, seed: int, repeating: bool = False) -> None:
        self.n, self.repeating = n, repeating
        self.generator = torch.Generator().manual_seed(seed)
        self.length, self.repeats = 1, 1
        self.solved = 0
        self.running = 1.0

    def take(self) -> SequenceBatch:
        """A minibatch of the lesson."""
        return self._piece(self.length, self.repeats, self.generator)

    def heard(self, loss: float, piece: SequenceBatch) -> None:
        """The lesson goes on once it has been learnt."""
        outputs = self.length * self.repeats
        bits = loss * (self.length + 1 + outputs) / (outputs * math.log(2))
        self.running = KEPT * self.running + (1 - KEPT) * bits
        if self.running < SOLVED:
            self.solved, self.running = outputs, BEGIN
            if self.repeating and self.repeats < self.length:
                self.repeats += 1
            else:
                self.length += 1

    def examine(self, student: LearnerAdapter) -> float:
        """The longest output solved so far; every minibatch is new, so what is learnt from examines first."""
        return float(self.solved)

    def sample(self) -> SequenceBatch:
        """Five vectors, asked twice where they are repeated."""
        return self._piece(5, 2 if self.repeating else 1, torch.Generator().manual_seed(0))

    def probe(self) -> SequenceBatch:
        """The lesson with other bits."""
        return self._piece(self.length, self.repeats, torch.Generator().manual_seed(1))

    def _piece(self, length: int, repeats: int, generator: torch.Generator) -> SequenceBatch:
        inputs, targets = sequences(self.n, length, repeats, generator)
        return SequenceBatch(inputs, targets, to_come(targets))


def model() -> tuple[nn.Module, nn.Module]:
    """An LSTM and its readout."""
    return nn.LSTM(BITS + 2, HIDDEN, batch_first=True), nn.Linear(HIDDEN, BITS)


def copy() -> RecurrentExperiment:
    """The whole recipe."""
    return _experiment("copy", repeating=False)


def repeat_copy() -> RecurrentExperiment:
    """The whole recipe, with repeats."""
    return _experiment("repeat-copy", repeating=True)


def _experiment(name: str, repeating: bool) -> RecurrentExperiment:
    return RecurrentExperiment(
        name=name,
        dataset="8-bit vectors, drawn as they are needed",
        model=model,
        course=lambda n, seed: Copying(n, seed, repeating),
        loss=loss,
        metric="length solved",
        higher_is_better=True,
        window=3,
        estimator="linear",
        online="low_rank(rank=16, outputs=16)",  # what is seen to come makes traces of all outputs too long
        rows=("bptt(3)", "bptt(8)", "synthetic(3)", "auxiliary(3)", "zero"),
        optimizer=adam(RATE),
        batch_size=32,
        steps=6_000,
        epochs=5,
        options={"guard": None, "estimator_lr": 0.1},
    )
