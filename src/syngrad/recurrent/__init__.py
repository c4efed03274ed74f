"""Recurrent networks: windows of time whose ends carry an estimate of what is cut off, or learning at every step."""

from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.recurrent.traceable import Traceable

__all__ = ["OnlineBPLambda", "Traceable", "TruncatedBPTT"]
