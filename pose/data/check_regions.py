"""The audit's look at outlines and at regions where nothing is known: crowds, and people without keypoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pose.data import masks
from pose.data.findings import Finding


@dataclass(frozen=True)
class Region:
    """A part of an image in which a detection is neither right nor wrong."""

    annotation_id: int
    image_id: int
    box: np.ndarray
    """[4] float64 xyxy, inside the image."""
    person: bool
    """It is one person with a box to be believed, only without keypoints; else a crowd, or somebody left out."""


def is_region(record: Mapping) -> bool:
    """A crowd, or a person whose record says that there are no keypoints and has a box nonetheless."""
    if record.get("iscrowd"):
        return True
    unlabelled = record.get("num_keypoints") == 0 and not any(v > 0 for v in record["keypoints"][2::3])
    return unlabelled and record["bbox"][2] > 0 and record["bbox"][3] > 0


def find_regions(
    records: Iterable[dict], images: Mapping[int, dict], outlines: Mapping[int, dict], people: set[int]
) -> tuple[list[Region], list[Finding]]:
    """The regions among the records in these images, and findings about those of which nothing is left.

    outlines: by annotation id, as `check_outlines` returns them. people: ids of those who are kept as people; whoever
    is neither a person nor a region of his own becomes a region if the box allows it.
    """
    regions, findings = [], []
    for record in records:
        if record["id"] in people or record["image_id"] not in images:
            continue
        image = images[record["image_id"]]
        box = _inside(record["bbox"], image)
        meant = is_region(record)
        if box is None and record["id"] in outlines:
            box = np.array([0.0, 0.0, image["width"], image["height"]])  # the outline says where in there
            meant = False
        if box is not None:
            person = meant and not record.get("iscrowd")
            regions.append(Region(record["id"], record["image_id"], box, person))
        elif meant:
            where = (image["file_name"], record["image_id"], record["id"])
            findings.append(Finding("empty_region", f"box {record['bbox']} and no outline", *where))
    return regions, findings


def check_outlines(records: Iterable[dict], images: Mapping[int, dict]) -> tuple[dict[int, dict], list[Finding]]:
    """Run-length codes of the outlines that the records in these images have, by annotation id; findings about others.

    A record may have none, or an empty list.
    """
    outlines, findings = {}, []
    for record in records:
        if record["image_id"] not in images:
            continue
        image = images[record["image_id"]]
        where = (image["file_name"], record["image_id"], record["id"])
        if record.get("segmentation"):
            try:
                outlines[record["id"]] = masks.encode(record["segmentation"], image["width"], image["height"])
            except ValueError as fault:
                findings.append(Finding("bad_outline", f"the outline {fault}", *where))
        if area_of(record) is None:
            findings.append(Finding("no_area", f"area is {record.get('area')}", *where))
    return outlines, findings


def area_of(record: Mapping) -> float | None:
    """The area that a record states, where it is a positive number."""
    area = record.get("area")
    return float(area) if isinstance(area, (int, float)) and math.isfinite(area) and area > 0 else None


def _inside(bbox: list[float], image: dict) -> np.ndarray | None:
    """xyxy of a box xywh within its image; None where nothing of it is."""
    x, y, width, height = np.asarray(bbox, np.float64)
    limits = (image["width"], image["height"])
    box = np.clip([x, y, x + width, y + height], 0, [*limits, *limits])
    return box if np.isfinite(box).all() and (box[2:] > box[:2]).all() else None
