"""The four numbers of parametric pose NMS, fitted to poses in several boxes for each person (RMPE, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pose.data.batch import Batch
from pose.decoding.pose_nms import RELEASED, PoseNms, pose_nms
from pose.decoding.proposals import Offsets, overlap, shift_edges
from pose.decoding.settling import EVERYONE
from pose.people import People
from pose.progress import track
from pose.skeleton import Skeleton

PROPOSALS = 3
"""Boxes for each person."""
SEED = 0
"""Of the boxes drawn from proposals."""
FACTORS = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
"""Of one search: each number is multiplied by these."""
PAIRS = (("score_scale", "proximity"), ("weight", "threshold"))
FITTED = tuple(name for pair in PAIRS for name in pair)

Detector = Callable[[Batch, int], tuple[Tensor, ArrayLike]]
"""The boxes xyxy [B, 4] that a batch's people are found in for the nth time, and their scores [B]."""


def fit(
    batches: Iterable[Batch],
    images: int,
    detector: Detector,
    poses: Callable[[Batch, Tensor], People],
    quality: Callable[[People], float],
) -> tuple[PoseNms, dict[str, Any]]:
    """The numbers with the highest quality of the people of the first so many images, and what there is to say of it.

    poses: those of a batch's people seen through these boxes [B, 4]; quality: OKS AP, say, of who stays.
    """
    seen = _seen(batches, images, detector, poses)

    @cache
    def after_nms(numbers: PoseNms) -> float:
        return quality(pose_nms(seen, numbers))

    before = after_nms(EVERYONE)
    numbers, after = search(after_nms, EVERYONE)
    return numbers, {
        "images": len(np.unique(seen.image_ids)),
        "pose nms": fitted(numbers),
        "oks_ap": after,
        "oks_ap with the released numbers": before,
    }


def fitted(numbers: PoseNms) -> dict[str, float]:
    """Those of the numbers that are fitted, by name."""
    return {name: getattr(numbers, name) for name in FITTED}


def drawn(offsets: Offsets, skeleton: Skeleton) -> Detector:
    """A detector that misses people as the proposals say; scores are overlaps with the true boxes."""
    generator = torch.Generator().manual_seed(SEED)

    def boxes(batch: Batch, number: int) -> tuple[Tensor, ArrayLike]:
        moved = shift_edges(batch.boxes, offsets.draw(batch.keypoints, batch.labelled, skeleton, generator))
        return moved, overlap(moved, batch.boxes)

    return boxes


def _seen(
    batches: Iterable[Batch], images: int, detector: Detector, poses: Callable[[Batch, Tensor], People]
) -> People:
    """Everyone in whole batches of at least so many images, as often as they are found; `person_scores` the boxes'."""
    parts, known = [], set[int]()
    for batch in batches:
        for number in range(PROPOSALS):
            boxes, scores = detector(batch, number)
            parts.append(replace(poses(batch, boxes), person_scores=np.asarray(scores, np.float32)))
        known.update(batch.image_ids.tolist())
        if len(known) >= images:
            break
    return People.concatenate(parts)


def search(quality: Callable[[PoseNms], float], start: PoseNms = RELEASED, rounds: int = 2) -> tuple[PoseNms, float]:
    """The numbers with the highest quality, and that quality.

    Two of the four are fixed while the other two are searched, in turns, as in the paper; ties stay with the earlier
    numbers. Stops when a round changes nothing.
    """
    best, value = start, quality(start)
    for _ in range(rounds):
        before = best
        for pair in PAIRS:
            around = best
            for factors in track(list(product(FACTORS, FACTORS)), f"fitting {' and '.join(pair)}"):
                changes = {name: getattr(around, name) * factor for name, factor in zip(pair, factors, strict=True)}
                candidate = replace(around, **changes)
                found = quality(candidate)
                if found > value:
                    best, value = candidate, found
        if best == before:
            break
    return best, value
