"""The results file: what every command that measures writes with `--json`, and what tables and reports are made of.

One document is `{schema, created, environment, experiment, config, results, aggregate, verdict}`. `results` holds one
row a method and seed, `aggregate` what follows over the seeds, `config` the options the run can be repeated with.
Fields that a run cannot tell are null, never left out.
"""

from syngrad.results.aggregate import Aggregate, aggregate, interval, mean_spread, student_t
from syngrad.results.environment import environment
from syngrad.results.file import SCHEMA, STRUCTURE, check_writable, document, finite, validate, write, write_text
from syngrad.results.rows import BACKPROP, TOO_LARGE, Row, thinned, time_to_target

__all__ = [
    "BACKPROP",
    "SCHEMA",
    "STRUCTURE",
    "TOO_LARGE",
    "Aggregate",
    "Row",
    "aggregate",
    "check_writable",
    "document",
    "environment",
    "finite",
    "interval",
    "mean_spread",
    "student_t",
    "thinned",
    "time_to_target",
    "validate",
    "write",
    "write_text",
]
