"""Comparing over several processes: each row a run of its own, started by a launcher."""

from syngrad.processes.comparison import ROWS, Processes

__all__ = ["ROWS", "Processes"]
