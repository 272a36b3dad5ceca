"""What goes wrong, and what each kind of error costs: after Ronchi & Perona, Benchmarking and Error Diagnosis in
Multi-Instance Pose Estimation (ICCV 2017), section 3.

Detections are matched loosely (OKS 0.1). A matched one's joint has similarity s = exp(-d² / 2 area (2 sigma)²) with
its true place: good from 0.85 on; jitter from 0.5 on; below it an inversion where it is at least 0.5 with the
person's own joint of the other side; a swap where it is with the same joint, or the other side's, of somebody else
in the image (of both, the greater); else a miss. What a kind costs is the average precision gained when all its joints
are put at their true place, its detections removed (background: similar to nobody; duplicate: similar to somebody
whom another found) or its people not asked for (not found). The paper moves corrected joints to the border of good
instead, which differs only where similar errors of several joints add up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pose.metrics import oks
from pose.metrics.matching import Matches, match
from pose.metrics.oks import OksResult
from pose.metrics.slices import most_similar
from pose.metrics.truth import Truth, sigmas_of

LOOSE = 0.1
GOOD, NEAR = 0.85, 0.5
JOINT_KINDS = ("good", "jitter", "inversion", "swap", "miss")
KINDS = (*JOINT_KINDS[1:], "background", "duplicate", "not_found")


@dataclass(frozen=True)
class Diagnosis:
    """Errors by kind."""

    ap: float
    """As it is."""
    gained: dict[str, float]
    """By KINDS: average precision with this kind of error mended, minus `ap`."""
    counts: dict[str, int]
    """By JOINT_KINDS joints of matched people, then background, duplicate: detections, not_found: people."""
    joints: np.ndarray
    """[K, 5] share of each joint's labelled and matched occurrences by JOINT_KINDS; NaN where there is none."""


def evaluate(result: OksResult) -> Diagnosis:
    """What each kind of error costs."""
    truth, sigmas = result.truth, sigmas_of(result.skeleton)
    loose = match(result.people, truth, sigmas, np.array([LOOSE]), {"all": oks.AREAS["all"]}, oks.MAX_DETECTIONS)["all"]
    pairs = np.flatnonzero(loose.right[:, 0])
    annotation = loose.found[pairs, 0]
    kinds = joint_kinds(result, loose.person[pairs], annotation)
    ap = result.metrics["ap"]
    gained = {
        name: _mended(result, loose.person[pairs], annotation, kinds == number) - ap
        for number, name in enumerate(JOINT_KINDS)
        if number
    }
    background, duplicate = _false_positives(result, loose, sigmas)
    missed = loose.wanted & (loose.found_by[:, 0] < 0)
    gained["background"] = _without_detections(result, loose.person[background]) - ap
    gained["duplicate"] = _without_detections(result, loose.person[duplicate]) - ap
    found_or_aside = replace(truth, ignored=truth.ignored | missed)
    gained["not_found"] = oks.summary(result.people, found_or_aside, sigmas)["ap"] - ap
    counts = {name: int((kinds == number).sum()) for number, name in enumerate(JOINT_KINDS)}
    counts |= {"background": len(background), "duplicate": len(duplicate), "not_found": int(missed.sum())}
    return Diagnosis(ap, gained, counts, _shares(kinds))


def joint_kinds(result: OksResult, person: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """[M, K] index into JOINT_KINDS for each joint of each matched pair, -1 where the joint is not labelled."""
    truth, mirror = result.truth, result.skeleton.mirror
    points = result.people.keypoints.astype(np.float64)[person]
    spread = 2 * (2 * sigmas_of(result.skeleton)) ** 2
    own = _joint_similarity(points, truth, annotation, np.arange(len(mirror)), spread)
    inverted = np.where(
        mirror == np.arange(len(mirror)), 0, _joint_similarity(points, truth, annotation, mirror, spread)
    )
    other = np.zeros_like(own)
    for rows, neighbour in _neighbours(truth, annotation):
        for column in (np.arange(len(mirror)), mirror):
            value = _joint_similarity(points[rows], truth, neighbour, column, spread)
            other[rows] = np.maximum(other[rows], value)
    wrong = np.where(
        np.maximum(inverted, other) < NEAR, JOINT_KINDS.index("miss"),
        np.where(inverted >= other, JOINT_KINDS.index("inversion"), JOINT_KINDS.index("swap")),
    )  # fmt: skip
    kinds = np.where(own >= GOOD, 0, np.where(own >= NEAR, JOINT_KINDS.index("jitter"), wrong))
    return np.where(truth.labelled[annotation], kinds, -1)


def _joint_similarity(
    points: np.ndarray, truth: Truth, annotation: np.ndarray, column: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """[M, K] similarity of joint k with the annotation's joint column[k]; 0 where that is not labelled."""
    offset = points - truth.keypoints[annotation][:, column]
    squares = (offset**2).sum(axis=2)
    value = np.exp(-squares / spread[column] / (truth.areas[annotation] + np.spacing(1))[:, None])
    return np.where(truth.labelled[annotation][:, column], value, 0.0)


def _neighbours(truth: Truth, annotation: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each further person of an image in turn: rows [m] of `annotation` that have one, and who [m] that is."""
    order = np.argsort(truth.image, kind="stable")
    each = np.bincount(truth.image, minlength=len(truth.image_ids))
    first = np.cumsum(each) - each
    turns = []
    for column in range(int(each.max(initial=0))):
        rows = np.flatnonzero(each[truth.image[annotation]] > column)
        who = order[first[truth.image[annotation[rows]]] + column]
        rows, who = rows[who != annotation[rows]], who[who != annotation[rows]]
        if len(rows):
            turns.append((rows, who))
    return turns


def _mended(result: OksResult, person: np.ndarray, annotation: np.ndarray, wrong: np.ndarray) -> float:
    keypoints = result.people.keypoints.copy()
    row, joint = np.nonzero(wrong)
    keypoints[person[row], joint] = result.truth.keypoints[annotation[row], joint]
    people = replace(result.people, keypoints=keypoints)
    return oks.summary(people, result.truth, sigmas_of(result.skeleton))["ap"]


def _false_positives(result: OksResult, loose: Matches, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unmatched detections that are similar to nobody, and those similar to somebody whom another found."""
    alone = (loose.found[:, 0] < 0) & ~loose.ignored[:, 0]
    similar = most_similar(loose, result.truth, result.people, sigmas)[1] >= LOOSE
    return np.flatnonzero(alone & ~similar), np.flatnonzero(alone & similar)


def _without_detections(result: OksResult, person: np.ndarray) -> float:
    kept = np.ones(len(result.people), bool)
    kept[person] = False
    return oks.summary(result.people.select(kept), result.truth, sigmas_of(result.skeleton))["ap"]


def _shares(kinds: np.ndarray) -> np.ndarray:
    counts = np.stack([(kinds == number).sum(axis=0) for number in range(len(JOINT_KINDS))], axis=1)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
