"""Recurrent networks: windows of time whose ends carry an estimate of what is cut off, learning at every step, and
graphs of modules that tick at rates of their own.
"""

from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.curriculum import Course, Curriculum, Piece, SequenceBatch
from syngrad.recurrent.graph import Graph
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.recurrent.recurrent_experiment import RecurrentExperiment
from syngrad.recurrent.traceable import Traceable

__all__ = [
    "Course",
    "Curriculum",
    "Graph",
    "OnlineBPLambda",
    "Piece",
    "RecurrentExperiment",
    "SequenceBatch",
    "Traceable",
    "TruncatedBPTT",
]
