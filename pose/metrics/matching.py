"""Who found whom: object keypoint similarity, and COCO's greedy matching of all images at once.

The arithmetic is that of pycocotools, operation by operation, so that no similarity differs in its last bit: a
threshold passed by a hair there is passed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pose.metrics.truth import Truth
from pose.people import People

Areas = Mapping[str, tuple[float, float]]
"""Least and greatest square px by name, both included."""


@dataclass(frozen=True)
class Matches:
    """D counted detections against G annotations in one range of areas, at T thresholds.

    Detections are ordered by image, then by falling score; those beyond an image's most confident are left out.
    """

    image: np.ndarray
    """[D] int64, position in the truth's image_ids."""
    person: np.ndarray
    """[D] int64, row of the people."""
    scores: np.ndarray
    """[D] float64."""
    found: np.ndarray
    """[D, T] int64, the annotation found, -1 for none."""
    ignored: np.ndarray
    """[D, T] bool: neither right nor wrong, as it found an ignored annotation or is of another size."""
    wanted: np.ndarray
    """[G] bool: who is to be found."""
    found_by: np.ndarray
    """[G, T] int64, the detection (position in D) that found the annotation, -1 for none."""

    @property
    def right(self) -> np.ndarray:
        """[D, T] bool: found somebody who was to be found."""
        return (self.found >= 0) & ~self.ignored


def similarity(points: np.ndarray, truth: Truth, rows: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """[M] OKS of poses [M, K, 2] float64 with the annotations at `rows` [M].

    Where an annotation labels nothing, a joint's distance is that to its box, doubled in size around it.
    """
    offset = points - truth.keypoints[rows]
    blank = ~truth.labelled[rows].any(axis=1)
    if blank.any():
        low = truth.boxes[rows[blank], None, :2] - truth.boxes[rows[blank], None, 2:]
        high = truth.boxes[rows[blank], None, :2] + truth.boxes[rows[blank], None, 2:] * 2
        inside = points[blank]
        offset[blank] = np.maximum(0, low - inside) + np.maximum(0, inside - high)
    squares = offset[..., 0] ** 2 + offset[..., 1] ** 2
    exponents = squares / (sigmas * 2) ** 2 / (truth.areas[rows] + np.spacing(1))[:, None] / 2
    counted = np.where(blank[:, None], True, truth.labelled[rows])
    return _mean_counted(np.exp(-exponents), counted)


def match(
    people: People,
    truth: Truth,
    sigmas: np.ndarray,
    thresholds: np.ndarray,
    areas: Areas,
    most: int,
) -> dict[str, Matches]:
    """Who found whom by OKS at every threshold, by area; at most `most` detections of each image count."""
    points = people.keypoints.astype(np.float64)
    extent = points.max(axis=1) - points.min(axis=1)

    def oks(person: np.ndarray, annotation: np.ndarray) -> np.ndarray:
        return similarity(points[person], truth, annotation, sigmas)

    return match_by(oks, extent[:, 0] * extent[:, 1], people, truth, thresholds, areas, most)


def match_by(
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    extents: np.ndarray,
    people: People,
    truth: Truth,
    thresholds: np.ndarray,
    areas: Areas,
    most: int,
) -> dict[str, Matches]:
    """The same by any similarity: of people at rows [M] with annotations at rows [M].

    extents: [N] areas of the people's detections, square px.
    """
    scores = people.person_scores.astype(np.float64)
    image = np.searchsorted(truth.image_ids, people.image_ids)
    person = np.lexsort((-scores, image))  # stable: ties keep the people's order
    rank = _rank_in_group(image[person])
    person, rank = person[rank < most], rank[rank < most]
    image = image[person]
    order = np.argsort(truth.image, kind="stable")
    grid = _Grid(image, rank, truth.image[order], len(truth.image_ids))
    detection, column = grid.pairs()
    similar = grid.fill(measure(person[detection], order[grid.annotation(detection, column)]))
    matched = {}
    for name, (low, high) in areas.items():
        aside = truth.ignored | (truth.areas < low) | (truth.areas > high)
        found = grid.match(similar, aside[order], truth.crowd[order], thresholds)
        found = np.where(found >= 0, order[found], -1) if len(order) else found
        outside = (extents[person] < low) | (extents[person] > high)
        ignored = np.where(found >= 0, aside[found], outside[:, None]) if len(order) else found * 0 + outside[:, None]
        matched[name] = Matches(
            image, person, scores[person], found, ignored.astype(bool), ~aside, _inverse(found, len(truth))
        )
    return matched


class _Grid:
    """Images with detections as rows of a dense table: detections by rank, annotations by their order in the image."""

    def __init__(self, image: np.ndarray, rank: np.ndarray, annotated: np.ndarray, images: int) -> None:
        self.image, self.rank = image, rank
        self.detections = np.bincount(image, minlength=images)
        self.annotations = np.bincount(annotated, minlength=images)
        self.first = np.concatenate([[0], np.cumsum(self.annotations)[:-1]]).astype(np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.detections)[:-1]]).astype(np.int64)
        self.width = int(self.annotations.max(initial=0))

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """[M] detection and [M] column of every detection with every annotation of its image."""
        each = self.annotations[self.image]
        detection = np.repeat(np.arange(len(self.image)), each)
        return detection, np.arange(len(detection)) - np.repeat(np.cumsum(each) - each, each)

    def annotation(self, detection: np.ndarray, column: np.ndarray) -> np.ndarray:
        return self.first[self.image[detection]] + column

    def fill(self, values: np.ndarray) -> np.ndarray:
        """[D, width]: the pairs' values, -1 beyond an image's annotations."""
        table = np.full((len(self.image), self.width), -1.0)
        table[self.pairs()] = values
        return table

    def match(self, oks: np.ndarray, aside: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """[D, T] annotation found, -1 for none: most confident first, whoever is most similar and still free.

        Annotations set aside are taken only where nobody else is similar enough; crowds can be found by many.
        """
        found = np.full((len(self.image), len(thresholds)), -1, np.int64)
        if not self.width:
            return found
        # Images with the most detections first: those that have one of rank d are then the first rows.
        by_count = np.argsort(-self.detections, kind="stable")
        busy = by_count[self.detections[by_count] > 0]
        columns = np.minimum(self.first[busy, None] + np.arange(self.width), len(aside) - 1)
        real = np.arange(self.width) < self.annotations[busy, None]
        side, many = aside[columns] & real, crowd[columns] & real
        taken = np.zeros((len(busy), len(thresholds), self.width), bool)
        floor = np.minimum(thresholds, 1 - 1e-10)[None, :, None]
        for d in range(int(self.rank.max(initial=-1)) + 1):
            rows = slice(0, int((self.detections[busy] > d).sum()))
            detection = self.start[busy[rows]] + d
            near = (oks[detection][:, None, :] >= floor) & real[rows, None] & (~taken[rows] | many[rows, None])
            chosen = _last_best(oks[detection], near & ~side[rows, None])
            spare = _last_best(oks[detection], near & side[rows, None])
            chosen = np.where(chosen >= 0, chosen, spare)
            image, threshold = np.nonzero(chosen >= 0)
            taken[image, threshold, chosen[image, threshold]] = True
            found[detection] = np.where(chosen >= 0, self.first[busy[rows], None] + chosen, -1)
        return found


def _last_best(oks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[I, T] column of the greatest similarity [I, G] among candidates [I, T, G], the last of equals; -1 for none."""
    values = np.where(candidates, oks[:, None, :], -1.0)[..., ::-1]
    best = values.argmax(axis=2)
    return np.where(candidates.any(axis=2), values.shape[2] - 1 - best, -1)


def _mean_counted(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """[M] mean over the counted of [M, K]. The sum runs over exactly so many numbers, as rounding depends on it."""
    result = np.zeros(len(values))
    counts = counted.sum(axis=1)
    packed = np.take_along_axis(values, np.argsort(~counted, axis=1, kind="stable"), axis=1)
    for count in np.unique(counts):
        rows = counts == count
        result[rows] = np.ascontiguousarray(packed[rows, :count]).sum(axis=1) / count
    return result


def _rank_in_group(group: np.ndarray) -> np.ndarray:
    """[N] position within its run of equal values."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))


def _inverse(found: np.ndarray, annotations: int) -> np.ndarray:
    """[G, T] the detection that found each annotation; of a crowd, the last."""
    by = np.full((annotations, found.shape[1]), -1, np.int64)
    detection, threshold = np.nonzero(found >= 0)
    by[found[detection, threshold], threshold] = detection
    return by
