"""Parametric pose NMS: of several poses found for one person the best stays, as RMPE has it and as it was released.

Poses are taken by falling score. The one taken removes every other pose j that is near enough to it:

    K_j = sum over joints near each other of tanh(c_i / score_scale) tanh(c_j / score_scale)
    paper (RMPE, equations 8 to 11): H_j = sum of exp(-distance^2 / proximity), near: within a tenth of the box around
        the joint, half of it to either side; j goes where K_j + weight H_j >= threshold
    released code: H_j = sum of exp(-distance / proximity), near: within NEAR px; j goes where K_j + weight H_j >
        threshold, or where match_count joints lie within MATCH_REACH px (less for small people); those that go are
        merged into the pose that stays, joint by joint

The released constants (17 joints) are RELEASED; the paper prints none for its formula, so PAPER has them converted as
far as they can be and is meant to be fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pose.people import People

NEAR = 1.0
"""Released K: joints this far apart or nearer count, px."""
BOX_SHARE = 0.1
"""Paper: sides of the box around a joint, as a share of the person's box. Released: reference length likewise."""
MATCH_REACH, MERGE_REACH = 7.0, 15.0
"""Released: joints match, and merge, within the reference length but no more than this, px."""
TINY_SCORE = 1e-5
"""Released: takes the place of a score of zero."""
BEST_WEIGHT = 1.25
"""Released: of the best joint in a pose's score, beside the mean and the box's score."""
TOP_SCORE = 2 + BEST_WEIGHT


@dataclass(frozen=True)
class PoseNms:
    """The formula and its four fitted numbers, with the released code's further limits."""

    formula: Literal["released", "paper"] = "released"
    score_scale: float = 1.0
    proximity: float = 2.65
    """Released: px. Paper: px squared."""
    weight: float = 1.7
    threshold: float = 22.48
    match_count: int = 5
    """Released only."""
    min_score: float = 0.3
    """Released only: poses whose best joint is below this are dropped, before and after merging."""


RELEASED = PoseNms()
PAPER = PoseNms(formula="paper", proximity=2.65**2)


@dataclass(frozen=True)
class Suppressed:
    """What stays of N poses in one image."""

    kept: np.ndarray
    """[M] int64, by falling score."""
    owner: np.ndarray
    """[N] int64: the place in `kept` of the pose that removed this one, its own for those that stay."""


def suppress(keypoints: np.ndarray, scores: np.ndarray, boxes: np.ndarray, params: PoseNms = RELEASED) -> Suppressed:
    """Keypoints [N, K, 2] px, scores [N, K] in [0, 1] and boxes [N, 4] xyxy of one image's poses."""
    order = np.argsort(-scores.mean(axis=1), kind="stable")
    # Joints first: sums over joints then run over whole rows of memory.
    x, y = (np.ascontiguousarray(keypoints[order, :, axis].T, dtype=np.float32) for axis in (0, 1))  # [K, N]
    confidence = np.tanh(scores[order].T / np.float32(params.score_scale)).astype(np.float32)
    sides = (boxes[order, 2:] - boxes[order, :2]).astype(np.float32)
    removes = _removes_as_released if params.formula == "released" else _removes_as_paper
    owner, waiting = np.full(len(order), -1), np.arange(len(order))
    kept: list[int] = []
    while len(waiting):
        best, others = waiting[0], waiting[1:]
        gone = removes(
            x[:, others] - x[:, best, None],
            y[:, others] - y[:, best, None],
            confidence[:, best, None] * confidence[:, others],
            sides[best],
            params,
        )
        owner[best], owner[others[gone]] = len(kept), len(kept)
        kept.append(best)
        waiting = others[~gone]
    original = np.empty_like(owner)
    original[order] = owner
    return Suppressed(order[kept].astype(np.int64), original.astype(np.int64))


def _removes_as_released(
    dx: np.ndarray, dy: np.ndarray, confidence: np.ndarray, side: np.ndarray, params: PoseNms
) -> np.ndarray:
    """[M] bool for offsets and products of confidences [K, M] to a pose whose box has width and height `side`."""
    distance = np.sqrt(dx * dx + dy * dy)
    similarity = np.where(distance <= NEAR, confidence, 0).sum(axis=0)
    similarity += params.weight * np.exp(distance / np.float32(-params.proximity)).sum(axis=0)
    matches = (distance <= min(_reference(side), MATCH_REACH)).sum(axis=0)
    return (similarity > params.threshold) | (matches >= params.match_count)


def _removes_as_paper(
    dx: np.ndarray, dy: np.ndarray, confidence: np.ndarray, side: np.ndarray, params: PoseNms
) -> np.ndarray:
    """As for the released code."""
    width, height = BOX_SHARE / 2 * side
    near = (np.abs(dx) <= width) & (np.abs(dy) <= height)
    similarity = np.where(near, confidence, 0).sum(axis=0)
    similarity += params.weight * np.exp((dx * dx + dy * dy) / np.float32(-params.proximity)).sum(axis=0)
    return similarity >= params.threshold


def _reference(side: np.ndarray) -> np.ndarray:
    return BOX_SHARE * side.max(axis=-1)


def merge(
    keypoints: np.ndarray, scores: np.ndarray, boxes: np.ndarray, found: Suppressed
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints [M, K, 2], scores [M, K] of what stays, and the weights [N, K] with which each pose went into it.

    A joint becomes the score-weighted mean, of position and of score, over the removed poses that have it within
    MERGE_REACH of the pose that stays.
    """
    stays = found.kept[found.owner]
    offset = keypoints - keypoints[stays]
    distance = np.sqrt((offset * offset).sum(axis=2))
    reach = np.minimum(_reference(boxes[:, 2:] - boxes[:, :2]), MERGE_REACH)[stays]
    weights = np.where(distance <= reach[:, None], scores, 0)
    weights = weights / _gather(weights, found)[found.owner]
    merged = _gather(np.concatenate([keypoints, scores[..., None]], axis=2) * weights[..., None], found)
    return merged[..., :2], merged[..., 2], weights


def _gather(values: np.ndarray, found: Suppressed) -> np.ndarray:
    """[M, ...], sums over the poses [N, ...] that belong to each of those that stay."""
    order = np.argsort(found.owner, kind="stable")
    starts = np.searchsorted(found.owner[order], np.arange(len(found.kept)))
    return np.add.reduceat(values[order], starts, axis=0) if len(starts) else values


def pose_nms(people: People, params: PoseNms = RELEASED) -> People:
    """What stays of the people of each image, images in order of first appearance, people by falling score.

    `person_scores` are taken as the boxes' scores. As released: poses are merged, and a pose's score is the mean and
    1.25 of the best of its joints' scores and its box's score, divided by TOP_SCORE to lie in [0, 1]. As in the paper:
    poses stay as they are.
    """
    if not len(people):
        return people
    _, first, image = np.unique(people.image_ids, return_index=True, return_inverse=True)
    groups = [np.flatnonzero(image == number) for number in np.argsort(first)]
    one = _released_image if params.formula == "released" else _paper_image
    return People.concatenate([one(people.select(rows), params) for rows in groups])


def _paper_image(people: People, params: PoseNms) -> People:
    return people.select(suppress(people.keypoints, people.scores, people.boxes, params).kept)


def _released_image(people: People, params: PoseNms) -> People:
    scores = np.where(people.scores == 0, np.float32(TINY_SCORE), people.scores)
    found = suppress(people.keypoints, scores, people.boxes, params)
    keypoints, merged, weights = merge(people.keypoints, scores, people.boxes, found)
    presence = _gather(people.presence * weights, found)
    best = people.select(found.kept)
    total = merged.mean(axis=1) + best.person_scores + BEST_WEIGHT * merged.max(axis=1)
    result = replace(
        best,
        keypoints=keypoints.astype(np.float32),
        scores=merged.astype(np.float32),
        presence=presence.astype(np.float32),
        person_scores=(total / TOP_SCORE).astype(np.float32),
    )
    enough = np.minimum(scores[found.kept].max(axis=1), merged.max(axis=1)) >= params.min_score
    return result.select(enough)
