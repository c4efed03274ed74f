"""The health of one interface's estimates over a run: samples of their quality, and a warning where they diverge.

An estimate is held against two gradients: what was *received* for the same message, which an estimator is fitted to,
and the *true* gradient of the loss, found by a probe of its own on a part of a minibatch (runtime/probe.py). One
can agree with what comes back and still lead nowhere, because what comes back is itself an estimate; only the second
figure shows that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from syngrad.errors import warn

#: an estimate that many times as long as the gradient it stands for, in so many samples running, is diverging
RATIO_BOUND, RATIO_SAMPLES = 10.0, 3
#: so many samples running in which an estimate points against the gradient, by so much on the average
AGAINST_SAMPLES, AGAINST = 5, -0.02
#: so many samples running in which an estimate has next to nothing to do with the true gradient, on the average
APART_SAMPLES, APART = 10, 0.1
#: samples that are kept of a stream without end
STREAM = 10_000
#: what lasts for fewer minibatches is no reason to warn
LONG = 100


#: against estimates that are too long, and against those that point the wrong way
ADVICE = (
    "lower the estimators' rate (estimator_lr=0.3), fit them first (feedback=Feedback(warmup=200)), or use "
    "estimator='default'",
    "use feedback='true', fewer cuts, or estimator='default'",
)
#: against estimates that have nothing to do with the true gradient
APART_ADVICE = (
    "hold the run against method='zero', which may do better; try estimator='default(norm=True, derivative=10)', "
    "feedback='true', or fewer cuts"
)
#: what it is where the estimator is the default already
DEFAULT_ADVICE = (
    "lower the estimators' rate (estimator_lr=0.3), or fit them first (feedback=Feedback(warmup=200))",
    "use feedback='true', or fewer cuts",
)
#: what it is for a recurrent trainer
STREAM_ADVICE = (
    "lower the estimator's rate (estimator_lr=0.3), or inject less of it (inject=0.1)",
    "inject less of them (inject=0.1), show the estimator more (context=), or lower its rate (estimator_lr=0.3)",
)


class Sample(NamedTuple):
    """The quality of one minibatch's estimate against the received gradient; estimator_loss is the squared error per
    sample.
    """

    step: int
    cosine: float
    norm_ratio: float
    explained_variance: float
    estimator_loss: float


class TrueSample(NamedTuple):
    """One sample of an estimate against the true gradient, on a part of the minibatch."""

    step: int
    cosine: float
    norm_ratio: float
    explained_variance: float


AnySample = Sample | TrueSample


@dataclass
class Quality:
    """The quality of one interface's estimates on the minibatches on which it was sampled.

    Args:
        cut: the name of the stage that the interface sends to.
        history: samples against what was received.
        true: samples against the true gradient.
        warned: what has been warned of, once each.
        most: of samples that are kept, for streams without end; beyond, every second of the older half is dropped.
        advice: against estimates that are too long, and against those that point the wrong way.
    """

    cut: str
    history: list[Sample] = field(default_factory=list)
    true: list[TrueSample] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)
    most: int | None = None
    advice: tuple[str, str] = ADVICE

    @classmethod
    def of_stream(cls, cut: str) -> Quality:
        """That of estimates in a recurrent net, whose stream need not end."""
        return cls(cut, most=STREAM, advice=STREAM_ADVICE)

    def add(self, step: int, estimate: Tensor, received: Tensor, scale: float) -> None:
        """Take one sample at minibatch `step`, from an estimate and a received gradient both multiplied by `scale`."""
        figures, error = compare(estimate, received)
        self.history.append(Sample(step, *figures, error / (scale * scale * max(received.shape[0], 1))))
        self._watch(self.history, "what comes back")
        if self.most is not None and len(self.history) > self.most:
            del self.history[: len(self.history) // 2 : 2]

    def add_true(self, step: int, estimate: Tensor, true: Tensor) -> None:
        """Take one sample against the true gradient, both in the same units."""
        figures, _ = compare(estimate, true)
        self.true.append(TrueSample(step, *figures))
        self._watch(self.true, "the true gradient")
        last = _said(self.true[-2 * APART_SAMPLES :])[-APART_SAMPLES:]
        mean = sum(sample.cosine for sample in last) / max(len(last), 1)
        if _lasting(last, APART_SAMPLES) and mean < APART:
            self._warn(
                "apart from the true gradient",
                "have next to nothing to do with the true gradient (mean cosine "
                f"{mean:.2f} over {APART_SAMPLES} samples); {APART_ADVICE}",
            )

    def forget(self, step: int) -> None:
        """Drop the samples of a minibatch that failed."""
        for samples in (self.history, self.true):
            while samples and samples[-1].step == step:
                samples.pop()

    def rewind(self, step: int) -> None:
        """Drop the samples of minibatch `step` and later ones: a run goes on from there once more."""
        self.history = [sample for sample in self.history if sample.step < step]
        self.true = [sample for sample in self.true if sample.step < step]

    def mean(self, figure: str, since: int = 0) -> float | None:
        """Mean of one figure over the last half of the samples from the `since`-th on, past an estimator's first steps.

        Samples count where there was an estimate and something came back; a gradient of exactly zero, as an estimator
        gives that has not begun, has no direction. None if nothing was sampled.
        """
        return _tail_mean(self.history[since:], figure)

    def summary(self, staleness: float = 0.0, since: int = 0, true_since: int = 0) -> dict[str, object]:
        """The row of the results file: means over the later half of the samples, and all of them."""
        true = self.true[true_since:]
        figures = ("cosine", "norm_ratio", "explained_variance")
        return {
            "cut": self.cut,
            **{figure: self.mean(figure, since) for figure in (*figures, "estimator_loss")},
            "staleness": staleness,
            **{f"true_{figure}": _tail_mean(true, figure) for figure in figures},
            "history": [list(sample) for sample in self.history[since:]],
            "true_history": [list(sample) for sample in true],
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "history": [list(sample) for sample in self.history],
            "true": [list(sample) for sample in self.true],
            "warned": sorted(self.warned),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.history = [Sample(*sample) for sample in state["history"]]
        self.true = [TrueSample(*sample) for sample in state["true"]]
        self.warned = set(state["warned"])

    def _watch(self, samples: Sequence[AnySample], against: str) -> None:
        said = _said(samples[-2 * AGAINST_SAMPLES :])
        last = said[-RATIO_SAMPLES:]
        if _lasting(last, RATIO_SAMPLES) and all(sample.norm_ratio > RATIO_BOUND for sample in last):
            self._warn(
                f"ratio to {against}",
                f"are {last[-1].norm_ratio:.3g} times as long as {against}, in {RATIO_SAMPLES} samples running; "
                + self.advice[0],
            )
        last = said[-AGAINST_SAMPLES:]
        mean = sum(sample.cosine for sample in last) / max(len(last), 1)
        if _lasting(last, AGAINST_SAMPLES) and mean < AGAINST and all(sample.cosine < 0 for sample in last):
            self._warn(
                f"against {against}",
                f"point against {against} (mean cosine {mean:.2f}, below 0 in {AGAINST_SAMPLES} samples running); "
                + self.advice[1],
            )

    def _warn(self, kind: str, what: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warn(f"the estimates at {self.cut!r} {what}")


def compare(estimate: Tensor, gradient: Tensor) -> tuple[tuple[float, float, float], float]:
    """((cosine, norm ratio, explained variance), squared error) of δ̂ against a gradient, in one wait for the device.

    As :mod:`syngrad.metrics` defines them, over the whole minibatch as one vector; a cosine with zero is 0.
    """
    dtype = torch.promote_types(torch.promote_types(estimate.dtype, gradient.dtype), torch.float32)
    aa, bb, ab, ee = _products(estimate, gradient, dtype)
    if not (0 < aa < math.inf and 0 < bb < math.inf):  # perhaps only a square that float32 cannot hold
        aa, bb, ab, ee = _products(estimate, gradient, torch.float64)
    norms = math.sqrt(aa) * math.sqrt(bb)
    cosine = max(-1.0, min(1.0, ab / norms)) if norms > 0 else (math.nan if math.isnan(norms) else 0.0)
    return (cosine, _quotient(math.sqrt(aa), math.sqrt(bb)), 1 - _quotient(ee, bb)), ee


def _products(estimate: Tensor, gradient: Tensor, dtype: torch.dtype) -> list[float]:
    a, b = (t.detach().reshape(-1).to(dtype) for t in (estimate, gradient))
    error = b - a
    products: list[float] = torch.stack(
        [torch.dot(a, a), torch.dot(b, b), torch.dot(a, b), torch.dot(error, error)]
    ).tolist()
    return products


def _quotient(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.inf


def _said(samples: Iterable[AnySample]) -> list[AnySample]:
    """Those in which there was an estimate and a gradient."""
    return [sample for sample in samples if 0 < sample.norm_ratio < math.inf]


def _lasting(samples: Sequence[AnySample], count: int) -> bool:
    return len(samples) == count and samples[-1].step - samples[0].step >= LONG


def _tail_mean(samples: Sequence[AnySample], figure: str) -> float | None:
    said = _said(samples)
    tail = [getattr(sample, figure) for sample in said[len(said) // 2 :]]
    return sum(tail) / len(tail) if tail else None
