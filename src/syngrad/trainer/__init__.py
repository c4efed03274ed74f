"""The Trainer: one object that trains a decoupled network by any method, step by step or epoch by epoch."""

from syngrad.optim.factory import default_optimizer
from syngrad.trainer.trainer import Trainer

__all__ = ["Trainer", "default_optimizer"]
