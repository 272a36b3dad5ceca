"""Protocol: what two figures must share to be compared. Its id stands beside evaluations and registered versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pose.digests import file_sha256, json_sha256
from pose.errors import DataError

EVALUATOR = "1"
"""Raised whenever a figure of unchanged predictions changes."""
NO_BOXES, TRUE_BOXES = "none", "truth"
ONE_SCALE = (1.0,)
BOXES = {"": "annotated boxes, or none", "_detected": "detected boxes, or none"}
"""What the end of a figure's name says of the boxes its people were seen in."""


@dataclass(frozen=True)
class Protocol:
    """How figures were come by."""

    dataset: str
    data: str
    """sha256 of the prepared folder's list of digests: the version of the data."""
    split: str
    boxes: str
    """none: the system saw whole images; truth: annotated boxes; else "detected" and the detections' sha256."""
    flip_test: bool
    sigmas: tuple[float, ...] | None
    nms: str
    """How detections of one person were thinned out before they were counted."""
    evaluator: str = EVALUATOR
    scales: tuple[float, ...] = ONE_SCALE
    """Of the input, ascending, over all of which the system looks."""

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits over all of it."""
        return json_sha256(self.parts())[:12]

    def parts(self) -> dict[str, Any]:
        """As JSON has it; without the scales where there is one, so that ids of before they were told apart hold."""
        parts = vars(self) | {"sigmas": None if self.sigmas is None else list(self.sigmas), "scales": list(self.scales)}
        if self.scales == ONE_SCALE:
            del parts["scales"]
        return parts

    @staticmethod
    def of(parts: Mapping[str, Any]) -> Protocol:
        """The reverse of `parts`."""
        sigmas, scales = parts["sigmas"], tuple(parts.get("scales", ONE_SCALE))
        return Protocol(**{**parts, "sigmas": None if sigmas is None else tuple(sigmas), "scales": scales})

    def differences(self, other: Protocol) -> dict[str, tuple[Any, Any]]:
        """What differs, by name: ours and theirs."""
        ours, theirs = vars(self), vars(other)
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}

    def rivals(self, other: Protocol) -> bool:
        """Whether the better figure is the better model. Flip testing, scales and what thins out poses are part of one.

        Beside who finds people by itself, so are a detector's boxes: both are end to end. Annotated boxes are a gift,
        and those of two detectors compare the detectors.
        """
        boxes = {self.boxes, other.boxes}
        end_to_end = NO_BOXES in boxes and TRUE_BOXES not in boxes
        return set(self.differences(other)) <= {"flip_test", "scales", "nms", *(("boxes",) if end_to_end else ())}


def data_version(directory: Path) -> str:
    """Identity of a prepared dataset's content. Raises DataError where it was not sealed."""
    from pose.data.shards import DIGESTS  # pyarrow, which who only asks for a registered protocol need not wait for

    if not (directory / DIGESTS).exists():
        raise DataError(f"{directory} has no {DIGESTS}; prepare the dataset first (`pose data prepare`).")
    return file_sha256(directory / DIGESTS)
