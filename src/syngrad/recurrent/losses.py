"""The loss that recurrent nets have unless another is given, and what it averages over."""

from syngrad.losses import count_targets, token_cross_entropy

__all__ = ["count_targets", "token_cross_entropy"]
