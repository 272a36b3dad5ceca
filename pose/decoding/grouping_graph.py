"""The grouping of pose.decoding.grouping as tensor code of fixed shapes, which an exported graph can hold.

The same algorithm, step by step; see there. Joints have always `candidates` places, of which the highest are real, and
matching goes in rounds: whoever is each other's best is matched at once. That is greedy matching, but for chains of
more than ROUNDS candidates each of which prefers the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pose.decoding.grouping import LEAST, TOUCH, GroupingParams

ROUNDS = 8


@dataclass(frozen=True)
class Grouped:
    """N people of one image, the best first."""

    keypoints: Tensor
    """[N, K, 2] cells; a joint that was not found is put in the middle of those that were."""
    confidences: Tensor
    """[N, K] in [0, 1], 0 where not found."""
    scores: Tensor
    """[N] in [0, 1]."""


def group(
    heats: Tensor, fields: Tensor, limbs: Sequence[Sequence[int]], order: Sequence[int], sigma: float,
    rules: GroupingParams,
) -> Grouped:  # fmt: skip
    """Everyone in one image. heats: [K, h, w] without background; fields: [2L, h, w]. limbs, order: lists."""
    places, heights = find(heats, sigma, rules)
    scores = links(places, heights > 0, fields, limbs, rules)
    return assemble(places, heights, match(scores), scores, limbs, order, rules)


def find(heats: Tensor, sigma: float, rules: GroupingParams) -> tuple[Tensor, Tensor]:
    """Places [K, P, 2] in cells and heights [K, P]; a height of 0 stands for no candidate."""
    height, width = heats.shape[1:]
    padded = F.pad(heats, (1, 1, 1, 1), value=-torch.inf).flatten(1)
    line = width + 2
    rows = torch.arange(height, device=heats.device)[:, None] + 1
    cells = (rows * line + torch.arange(width, device=heats.device) + 1).flatten()
    most = min(rules.candidates, height * width)
    values, at = torch.where(highest(heats, rules), heats, 0.0).flatten(1).topk(most, dim=1)
    real = values > 0
    log = values.clamp(min=LEAST).log()
    place = cells[at]
    x, rise_x = _vertex(log, padded.gather(1, place - 1), padded.gather(1, place + 1), sigma)
    y, rise_y = _vertex(log, padded.gather(1, place - line), padded.gather(1, place + line), sigma)
    row = torch.div(at, width, rounding_mode="floor")
    places = torch.stack([(at - row * width) + 0.5 + x, row + 0.5 + y], dim=2)
    return places, (log + rise_x + rise_y).exp().clamp(max=1) * real


def highest(heats: Tensor, rules: GroupingParams) -> Tensor:
    """[K, h, w] bool: the cells that are candidates, whether or not there is room for them."""
    padded = F.pad(heats, (1, 1, 1, 1), value=-torch.inf)
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    return (heats > rules.peak) & (heats > left) & (heats >= right) & (heats > above) & (heats >= below)


def left_away(heats: Tensor, rules: GroupingParams) -> Tensor:
    """[] int64: candidates of all joints beyond the highest `candidates` of each."""
    return (highest(heats, rules).sum(dim=(1, 2)) - rules.candidates).clamp(min=0).sum()


def _vertex(middle: Tensor, before: Tensor, after: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    curve = 1 / sigma**2
    left, right = (torch.maximum(side.clamp(min=LEAST).log(), middle - curve) for side in (before, after))
    beyond_left, beyond_right = before == -torch.inf, after == -torch.inf
    left = torch.where(beyond_left, torch.where(beyond_right, middle, 2 * middle - right - curve), left)
    right = torch.where(beyond_right, 2 * middle - left - curve, right)
    bend = (2 * middle - left - right).clamp(min=1e-6)
    offset = ((right - left) / (2 * bend)).clamp(-0.5, 0.5)
    return offset, offset * (right - left) / 2 - offset.square() * bend / 2


def links(
    places: Tensor, real: Tensor, fields: Tensor, limbs: Sequence[Sequence[int]], rules: GroupingParams
) -> Tensor:
    """[L, P, P] scores of all pairs, 0 where they do not count. places [K, P, 2], real [K, P]."""
    height, width = fields.shape[1:]
    count, most = len(limbs), places.shape[1]
    a, b = [limb[0] for limb in limbs], [limb[1] for limb in limbs]
    start, offset = places[a][:, :, None], places[b][:, None] - places[a][:, :, None]
    length = offset.square().sum(dim=3).sqrt()
    scale = 1 / length.clamp(min=torch.finfo(torch.float32).tiny)
    steps = torch.linspace(0, 1, rules.points, device=fields.device)[:, None]
    grid = (start[..., None, :] + offset[..., None, :] * steps) * (2 / fields.new_tensor([width, height])) - 1
    read = F.grid_sample(
        fields.reshape(count, 2, height, width), grid.reshape(count, most * most, rules.points, 2),
        mode="bicubic", padding_mode="border", align_corners=False,
    ).reshape(count, 2, most, most, rules.points)  # fmt: skip
    unit = offset * scale[..., None]
    dots = read[:, 0] * unit[..., 0, None] + read[:, 1] * unit[..., 1, None]
    weak = dots.topk(rules.scored, dim=3, largest=False).values.mean(dim=3)
    scores = weak + (rules.longest * max(height, width) * scale - 1).clamp(max=0)
    enough = (dots > rules.along).sum(dim=3) >= rules.enough
    scores = torch.where(enough & (length > 0), scores.clamp(min=0), 0.0)
    scores = torch.where(length <= rules.touching, scores.clamp(min=TOUCH), scores)
    return torch.where(real[a][:, :, None] & real[b][:, None], scores, 0.0)


def match(scores: Tensor) -> Tensor:
    """[L, P, P] bool of scores [L, P, P]: the pairs that are matched."""
    most = scores.shape[1]
    numbers = torch.arange(most, device=scores.device)
    matched = torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(min(ROUNDS, most)):
        value, best = scores.max(dim=2)
        mutual = (scores.argmax(dim=1).gather(1, best) == numbers) & (value > 0)
        chosen = (best[..., None] == numbers) & mutual[..., None]
        matched = matched | chosen
        done = chosen.any(dim=2)[:, :, None] | chosen.any(dim=1)[:, None]
        scores = torch.where(done, 0.0, scores)
    return matched


def assemble(
    places: Tensor, heights: Tensor, matched: Tensor, scores: Tensor, limbs: Sequence[Sequence[int]],
    order: Sequence[int], rules: GroupingParams,
) -> Grouped:  # fmt: skip
    """People from matched links. A part is named by one of its candidates; one that was joined stays, empty."""
    joints, most = heights.shape
    count = joints * most
    numbers = torch.arange(count, device=heights.device)
    part = numbers.view(joints, most)
    real = heights > 0
    kind = torch.arange(joints, device=heights.device).repeat_interleave(most)
    kinds = (kind[:, None] == torch.arange(joints, device=heights.device)) & real.flatten()[:, None]
    kinds = kinds.to(heights.dtype)
    evidence, pieces = heights.flatten(), torch.ones_like(heights).flatten()
    proof = torch.where(matched, scores.clamp(max=1), 0.0).amax(dim=2)
    linked, partner = matched.any(dim=2), matched.to(torch.int64).argmax(dim=2)
    for limb in order:
        a, b = limbs[limb]
        ours, theirs = part[a], part[b][partner[limb]]
        same = linked[limb] & (ours == theirs)
        free = linked[limb] & ~same & ((kinds[ours] * kinds[theirs]).sum(dim=1) == 0)
        counts = (same | free).to(heights.dtype)
        more = proof[limb] * counts + evidence[theirs] * free
        evidence, pieces = (
            evidence.scatter_add(0, ours, more), pieces.scatter_add(0, ours, counts + pieces[theirs] * free)
        )  # fmt: skip
        kinds = kinds.scatter_add(0, ours[:, None].expand(-1, joints), kinds[theirs] * free[:, None])
        # What is not joined is written to a place of its own that nobody reads.
        renamed = torch.cat([numbers, numbers[:1]])
        renamed = renamed.scatter(0, torch.where(free, theirs, count), torch.where(free, ours, 0))
        part = renamed[part]
    members = torch.zeros(count * joints, dtype=torch.int64, device=heights.device)
    members = members.scatter(0, part.flatten() * joints + kind, numbers).view(count, joints)
    owned = torch.zeros(count * joints, device=heights.device)
    owned = owned.scatter(0, part.flatten() * joints + kind, real.flatten().to(owned.dtype)).view(count, joints)
    found = owned.sum(dim=1)
    total = evidence / pieces * (found / joints).sqrt()
    stays = (found >= rules.min_joints) & (total >= rules.min_score)
    ranked, rows = torch.where(stays, total, -1.0).topk(count)
    rows = rows[torch.nonzero(ranked >= 0)[:, 0]]
    own, has = members[rows], owned[rows]
    spots = places.flatten(0, 1)[own] * has[..., None]
    middle = spots.sum(dim=1) / has.sum(dim=1)[:, None]
    keypoints = torch.where(has[..., None] > 0, spots, middle[:, None])
    return Grouped(keypoints, heights.flatten()[own] * has, total[rows])
