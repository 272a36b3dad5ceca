"""Synthetic people: a stand-in that says so until the drawing lands."""

from pathlib import Path

from pose.config import SyntheticParams
from pose.errors import DataError

ANNOTATIONS = "annotations.json"


def is_drawn(params: SyntheticParams, path: Path) -> bool:
    """Whether the archive at path is the one `write_archive` would write."""
    return False


def write_archive(params: SyntheticParams, path: Path) -> None:
    """Raises DataError: not drawn yet."""
    raise DataError(f"{path} cannot be drawn yet")
