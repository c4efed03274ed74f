"""A comparison over several processes, as it is told: the table, the verdict, and the report."""

from syngrad.report.processes.measured import Accounts, Line, Over, over
from syngrad.report.processes.table import report, table
from syngrad.report.processes.verdict import verdict

__all__ = ["Accounts", "Line", "Over", "over", "report", "table", "verdict"]
