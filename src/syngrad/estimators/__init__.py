"""Gradient estimators: modules (h, context) → δ̂."""

from syngrad.estimators.base import Binding, Context, GradientEstimator, zero_
from syngrad.estimators.heads import Head
from syngrad.estimators.registry import NAMED, EstimatorSpec, default, local, make, parse, sobolev
from syngrad.estimators.regressors import MLP, Conv, Linear, LowRank, Zero

__all__ = [
    "MLP",
    "NAMED",
    "Binding",
    "Context",
    "Conv",
    "EstimatorSpec",
    "GradientEstimator",
    "Head",
    "Linear",
    "LowRank",
    "Zero",
    "default",
    "local",
    "make",
    "parse",
    "sobolev",
    "zero_",
]
