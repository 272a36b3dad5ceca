"""Average precision of people's boxes as COCO defines it: IoU 0.50 to 0.95, a hundred detections an image.

Crowds are neither right nor wrong; people without labelled joints are people.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pose.metrics.matching import Matches, match_by
from pose.metrics.truth import Truth
from pose.people import People

NAMES = ("ap", "ap50", "ap75", "ar")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100


def matched(people: People, truth: Truth) -> Matches:
    """Whose box found whose at each of THRESHOLDS."""
    boxes = people.boxes.astype(np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    everybody = replace(truth, ignored=truth.crowd)

    def measure(person: np.ndarray, annotation: np.ndarray) -> np.ndarray:
        return iou(boxes[person, :2], sides[person], truth.boxes[annotation], truth.crowd[annotation])

    areas = {"all": (0.0, 1e10)}
    return match_by(measure, sides[:, 0] * sides[:, 1], people, everybody, THRESHOLDS, areas, MAX_DETECTIONS)["all"]


def iou(low: np.ndarray, sides: np.ndarray, theirs: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[M] intersection over union of boxes (corner [M, 2], sides [M, 2]) with xywh [M, 4]; with a crowd over the
    first box alone.
    """
    high = np.minimum(low + sides, theirs[:, :2] + theirs[:, 2:])
    common = np.maximum(high - np.maximum(low, theirs[:, :2]), 0)
    inside = common[:, 0] * common[:, 1]
    mine = sides[:, 0] * sides[:, 1]
    union = np.where(crowd, mine, mine + theirs[:, 2] * theirs[:, 3] - inside)
    return np.divide(inside, union, out=np.zeros(len(union)), where=union > 0)
