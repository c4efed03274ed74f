"""Complete runs in one object each: the built-in ones, one a file, and those of the user's own files."""

from syngrad.experiments.registry import BUILT_IN, RECURRENT, load, load_any

__all__ = ["BUILT_IN", "RECURRENT", "load", "load_any"]
