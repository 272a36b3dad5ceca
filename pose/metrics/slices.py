"""Slices: how well people are found who are small, hidden, crowded or cut off.

A slice's average precision counts its own people; others' detections are left out. A detection that found nobody
belongs to whom it is most similar, and to no slice where its image holds nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pose.metrics import bootstrap
from pose.metrics.matching import Matches, similarity
from pose.metrics.oks import OksResult
from pose.metrics.ranking import Ranking
from pose.metrics.truth import Truth
from pose.people import People

BORDER = 2.0
"""Px from the image's edge at which a box counts as cut off."""


@dataclass(frozen=True)
class Slice:
    """One group of people. Figures are NaN where it is empty."""

    kind: str
    """What is sliced by: size, occlusion, visible joints, crowding, truncation."""
    name: str
    people: int
    ap: float
    ap_interval: tuple[float, float]
    ar: float
    ar_interval: tuple[float, float]


def evaluate(result: OksResult, counts: np.ndarray, confidence: float) -> list[Slice]:
    """Every slice that holds somebody; counts [R, I]: the bootstrap's draws of images."""
    matches, truth = result.matches["all"], result.truth
    owner = owners(matches, truth, result.people, np.array(result.skeleton.oks_sigmas))
    made = []
    for kind, groups in members(truth).items():
        for name, member in groups.items():
            member = member & matches.wanted
            if not member.any():
                continue
            ranking = _ranking(matches, truth, owner, member)
            made.append(
                Slice(
                    kind,
                    name,
                    int(member.sum()),
                    float(ranking.precision(ranking.once)[0]),
                    bootstrap.percentiles(ranking.precision(counts), confidence),
                    float(ranking.recall(ranking.once)[0]),
                    bootstrap.percentiles(ranking.recall(counts), confidence),
                )
            )
    return made


def members(truth: Truth) -> dict[str, dict[str, np.ndarray]]:
    """Per kind and slice: [G] bool, who belongs to it. Who cannot be told (no image size) belongs to none."""
    hidden = (truth.labelled & ~truth.visible).sum(axis=1) / np.maximum(truth.labelled.sum(axis=1), 1)
    visible = truth.visible.sum(axis=1)
    overlap = crowding(truth)
    joints = truth.labelled.shape[1]
    third = -(-joints // 3)
    low, high = truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]
    size = truth.image_sizes[truth.image]
    cut = (low <= BORDER).any(axis=1) | (high >= size - BORDER).any(axis=1)
    known = np.isfinite(size).all(axis=1)
    return {
        "size": {
            "below 32² px": truth.areas < 32**2,
            "32² to 96² px": _between(truth.areas, 32**2, 96**2),
            "96² px and more": truth.areas >= 96**2,
        },
        "hidden joints": {
            "none": hidden == 0,
            "up to a quarter": _between(hidden, 1e-9, 0.25 + 1e-9),
            "a quarter to a half": _between(hidden, 0.25 + 1e-9, 0.5 + 1e-9),
            "more than half": hidden > 0.5 + 1e-9,
        },
        "visible joints": {
            f"0 to {third}": visible <= third,
            f"{third + 1} to {2 * third}": _between(visible, third + 1, 2 * third + 1),
            f"{2 * third + 1} to {joints}": visible > 2 * third,
        },
        "crowding (box IoU)": {
            "below 0.1": overlap < 0.1,
            "0.1 to 0.3": _between(overlap, 0.1, 0.3),
            "0.3 to 0.5": _between(overlap, 0.3, 0.5),
            "0.5 and more": overlap >= 0.5,
        },
        "truncation": {"inside the image": known & ~cut, "at its edge": known & cut},
    }


def crowding(truth: Truth) -> np.ndarray:
    """[G] greatest box IoU with anybody else in the image, crowds left out."""
    low, high = truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]
    area = truth.boxes[:, 2] * truth.boxes[:, 3]
    greatest = np.zeros(len(truth))
    order = np.argsort(truth.image, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(truth.image[order])) + 1):
        rows = rows[~truth.crowd[rows]]
        if len(rows) < 2:
            continue
        extent = np.minimum(high[rows, None], high[None, rows]) - np.maximum(low[rows, None], low[None, rows])
        common = np.maximum(extent, 0).prod(axis=2)
        union = area[rows, None] + area[None, rows] - common
        iou = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
        np.fill_diagonal(iou, 0)
        greatest[rows] = iou.max(axis=1)
    return greatest


def owners(matches: Matches, truth: Truth, people: People, sigmas: np.ndarray) -> np.ndarray:
    """[D, T] the annotation a detection belongs to: whom it found, else whom it is most similar to, -1 for nobody."""
    nearest = most_similar(matches, truth, people, sigmas)[0]
    return np.where(matches.found >= 0, matches.found, nearest[:, None])


def most_similar(matches: Matches, truth: Truth, people: People, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[D] the wanted annotation most similar to each detection and [D] how similar; -1 and 0 where there is none."""
    points = people.keypoints.astype(np.float64)[matches.person]
    nearest = np.full(len(matches.image), -1, np.int64)
    greatest = np.zeros(len(matches.image))
    wanted = np.flatnonzero(matches.wanted)
    wanted = wanted[np.argsort(truth.image[wanted], kind="stable")]
    each = np.bincount(truth.image[wanted], minlength=len(truth.image_ids))
    first = np.cumsum(each) - each
    for column in range(int(each.max(initial=0))):
        rows = np.flatnonzero(each[matches.image] > column)
        annotation = wanted[first[matches.image[rows]] + column]
        value = similarity(points[rows], truth, annotation, sigmas)
        better = (value > greatest[rows]) | (nearest[rows] < 0)
        nearest[rows] = np.where(better, annotation, nearest[rows])
        greatest[rows] = np.where(better, value, greatest[rows])
    return nearest, greatest


def _ranking(matches: Matches, truth: Truth, owner: np.ndarray, member: np.ndarray) -> Ranking:
    order = np.argsort(-matches.scores, kind="stable")
    mine = (owner >= 0) & member[owner]
    kept = order[mine[order].any(axis=1)]
    return Ranking(
        image=matches.image[kept],
        right=(matches.right & mine)[kept],
        ignored=(matches.ignored | ~mine)[kept],
        wanted=np.bincount(truth.image[member], minlength=len(truth.image_ids)),
    )


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (values >= low) & (values < high)
