"""Findings: every kind of thing the audit can say, how grave it is and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "bad", "warning"]


class Kind(NamedTuple):
    """error: the dataset is not used. bad: the record or joint is left out. warning: it is kept and counted."""

    severity: Severity
    meaning: str


KINDS: dict[str, Kind] = {
    "missing_key": Kind("error", "a record lacks a field, or the field has another type"),
    "joint_count": Kind("error", "a person has another number of joints than the skeleton"),
    "duplicate_image_id": Kind("error", "two images share an id"),
    "duplicate_file": Kind("error", "two images share a file"),
    "duplicate_annotation_id": Kind("error", "two people share an id"),
    "unknown_image": Kind("error", "a person is in an image that is not listed"),
    "no_people": Kind("error", "there is nobody in the dataset"),
    "bad_share": Kind("error", "more is left out than max_bad_share allows"),
    "missing_image": Kind("bad", "the file does not exist; image left out"),
    "unreadable_image": Kind("bad", "the file is no image; image left out"),
    "truncated_image": Kind("bad", "the file ends early or does not decode; image left out"),
    "too_many_pixels": Kind("bad", "larger than max_pixels, not decoded; image left out"),
    "size_mismatch": Kind("bad", "width and height differ from the annotation's; image left out"),
    "nan_joint": Kind("bad", "a coordinate is NaN or infinite; person left out"),
    "visibility_flag": Kind("bad", "a flag is none of 0, 1, 2; person left out"),
    "empty_box": Kind("bad", "the box has no area; person left out"),
    "no_joints": Kind("bad", "not one joint has a position; person left out"),
    "empty_region": Kind("bad", "a crowd or a person without keypoints has neither a box nor an outline; left out"),
    "joint_outside": Kind("bad", "further outside the image than outside_tolerance; joint left out"),
    "joint_clipped": Kind("warning", "outside the image within outside_tolerance; moved to its edge"),
    "box_outside": Kind(
        "warning", "the box leaves the image; clipped, or if made of joints made anew of those that stayed"
    ),
    "bad_outline": Kind("warning", "the outline is no polygon and no run-length code; the box is used instead"),
    "no_area": Kind("warning", "the area is missing or not positive; the box's is used instead"),
    "few_visible": Kind("warning", "fewer visible joints than min_visible"),
    "coincident_joints": Kind("warning", "two joints less than 1 px apart"),
    "long_limb": Kind("warning", "a limb is longer than max_limb_share of the person's extent"),
    "left_right": Kind(
        "warning", "the two sides of the torso cross: left and right may be swapped, or the body twisted"
    ),
    "exif_orientation": Kind("warning", "EXIF asks for a rotation; annotations are taken to mean the stored pixels"),
    "near_duplicate": Kind("warning", "images that show the same; kept on one side of the split"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found in one place."""

    kind: str
    message: str
    file: str = ""
    image_id: int | None = None
    annotation_id: int | None = None
    joints: tuple[str, ...] = ()
    """The joints concerned; two for a limb, four for a torso."""
    other_file: str = ""
    """The near-duplicate's file."""
    weight: float = 0.0
    """Orders the findings of one kind, worst first."""

    @property
    def severity(self) -> Severity:
        """How grave its kind is."""
        return KINDS[self.kind].severity

    def __str__(self) -> str:
        place = f"{self.file}: " if self.file else ""
        return f"{self.kind}: {place}{self.message}"
