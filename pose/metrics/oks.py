"""OKS AP and AR as COCO defines them (cocodataset.org/#keypoints-eval), by hotcoco, which equals pycocotools.

A detection's area is that of the box around its joints, its confidence the person's score; the twenty most confident
detections of an image count. Ties keep the order of `people`. Images without an annotation count their detections as
false.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pose.errors import DataError, TrainingError
from pose.metrics.matching import Matches, match
from pose.metrics.truth import Truth, read, sigmas_of
from pose.people import People
from pose.skeleton import Skeleton

NAMES = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")
"""In the order of COCO's summary."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10),
}  # fmt: skip
"""Square pixels of the annotated segment, both ends included."""
MAX_DETECTIONS = 20


@dataclass(frozen=True)
class OksResult:
    """The figures, and which detection found whom."""

    metrics: dict[str, float]
    """By NAMES; NaN where nothing could be scored."""
    people: People
    truth: Truth
    skeleton: Skeleton

    @cached_property
    def matches(self) -> dict[str, Matches]:
        """By area: who found whom at each of THRESHOLDS, for intervals, slices and diagnosis."""
        return match(self.people, self.truth, sigmas_of(self.skeleton), THRESHOLDS, AREAS, MAX_DETECTIONS)


def evaluate(people: People, truth: Mapping[str, Any] | Truth, skeleton: Skeleton) -> OksResult:
    """COCO's ten figures of any number of people per image against a COCO keypoints annotation dict.

    Raises ConfigError where the skeleton's sigmas are not one per joint, DataError for a truth that cannot be scored
    or people in other images, TrainingError for a prediction that is not a number.
    """
    sigmas = sigmas_of(skeleton)
    parsed = truth if isinstance(truth, Truth) else read(truth, skeleton)
    _require_scorable(people, parsed, skeleton)
    return OksResult(summary(people, parsed, sigmas), people, parsed, skeleton)


def summary(people: People, truth: Truth, sigmas: np.ndarray) -> dict[str, float]:
    """COCO's ten figures by name, by hotcoco."""
    if not len(people) or truth.ignored.all():
        # hotcoco has no result for no detection; nobody found is 0, nobody to find is not a number.
        return {name: _nobody_found(name, truth) for name in NAMES}
    import hotcoco

    known = hotcoco.COCO(_coco(truth))
    evaluator = hotcoco.COCOeval(known, known.load_res(_results(people, truth)), "keypoints")
    evaluator.params.kpt_oks_sigmas = sigmas.tolist()
    evaluator.evaluate()
    evaluator.accumulate()
    tables = evaluator.eval
    assert tables is not None
    precision, recall = tables["precision"], tables["recall"]
    return {name: _mean_known((recall if name.startswith("ar") else precision)[_part(name)]) for name in NAMES}


def _part(name: str) -> tuple[Any, ...]:
    """Which of the thresholds (the tables' first axis) and areas (the last but one) a figure averages over."""
    area = list(AREAS).index(name.split("_")[1]) if "_" in name else 0
    threshold = {"50": slice(0, 1), "75": slice(5, 6)}.get(name[-2:], slice(None))
    return (threshold, ..., area, 0)


def _mean_known(values: np.ndarray) -> float:
    """NaN where nothing could be scored, which the tables mark by -1."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else float("nan")


def _nobody_found(name: str, truth: Truth) -> float:
    low, high = AREAS[name.split("_")[1] if "_" in name else "all"]
    wanted = ~truth.ignored & (truth.areas >= low) & (truth.areas <= high)
    return 0.0 if wanted.any() else float("nan")


def _require_scorable(people: People, truth: Truth, skeleton: Skeleton) -> None:
    if people.keypoints.shape[1] != skeleton.size:
        raise DataError(
            f"the predicted people have {people.keypoints.shape[1]} joints, skeleton {skeleton.name} has "
            f"{skeleton.size}; evaluate a model of this skeleton."
        )
    stray = ~np.isin(people.image_ids, truth.image_ids)
    if stray.any():
        raise DataError(
            f"{int(stray.sum())} of {len(people)} predicted people are in images that the truth does not list, the "
            f"first in image {people.image_ids[stray][0]}; predict the images of the split."
        )
    finite = np.isfinite(people.keypoints).all(axis=(1, 2)) & np.isfinite(people.person_scores)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise TrainingError(
            f"{int((~finite).sum())} of {len(people)} predicted people have a joint or a score that is not a number, "
            f"the first in image {people.image_ids[row]}; the weights are broken, train them again."
        )


def _coco(truth: Truth) -> dict[str, Any]:
    """The least that the evaluation needs. Ids are renumbered from 1: in COCO's tables 0 means unmatched."""
    visibility = truth.labelled.astype(np.float64) + truth.visible
    joints = np.concatenate([truth.keypoints, visibility[..., None]], axis=2).reshape(len(truth), -1).tolist()
    return {
        "images": [{"id": number} for number in truth.image_ids.tolist()],
        "categories": [{"id": truth.category, "name": "person"}],
        "annotations": [
            {"id": n + 1, "image_id": image, "category_id": truth.category, "keypoints": points, "bbox": box,
             "area": area, "iscrowd": int(crowd), "num_keypoints": 0 if ignored else 1}
            for n, (image, points, box, area, crowd, ignored) in enumerate(
                zip(truth.image_ids[truth.image].tolist(), joints, truth.boxes.tolist(), truth.areas.tolist(),
                    truth.crowd.tolist(), truth.ignored.tolist(), strict=True)
            )
        ],
    }  # fmt: skip


def _results(people: People, truth: Truth) -> list[dict[str, Any]]:
    points = people.keypoints.astype(np.float64)
    triples = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2).reshape(len(people), -1)
    # hotcoco reads a row of an array; five million Python floats would take longer than all the rest.
    return [
        {"image_id": image, "category_id": truth.category, "keypoints": joints, "score": score}
        for image, joints, score in zip(
            people.image_ids.tolist(), triples, people.person_scores.astype(np.float64).tolist(), strict=True
        )
    ]
