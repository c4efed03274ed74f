"""Syngrad trains neural networks whose parts do not wait for each other."""

import syngrad.startup as _startup  # first of all: what follows takes seconds

with _startup.uncollected():
    from syngrad import estimators, metrics, targets
    from syngrad.core.decouple import decouple
    from syngrad.core.interface import Interface
    from syngrad.errors import SyngradError
    from syngrad.estimators import GradientEstimator
    from syngrad.experiments.experiment import Experiment
    from syngrad.pipeline.options import Distributed
    from syngrad.recurrent import TruncatedBPTT
    from syngrad.replicas.options import Replicas
    from syngrad.runtime.feedback_options import Feedback
    from syngrad.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Distributed",
    "Experiment",
    "Feedback",
    "GradientEstimator",
    "Interface",
    "Replicas",
    "SyngradError",
    "Trainer",
    "TruncatedBPTT",
    "decouple",
    "estimators",
    "metrics",
    "targets",
]
