"""OKS-NMS: of poses too similar to each other only the most confident stays (Papandreou et al., CVPR 2017, as the
released SimpleBaseline evaluation does it), and the confidence it goes by.

The similarity of two poses is OKS with the mean of both areas, over all joints.
"""

from __future__ import annotations

import numpy as np

from pose.people import People

THRESHOLD = 0.9
FEW = 3
"""Joints that are compared first: most pairs are far apart already there."""


def oks_nms(
    keypoints: np.ndarray, scores: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, threshold: float = THRESHOLD
) -> np.ndarray:
    """Indices of the poses [N, K, 2] that stay, most confident first; of equal scores [N] the later pose leads.

    areas [N] square px, sigmas [K]. A pose goes when its similarity with one that stays is above `threshold`.
    """
    order = np.argsort(scores, kind="stable")[::-1]
    similar = _similar_pairs(keypoints[order].astype(np.float64), areas[order].astype(np.float64), sigmas, threshold)
    gone = np.zeros(len(order), bool)
    for n in np.flatnonzero(similar.any(axis=1)):
        if not gone[n]:
            gone |= similar[n]
    return order[~gone]


def rescored(people: People, box_scores: np.ndarray, above: float | None = None) -> People:
    """Person scores as box score [N] times the mean joint score.

    above: only joints with a higher score count, and a person without any scores 0. This is the released code's way
    (0.2 there), which presumes maps that peak near one.
    """
    joints = people.scores.astype(np.float64)
    counted = np.ones(joints.shape, bool) if above is None else joints > above
    mean = np.where(counted, joints, 0).sum(axis=1) / counted.sum(axis=1).clip(min=1)
    scores = box_scores.astype(np.float64) * mean
    return People(**(vars(people) | {"person_scores": scores.astype(np.float32)}))


def suppress(people: People, sigmas: np.ndarray, areas: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Rows of the people who stay after OKS-NMS in each image, in their order. areas: [N] square px."""
    order = np.argsort(people.image_ids, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(people.image_ids[order])) + 1)
    kept = [
        rows if len(rows) < 2 else rows[oks_nms(people.keypoints[rows], people.person_scores[rows], areas[rows],
                                                sigmas, threshold)]
        for rows in groups
    ]  # fmt: skip
    return np.sort(np.concatenate(kept)) if kept else order


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """[N] float64, of boxes [N, 4] xyxy."""
    return (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(axis=1)


def seen_areas(boxes: np.ndarray, aspect: float, padding: float) -> np.ndarray:
    """[N] float64, of what a network sees of boxes [N, 4]: widened to its input's width over height, times `padding`.

    See pose.data.views.view.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).T
    seen = padding * np.maximum(width / aspect, height)
    return aspect * seen**2


def _similar_pairs(points: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, threshold: float) -> np.ndarray:
    """[N, N] bool, upper triangle: similarity of poses n and m above the threshold."""
    count, joints = points.shape[:2]
    result = np.zeros((count, count), bool)
    first, second = np.triu_indices(count, 1)
    variances = (sigmas * 2) ** 2
    for part in (slice(0, FEW), slice(None)):
        offset = points[first, part] - points[second, part]
        squares = offset[..., 0] ** 2 + offset[..., 1] ** 2
        mean_area = (areas[first] + areas[second]) / 2 + np.spacing(1)
        values = np.exp(-squares / variances[part] / mean_area[:, None] / 2)
        # Joints not yet looked at may all agree; the margin keeps rounding from deciding.
        reachable = values.sum(axis=1) + (joints - values.shape[1])
        near = reachable > threshold * joints - 1e-9
        first, second, values = first[near], second[near], values[near]
    similar = values.mean(axis=1) > threshold
    result[first[similar], second[similar]] = True
    return result
