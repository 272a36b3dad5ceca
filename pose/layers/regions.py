"""Boxes against people: which are whose, which are sampled for a loss, which survive, and the features inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, nms, roi_align

CANONICAL_SIDE, CANONICAL_LEVEL, LEVELS = 224, 2, 4
"""A box of this side is read at this level of so many (Lin et al. 2017, equation 1)."""
SAMPLES = 2
"""Points per pooled cell and direction."""
UNKNOWN = 0.5
"""A background box with more than this share in ignored regions teaches nothing."""


@dataclass(frozen=True)
class Target:
    """The people in one image. A person may have no labelled joint."""

    boxes: Tensor
    """[P, 4] xyxy px, of positive area."""
    keypoints: Tensor
    """[P, K, 2] px."""
    labelled: Tensor
    """[P, K] bool."""
    ignored: Tensor
    """[h, w] bool, cells of `stride` px: where people may be that nobody has annotated."""
    stride: int


def match(boxes: Tensor, target: Target, low: float, high: float, *, rescue: bool) -> tuple[Tensor, Tensor]:
    """[N] int64 the person each box overlaps most, and [N] int64 its label: 1 person, 0 background, -1 neither.

    A box is a person's from IoU `high` on and background below `low`, unless it lies in an ignored region. With
    `rescue`, the boxes that overlap a person most are theirs however small that overlap is.
    """
    if not len(target.boxes):
        person = boxes.new_zeros(len(boxes), dtype=torch.int64)
        label = person
    else:
        overlaps = box_iou(target.boxes, boxes)
        overlap, person = overlaps.max(dim=0)
        label = torch.where(overlap >= high, 1, torch.where(overlap < low, 0, -1))
        if rescue:
            best = (overlaps == overlaps.amax(dim=1, keepdim=True)) & (overlaps > 0)
            label = torch.where(best.any(dim=0), 1, label)
    hidden = (label == 0) & (ignored_share(boxes, target) > UNKNOWN)
    return person, torch.where(hidden, -1, label)


def ignored_share(boxes: Tensor, target: Target) -> Tensor:
    """[N] in [0, 1]: how much of each box is ignored, to the nearest cell."""
    height, width = target.ignored.shape
    sums = F.pad(target.ignored.to(torch.float64).cumsum(0).cumsum(1), (1, 0, 1, 0))
    corners = (boxes / target.stride).round().long()
    left, top, right, bottom = (corners[:, i].clamp(0, (width, height)[i % 2]) for i in range(4))
    covered = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return (covered / ((right - left) * (bottom - top)).clamp(min=1)).to(boxes.dtype)


def sample(label: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Rows of at most `count` boxes drawn with torch's generator: people, at most this share, and background."""
    people, background = torch.where(label == 1)[0], torch.where(label == 0)[0]
    people = _draw(people, int(count * share))
    return people, _draw(background, count - len(people))


def _draw(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


def survivors(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Rows of the boxes [N, 4] within the image that no better one overlaps by more than this IoU, the best first.

    scores: [N], not negative.
    """
    # To exporters torchvision promises that at least two boxes survive, and a program then insists on it; so two that
    # touch nothing take part.
    beyond = boxes.new_tensor([[-4.0, -4.0, -3.0, -3.0], [-2.0, -2.0, -1.0, -1.0]])
    kept = nms(torch.cat([boxes, beyond]), torch.cat([scores, scores.new_full((2,), -1.0)]), overlap)
    return kept[kept < boxes.shape[0]]


def pool(features: Mapping[str, Tensor], boxes: Sequence[Tensor], cells: int, size: tuple[int, int]) -> Tensor:
    """[R, C, cells, cells]: the features inside the boxes [R_i, 4] of each image, each at the level of its size.

    size: height and width of the images, px.
    """
    rois = torch.cat([F.pad(rows, (1, 0), value=float(image)) for image, rows in enumerate(boxes)])
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = torch.floor(CANONICAL_LEVEL + torch.log2(side / CANONICAL_SIDE) + 1e-6).clamp(0, LEVELS - 1)
    rows, pooled = [], []
    for number in range(LEVELS):
        here = torch.where(level == number)[0]
        found = features[str(number)]
        rows.append(here)
        pooled.append(roi_align(found, rois[here], cells, found.shape[-2] / size[0], SAMPLES))
    return torch.cat(pooled)[torch.cat(rows).argsort()]
