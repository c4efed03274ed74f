"""Graphs of modules that tick at rates of their own: the messages between them, the modules at work, the clock."""

from syngrad.recurrent.graph.graph import Graph

__all__ = ["Graph"]
