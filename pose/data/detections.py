"""Person detections as the whole field hands them on: a JSON list of {image_id, category_id, bbox xywh, score}."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pose.errors import DataError
from pose.progress import say

PERSON = 1
"""category_id of people; other categories of a general detector are left out."""

FIELDS: dict[str, type | tuple[type, ...]] = {
    "image_id": int, "category_id": int, "bbox": list, "score": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Detections:
    """D boxes, those of one image together, best first."""

    image_ids: np.ndarray
    """[D] int64, ascending."""
    boxes: np.ndarray
    """[D, 4] float64 xyxy, original px; they may reach out of the image."""
    scores: np.ndarray
    """[D] float64."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, image_id: int) -> slice:
        """Where the boxes of an image are; empty where there are none."""
        first, end = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return slice(int(first), int(end))


def ordered(image_ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> Detections:
    """Detections from arrays in any order; equal scores stay in the order they came in."""
    order = np.lexsort((-np.asarray(scores, np.float64), image_ids))
    return Detections(
        np.asarray(image_ids, np.int64)[order],
        np.asarray(boxes, np.float64).reshape(-1, 4)[order],
        np.asarray(scores, np.float64)[order],
    )


def read(path: Path, images: Collection[int]) -> Detections:
    """The people in a file of detections. An empty list is nobody; images without an entry have nobody.

    images: ids of the images that are asked about. Detections in others are left out and counted aloud, as long as
    some are in these. Raises DataError where the file is for other images, has other categories alone, or a record is
    not whole.
    """
    records = _records(path)
    ids = np.array([record["image_id"] for record in records], np.int64)
    known = np.isin(ids, np.fromiter(images, np.int64, len(images)))
    if len(records) and not known.any():
        some = ", ".join(str(number) for number in np.unique(ids)[:5])
        raise DataError(
            f"{path} holds detections for other images: not one of its {len(np.unique(ids))} image ids ({some}, ...) "
            f"is among the {len(images)} of this split. Take the file that belongs to the split."
        )
    if not known.all():
        say(f"{path}: {int((~known).sum())} of {len(records)} detections are in images that are not asked about")
    boxes = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([record["score"] for record in records], np.float64)
    return ordered(ids[known], boxes[known], scores[known])


def write(path: Path, detections: Detections) -> None:
    """Writes what `read` reads, coordinates to a hundredth of a pixel. Boxes without area by then are left out.

    A detector finds such beside the picture, clipped to its edge; nobody can look into them.
    """
    xywh = detections.boxes.copy()
    xywh[:, 2:] -= xywh[:, :2]
    rows = zip(detections.image_ids.tolist(), xywh.round(2).tolist(), detections.scores.tolist(), strict=True)
    records = [
        {"image_id": number, "category_id": PERSON, "bbox": bbox, "score": round(score, 6)}
        for number, bbox, score in rows
        if bbox[2] > 0 and bbox[3] > 0
    ]
    path.write_text(json.dumps(records, separators=(",", ":"), allow_nan=False) + "\n")


def _records(path: Path) -> list[dict]:
    """The whole records of people. Raises DataError naming the first that is not."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a JSON list of detections.") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); expected a list of detections.") from None
    if not isinstance(found, list):
        raise DataError(
            f"{path} holds a JSON {type(found).__name__}, expected a list of {{image_id, category_id, bbox, score}}. "
            "Is this an annotation file?"
        )
    people = []
    for number, given in enumerate(found):
        # What `pose predict` writes of people with joints calls the box so.
        own = isinstance(given, dict) and "bbox" not in given and "box" in given
        record = {**given, "bbox": given["box"]} if own else given
        if fault := _fault(record):
            raise DataError(
                f"{path}: detection {number} {fault}; expected image_id, category_id, bbox [x, y, width, height] in px "
                "with an area, and score. Correct or remove it."
            )
        if record["category_id"] == PERSON:
            people.append(record)
    if found and not people:
        others = ", ".join(str(number) for number in sorted({record["category_id"] for record in found})[:5])
        raise DataError(
            f"{path}: none of its {len(found)} detections is of a person, category_id {PERSON} as in COCO; they have "
            f"category_id {others}. Does the detector count its categories from 0? People have to be {PERSON}."
        )
    return people


def _fault(record: Any) -> str:
    """What is wrong with one detection, in words that follow its number."""
    if not isinstance(record, dict):
        return f"is {record!r}"
    for key, kind in FIELDS.items():
        if key not in record:
            return f"has no {key!r}"
        if not isinstance(record[key], kind) or isinstance(record[key], bool):
            return f"has {key} = {record[key]!r}"
    numbers = [*record["bbox"], record["score"]]
    if len(numbers) != 5 or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        return f"has bbox = {record['bbox']!r} and score = {record['score']!r}"
    if record["category_id"] == PERSON and not (record["bbox"][2] > 0 and record["bbox"][3] > 0):
        return f"has a box of no area, bbox = {record['bbox']!r}"
    return ""
