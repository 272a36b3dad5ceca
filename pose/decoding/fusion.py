"""From KAPAO's objects to people: suppression, then joints from keypoint objects in place of the poses' own.

Source: McNally et al., ECCV 2022, section 3.3 (and algorithm 1 of its supplement). Where this differs from the
released program:

- There a keypoint object replaces a pose's joint within 50 px of the original image, whatever its size; here within
  `reach` times the square root of the pose's box, so that it is the same at any resolution and far from the camera.
- There poses are updated one object at a time and the next object measures to what the last one moved; here every
  object measures to the pose as it was predicted. Of those that reach a joint the most confident wins in both.
- There at most 300 objects come out of suppression, all joints together, so that a crowd loses joints; here each
  class has its own limit.
- There boxes are suppressed beyond the image and of poses only the nose and the left eye are clipped to it; here boxes
  are clipped before suppression, joints nowhere: a joint outside the picture stays where the network sees it.
- There a joint that no object replaced has confidence 0, as if it were not there; here it has the pose object's score.
- There a person's score stays the pose object's; with `rescore` it is weighed by how many keypoint objects agree.

All of it is tensor code over all objects of an image at once, so that an exported graph can hold it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pose.found import Found
from pose.layers.regions import survivors
from pose.layers.yolo import COMMON


@dataclass(frozen=True)
class Limits:
    """Which objects are looked at and kept."""

    people: int
    """Most in one image."""
    candidates: int
    """Objects of each class that suppression looks at, the most confident ones."""
    person_floor: float
    """People below are dropped."""
    person_overlap: float
    """IoU above which the worse of two people is suppressed."""
    keypoint_floor: float
    keypoint_overlap: float
    fusion_floor: float
    """Only people above get their joints from keypoint objects."""
    reach: float
    """How far from a pose's joint a keypoint object may be, times the square root of the pose's box area."""
    rescore: bool = False
    """Whether people are ranked by what they are put together from; see `rescored`."""


def find(objects: Tensor, size: tuple[int, int], limits: Limits) -> Found:
    """The people among objects [B, N, 5 + (1 + K) + 2 K] (x, y, w, h px, objectness, classes, joints px).

    size: width and height of the input. An object is of its likeliest class alone, its score is objectness times class.
    A joint's confidence is that of the keypoint object it is from, or the pose object's.
    """
    parts = [_find(rows, size, limits) for rows in objects]
    image = torch.cat([torch.full_like(scores, i, dtype=torch.int64) for i, (_, scores, _, _) in enumerate(parts)])
    boxes, scores, keypoints, confidences = (torch.cat(column) for column in zip(*parts, strict=True))
    return Found(image, boxes, scores, keypoints, confidences)


def _find(objects: Tensor, size: tuple[int, int], limits: Limits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes, scores, joints and confidences of one image's people."""
    joints = (objects.shape[1] - COMMON - 1) // 3
    first = COMMON + 1 + joints
    classes = objects[:, COMMON:first] * objects[:, COMMON - 1 : COMMON]
    score, kind = classes.max(dim=1)
    boxes, inside = _corners(objects[:, :4], size)
    score = torch.where(inside, score, 0.0)
    rows, scores = _people(boxes, torch.where(kind == 0, score, 0.0), limits)
    poses = objects[rows, first:].unflatten(1, (joints, 2))
    centres, joint, sure = _keypoints(objects[:, :2], boxes, score, kind, joints, limits, max(size))
    keypoints, confidences, found = fuse(poses, boxes[rows], scores, centres, joint, sure, limits)
    if not limits.rescore:
        return boxes[rows], scores, keypoints, confidences
    scores, best = rescored(scores, confidences, found).sort(descending=True)
    return boxes[rows][best], scores, keypoints[best], confidences[best]


def rescored(scores: Tensor, confidences: Tensor, found: Tensor) -> Tensor:
    """[P] in [0, 1]: the geometric mean of a pose object's score and the mean over all 1 + K objects, 0 where none was.

    scores [P], confidences [P, K], found [P, K] bool as `fuse` has them.
    """
    agreed = torch.where(found, confidences, 0.0).sum(dim=1)
    return (scores * (scores + agreed) / (1 + confidences.shape[1])).sqrt()


def _corners(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[N, 4] xyxy clipped to the input, and [N] bool whether the centres are in it."""
    limit = boxes.new_tensor(size)
    low = torch.minimum((boxes[:, :2] - boxes[:, 2:] / 2).clamp(min=0), limit)
    high = torch.minimum((boxes[:, :2] + boxes[:, 2:] / 2).clamp(min=0), limit)
    inside = ((boxes[:, :2] >= 0) & (boxes[:, :2] <= limit)).all(dim=1)
    return torch.cat([low, high], dim=1), inside & (high > low).all(dim=1)


def _people(boxes: Tensor, score: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """Rows and scores of the people kept, by falling score."""
    score, best = score.topk(min(limits.candidates, score.shape[0]))
    likely = score > limits.person_floor
    score, best = score[likely], best[likely]
    kept = survivors(boxes[best], score, limits.person_overlap)[: limits.people]
    return best[kept], score[kept]


def _keypoints(
    centres: Tensor, boxes: Tensor, score: Tensor, kind: Tensor, joints: int, limits: Limits, side: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres [M, 2], joints [M] and scores [M] of the keypoint objects kept, best first. side: the longer, px."""
    of = torch.arange(1, 1 + joints, device=kind.device)
    own = torch.where(kind[:, None] == of, score[:, None], 0.0)
    values, best = own.topk(min(limits.candidates, own.shape[0]), dim=0)
    joint = torch.arange(joints, device=kind.device).expand_as(best)
    likely = values > limits.keypoint_floor
    values, best, joint = values[likely], best[likely], joint[likely]
    # Side by side the classes do not overlap; all of them then take one pass.
    apart = boxes[best] + (joint * (side + 1))[:, None]
    kept = survivors(apart, values, limits.keypoint_overlap)
    return centres[best[kept]], joint[kept], values[kept]


def fuse(
    poses: Tensor, boxes: Tensor, scores: Tensor, centres: Tensor, joint: Tensor, sure: Tensor, limits: Limits
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints [P, K, 2] of people, confidences [P, K], and [P, K] whether they are those of keypoint objects.

    poses [P, K, 2], boxes [P, 4] xyxy and scores [P] are the pose objects'.
    centres [M, 2], joint [M], sure [M]: keypoint objects by falling confidence. Each goes to the person above the
    fusion floor whose own joint is nearest, if that is within reach; of several the first one counts.
    """
    people, joints = poses.shape[:2]
    # One person more, out of reach of everything, so that there is a nearest one.
    reach = limits.reach * (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    reach = torch.cat([torch.where(scores > limits.fusion_floor, reach, -1.0), reach.new_full((1,), -1.0)])
    nobody = poses.new_zeros(1, joints, 2)
    everyone = torch.cat([poses, nobody])
    distance = torch.linalg.vector_norm(everyone[:, joint] - centres, dim=2)
    distance = torch.where(reach[:, None] >= 0, distance, torch.inf)
    nearest = distance.argmin(dim=0)
    within = distance.gather(0, nearest[None])[0] < reach[nearest]
    # An object that is nobody's goes to the person who is none.
    owner = torch.where(within, nearest, people)
    rank = torch.arange(centres.shape[0], device=centres.device)
    last = centres.shape[0]
    chosen = torch.full_like(everyone[..., 0], 0, dtype=torch.int64).flatten() + last
    chosen = chosen.scatter_reduce(0, owner * joints + joint, rank, "amin").reshape(people + 1, joints)[:people]
    taken = chosen < last
    centres = torch.cat([centres, centres.new_zeros(1, 2)])
    sure = torch.cat([sure, sure.new_zeros(1)])
    keypoints = torch.where(taken[..., None], centres[chosen], poses)
    return keypoints, torch.where(taken, sure[chosen], scores[:, None]), taken
