"""PCK: the share of joints found near enough to where they are.

Every measure is over labelled joints only. An error function gives each joint's distance in the measure's own unit,
NaN where the joint is not scored (no label, or nothing to divide by) and inf where the prediction has no position:
that is a miss, not an omission. A joint is hit where error <= threshold.

Geometry decides the number, so it is stated with each: a mean pose reaches 12 % of LSP-extended in the squashed
square, 17 % in a letterboxed one.
"""

from __future__ import annotations

import numpy as np

from pose.errors import ConfigError, DataError
from pose.people import People
from pose.skeleton import Skeleton

Counts = tuple[np.ndarray, np.ndarray]
"""Numerator and denominator, both [N, ...] float64, of a ratio that is taken after summing over people."""

IMAGE_THRESHOLD = 1 / 12
"""Share of the squashed image's side."""
TORSO_THRESHOLD = 0.2
"""Share of the torso, left shoulder to right hip."""
HEAD_THRESHOLD = 0.5
"""Share of the head: of the segment from neck to head top, or of MPII's HEAD_BOX_SHARE of a head box."""
HEAD_BOX_SHARE = 0.6
"""Of a head box's diagonal, MPII's length of a head."""

IMAGE_GRID = np.linspace(0, 0.25, 51)
TORSO_GRID = np.linspace(0, 0.5, 51)
"""Thresholds of the two curves; the torso AUC is the trapezoid mean over [0, 0.5] in steps of 0.01."""


def require_same_people(predictions: People, truth: People) -> None:
    """Raises DataError unless row n of both is the same person."""
    if predictions.keypoints.shape != truth.keypoints.shape:
        raise DataError(
            f"predictions are {predictions.keypoints.shape[:2]} people x joints, the truth is "
            f"{truth.keypoints.shape[:2]}; predict exactly the people of the split, in its order"
        )
    if not np.array_equal(predictions.image_ids, truth.image_ids):
        row = int(np.flatnonzero(predictions.image_ids != truth.image_ids)[0])
        raise DataError(
            f"prediction {row} is of image {predictions.image_ids[row]}, the truth there is of image "
            f"{truth.image_ids[row]}; predictions must be in the order of the split"
        )


def image_errors(predictions: People, truth: People) -> np.ndarray:
    """[N, K] hypot(dx / w, dy / h): distances after the whole image is squashed to a unit square."""
    return _distances(predictions, truth, truth.image_sizes.astype(np.float64)[:, None, :])


def torso_errors(predictions: People, truth: People, skeleton: Skeleton) -> np.ndarray:
    """[N, K] distances in the original image over the labelled torso length; NaN for people without one."""
    return _segment_errors(predictions, truth, skeleton, skeleton.torso)


def head_errors(predictions: People, truth: People, skeleton: Skeleton) -> np.ndarray:
    """[N, K] distances in the original image over the labelled head segment; NaN for people without one.

    Raises ConfigError for a skeleton that has no such segment.
    """
    if skeleton.head is None:
        raise ConfigError(f"skeleton {skeleton.name} has no head segment, so PCKh is not defined for it")
    return _segment_errors(predictions, truth, skeleton, skeleton.head)


def head_box_errors(predictions: People, truth: People, head_boxes: np.ndarray) -> np.ndarray:
    """[N, K] distances in the original image over MPII's head size; NaN for people without a head box.

    head_boxes: [N, 4] x1, y1, x2, y2 in the original image.
    """
    diagonal = HEAD_BOX_SHARE * np.hypot(*(head_boxes[:, 2:] - head_boxes[:, :2]).astype(np.float64).T)
    return _distances(predictions, truth, np.where(diagonal > 0, diagonal, np.nan)[:, None, None])


def hits(errors: np.ndarray, threshold: float) -> Counts:
    """[N, K] each: 1 where hit; 1 where scored."""
    return (errors <= threshold).astype(np.float64), (~np.isnan(errors)).astype(np.float64)


def over_joints(counts: Counts) -> Counts:
    """[N, ...] to [N, 1]: all joints of a person in one sum."""
    numerator, denominator = counts
    return numerator.sum(axis=1, keepdims=True), denominator.sum(axis=1, keepdims=True)


def curve(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[T] share of scored joints within each threshold; NaN if none is scored."""
    scored = np.sort(errors[~np.isnan(errors)])
    if not len(scored):
        return np.full(len(thresholds), np.nan)
    return np.searchsorted(scored, thresholds, side="right") / len(scored)


def area(errors: np.ndarray, grid: np.ndarray) -> Counts:
    """[N, K] each: the joint's own share of the area under the curve (trapezoid over `grid`, divided by its range)."""
    steps = np.diff(grid)
    weights = np.zeros(len(grid))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    # A joint is hit from the first threshold at or above its error on, so its area is a suffix sum of the weights.
    suffix = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]]) / (grid[-1] - grid[0])
    scored = ~np.isnan(errors)
    first = np.searchsorted(grid, np.where(scored, errors, np.inf), side="left")
    return suffix[first], scored.astype(np.float64)


def squared_unit_errors(predictions: People, truth: People) -> Counts:
    """[N, K] each: squared errors of x/w and y/h, and how many (2 per visible joint). Their ratio is the MSE.

    Visible joints only: per coordinate, targets in [0, 1] of the squashed image.
    """
    visible = truth.labelled & (truth.presence > 0.5)
    squares = image_errors(predictions, truth) ** 2
    return np.where(visible, squares, 0.0), 2.0 * visible


def _segment_errors(predictions: People, truth: People, skeleton: Skeleton, ends: tuple[str, str]) -> np.ndarray:
    a, b = (skeleton.index(end) for end in ends)
    points = truth.keypoints.astype(np.float64)
    length = np.hypot(*(points[:, a] - points[:, b]).T)
    usable = truth.labelled[:, a] & truth.labelled[:, b] & (length > 0)
    return _distances(predictions, truth, np.where(usable, length, np.nan)[:, None, None])


def _distances(predictions: People, truth: People, unit: np.ndarray) -> np.ndarray:
    require_same_people(predictions, truth)
    offset = (predictions.keypoints.astype(np.float64) - truth.keypoints.astype(np.float64)) / unit
    distance = np.hypot(offset[..., 0], offset[..., 1])
    scored = truth.labelled & ~np.isnan(unit).any(axis=2)
    return np.where(scored, np.where(np.isnan(distance), np.inf, distance), np.nan)
