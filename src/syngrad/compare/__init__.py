"""Rows of methods and estimators, trained on the same data in the same order and held against back-propagation.

Two things are measured apart, so that neither disturbs the other. *Step times* come first, side by side: every row has
a throw-away network, and the rows take turns step by step on the same minibatches, so that whatever else the machine
does falls on all of them; the first row of a turn changes from turn to turn. What autograd and the interfaces keep is
counted on the same networks. Then each row is *trained*: a fresh model from the same seed, the same order of the data,
the same number of threads.
"""

from syngrad.compare.base import Observer, Silent
from syngrad.compare.feedforward import ROWS, Comparison, Contender, contenders
from syngrad.compare.recurrent import RecurrentComparison

__all__ = ["ROWS", "Comparison", "Contender", "Observer", "RecurrentComparison", "Silent", "contenders"]
