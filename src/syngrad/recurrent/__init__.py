"""Recurrent networks: windows of time whose ends carry an estimate of what is cut off."""

from syngrad.recurrent.bptt import TruncatedBPTT

__all__ = ["TruncatedBPTT"]
