"""The published experiments: what each shows, how it is run here, and what was published of it."""

from syngrad.reproduce.points import Point, summary
from syngrad.reproduce.runs import Runs
from syngrad.reproduce.scales import SCALES
from syngrad.reproduce.study import Case, PublishedFigure, Scale, Study

__all__ = ["SCALES", "Case", "Point", "PublishedFigure", "Runs", "Scale", "Study", "summary"]
