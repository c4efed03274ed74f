"""Recurrent networks: windows of time whose ends carry an estimate of what is cut off, and graphs of modules that tick
at rates of their own.
"""

from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.graph import Graph

__all__ = ["Graph", "TruncatedBPTT"]
