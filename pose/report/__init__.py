"""The report of a run: one page a person enjoys reading, and its table for the terminal."""

from pose.report.entry import Entry
from pose.report.page import build
from pose.report.tables import results_table

__all__ = ["Entry", "build", "results_table"]
