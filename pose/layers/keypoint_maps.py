"""Keypoint R-CNN's maps: one softmax over S x S cells per joint and box; its loss, its peaks, how sure they are.

Source: He et al. 2017 (Mask R-CNN), section 5, with torchvision's continuous coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CUBIC = -0.75
"""The constant of torch's bicubic kernel."""
ROWS = 32
"""Rows of an enlarged map looked at together; bounds memory."""
NEIGHBOURHOOD = 5
"""Side in cells of the square whose probability is a joint's confidence."""
BORDER = 1e-4
"""Of a cell: a point so near to the next cell belongs to that."""


def keypoint_loss(maps: Tensor, boxes: Tensor, keypoints: Tensor, labelled: Tensor) -> Tensor:
    """Mean cross-entropy of [R, K, S, S] logits over the joints that are labelled and inside their box; 0 if none is.

    boxes [R, 4] and keypoints [R, K, 2] in px, labelled [R, K].
    """
    side = maps.shape[-1]
    # A joint without a position may hold anything, NaN too.
    cells, inside = cells_of(torch.where(labelled[..., None], keypoints, 0.0), boxes, side)
    target = torch.where(labelled & inside, cells[..., 1] * side + cells[..., 0], -1)
    total = F.cross_entropy(maps.float().flatten(0, 1).flatten(1), target.flatten(), ignore_index=-1, reduction="sum")
    return total / (target >= 0).sum().clamp(min=1)


def cells_of(points: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """[R, K, 2] int64 column and row of points in their boxes, and [R, K] whether they lie within; edges included."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    cells = ((points - low) * (side / (high - low))).floor().long()
    cells = torch.where(points == high, side - 1, cells)
    inside = ((cells >= 0) & (cells < side)).all(dim=2)
    return cells.clamp(0, side - 1), inside


def peaks(maps: Tensor, boxes: Tensor, limit: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[R, K, 2] px and [R, K] logits of the highest pixel of each map, enlarged bicubically to its box.

    limit: no box is wider or higher than this, in whole px. What is computed grows with it, not with the boxes, so
    that the graph of it has a fixed shape.
    """
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = extent.ceil()
    width, height = limit
    rows, columns = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    enlarge_y = _bicubic(pixels[:, 1], maps.shape[-2], height)  # [R, H, S]
    wide = maps.float() @ _bicubic(pixels[:, 0], maps.shape[-1], width).transpose(1, 2)[:, None]  # [R, K, S, W]
    wide = wide.masked_fill((columns >= pixels[:, :1])[:, None, None], 0.0)
    best = torch.full(maps.shape[:2], -torch.inf, device=maps.device)
    place = torch.zeros(maps.shape[:2], dtype=torch.int64, device=maps.device)
    for start in range(0, height, ROWS):
        within = (rows[start : start + ROWS, None] < pixels[:, 1, None, None]) & (columns < pixels[:, 0, None, None])
        part = (enlarge_y[:, None, start : start + ROWS] @ wide).masked_fill(~within[:, None], -torch.inf)
        value, index = part.flatten(2).max(dim=2)
        place = torch.where(value > best, index + start * width, place)
        best = torch.maximum(value, best)
    cell = torch.stack([place % width, place // width], dim=2)
    return (cell + 0.5) * (extent / pixels)[:, None] + boxes[:, None, :2], best


def _bicubic(pixels: Tensor, side: int, limit: int) -> Tensor:
    """[R, limit, side] weights that read `side` cells at the centres of so many pixels each."""
    at = (torch.arange(limit, device=pixels.device) + 0.5) * (side / pixels)[:, None] - 0.5
    first = at.floor()
    share = at - first
    weights = torch.zeros(*at.shape, side, device=pixels.device)
    cells = torch.arange(side, device=pixels.device)
    for step in (-1, 0, 1, 2):
        distance = (share - step).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = torch.where(distance <= 1, near, far)
        cell = (first.long() + step).clamp(0, side - 1)
        weights = weights + torch.where(cell[..., None] == cells, weight[..., None], 0.0)
    return weights


def confidences(maps: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """[R, K] in [0, 1]: the probability of the cells around each point, which may fall on the border.

    Where pixels and cells divide each other, peaks lie on the border of two cells and a float's last bit would choose.
    """
    side = maps.shape[-1]
    probability = maps.float().flatten(2).softmax(dim=2).unflatten(2, (side, side))
    mass = F.avg_pool2d(probability, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2) * NEIGHBOURHOOD**2
    towards = (boxes[:, None, 2:] - boxes[:, None, :2]) * (BORDER / side)
    cells, _ = cells_of(points + towards, boxes, side)
    place = cells[..., 1] * side + cells[..., 0]
    return mass.flatten(2).gather(2, place[..., None])[..., 0].clamp(max=1.0)
