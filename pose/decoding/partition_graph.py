"""People from candidates: how a partition becomes joints, and a contraction in pure tensor code for exported graphs.

What a graph can hold is the greedy part of pose.decoding.partition_search: candidates are joined two by two where both
attract each other most, many pairs at a time. It has no moves afterwards and no proof; evaluation and `pose predict`
from trained weights do better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pose.decoding.candidates import Candidates
from pose.found import Found, boxes_around

ROUNDS = 24
"""A joint more per round is the slowest a person grows, so this is enough for any skeleton with few double joints."""


def contract(unary: Tensor, pair: Tensor, valid: Tensor) -> Tensor:
    """[N, N] float: 1 where a candidate (row) belongs to a person (column); a person who costs has none.

    unary [N], pair [N, N] symmetric with 0 on the diagonal: costs; valid [N] bool.
    """
    count = unary.shape[0]
    off = 1 - torch.eye(count, dtype=pair.dtype, device=pair.device)
    costs = pair * off * (valid[:, None] & valid[None])
    between = costs
    numbers = torch.arange(count, device=pair.device)
    person = numbers
    for _ in range(ROUNDS):
        least, nearest = between.min(dim=1)
        mutual = (least < 0) & (nearest[nearest] == numbers)
        leader = torch.where(mutual, torch.minimum(nearest, numbers), numbers)
        joined = (leader[:, None] == numbers).to(pair.dtype)
        person = leader[person]
        between = (joined.T @ between @ joined) * off
    member = ((person[:, None] == numbers) & valid[:, None]).to(pair.dtype)
    total = member.T @ torch.where(valid, unary, 0.0) + ((costs @ member) * member).sum(dim=0) / 2
    return member * (total < 0)


def assemble(candidates: Candidates, member: Tensor, joints: int, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints [R, K, 2], confidences [R, K] and scores [R] of the people with `least` joints or more, the best first.

    member [N, R']: 1 where a candidate belongs to a person. Several candidates of one kind make one joint: their mean,
    weighted by probability, and the confidence of the best of them.
    """
    kind = (candidates.part[:, None] == torch.arange(joints, device=member.device)).float()
    weight = kind * candidates.probability[:, None]
    mass = member.T @ weight
    placed = torch.stack([member.T @ (weight * candidates.position[:, axis, None]) for axis in (0, 1)], dim=2)
    found = mass > 0
    keypoints = placed / mass.clamp(min=1e-9)[..., None]
    count = found.sum(dim=1)
    middle = (keypoints * found[..., None]).sum(dim=1) / count.clamp(min=1)[:, None]
    keypoints = torch.where(found[..., None], keypoints, middle[:, None])
    # Without candidates there is no largest one; 0 is never larger.
    everyone = torch.cat([torch.zeros_like(mass)[:, None], member.T[..., None] * weight[None]], dim=1)
    confidences = everyone.amax(dim=1)
    scores = confidences.mean(dim=1)
    order = scores.topk(scores.shape[0]).indices
    rows = order[(count >= least)[order]]
    return keypoints[rows], confidences[rows], scores[rows]


def found_in(image: int, keypoints: Tensor, confidences: Tensor, scores: Tensor) -> Found:
    """The people of one image, from what `assemble` gives; joints that were not found change no box."""
    number = torch.full_like(scores, image, dtype=torch.int64)
    return Found(number, boxes_around(keypoints), scores, keypoints, confidences)
