"""KAPAO's objects, which cells are to find them, and what it costs where they do not.

A person is one pose object, the box with all joints; and every labelled joint is one keypoint object, a small square
around it (McNally et al., ECCV 2022, section 3.1). Boxes here are x, y, w, h with x, y the centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.layers.yolo import ANCHORS, COMMON, REFERENCE_SIDE, STRIDES

BALANCE = (4.0, 1.0, 0.25, 0.06)
"""Weights of the levels' objectness, which has ever fewer cells."""
CLASSES_OF_COCO = 80
"""Gains are stated for so many classes and for three levels."""
LEVELS_OF_COCO = 3
NEAR = 0.5
"""A neighbour takes part where the object's centre is less than this far from it, in cells."""
EPS = 1e-7


@dataclass(frozen=True)
class Objects:
    """T objects in a batch."""

    image: Tensor
    """[T] int64."""
    kind: Tensor
    """[T] int64: 0 a person, 1 + k joint k."""
    boxes: Tensor
    """[T, 4] x, y, w, h px."""
    keypoints: Tensor
    """[T, K, 2] px; of people."""
    labelled: Tensor
    """[T, K] bool; nothing for keypoint objects."""


def objects_of(batch: SceneBatch, side: float) -> Objects:
    """The people with an area, also those without a labelled joint, and the labelled joints, each a square of `side`.

    The releases' squares are 0.05 of the canvas' width and height each, so squares on square canvases only.
    """
    joints = batch.keypoints.shape[2]
    wide = batch.people & (batch.boxes[..., 2:] > batch.boxes[..., :2]).all(dim=2)
    image, slot = torch.where(wide)
    low, high = batch.boxes[image, slot].split(2, dim=1)
    # What is not labelled may be anything, also no number.
    keypoints = torch.where(batch.labelled[..., None], batch.keypoints, 0.0)
    of, person, joint = torch.where(batch.labelled & batch.people[..., None])
    centres = keypoints[of, person, joint]
    nothing = keypoints.new_zeros(len(of), joints, 2)
    return Objects(
        torch.cat([image, of]),
        torch.cat([torch.zeros_like(image), 1 + joint]),
        torch.cat(
            [torch.cat([(low + high) / 2, high - low], dim=1), torch.cat([centres, torch.full_like(centres, side)], 1)]
        ),
        torch.cat([keypoints[image, slot], nothing]),
        torch.cat([batch.labelled[image, slot], torch.zeros_like(nothing[..., 0], dtype=torch.bool)]),
    )


@dataclass(frozen=True)
class Assigned:
    """Which outputs of one level are to find which objects, M in all."""

    object: Tensor
    """[M] int64, row of Objects."""
    anchor: Tensor
    """[M] int64."""
    row: Tensor
    """[M] int64, line of the grid."""
    column: Tensor
    """[M] int64."""


def assign(boxes: Tensor, anchors: Tensor, grid: tuple[int, int], ratio: float) -> Assigned:
    """Every anchor [A, 2] whose sides differ from the object's [T, 4] by less than a factor `ratio`; all in cells.

    In the cell that the centre lies in, and in those left or right and above or below it that are nearer than NEAR,
    as far as the grid (height, width) reaches.
    """
    height, width = grid
    factor = boxes[:, None, 2:] / anchors
    fits = torch.maximum(factor, 1 / factor).amax(dim=2) < ratio
    which, anchor = torch.where(fits)
    centre = boxes[which, :2]
    extent = boxes.new_tensor([width, height])
    before = (centre % 1 < NEAR) & (centre > 1)
    rest = extent - centre
    after = (rest % 1 < NEAR) & (rest > 1)
    taken = torch.stack([torch.ones_like(before[:, 0]), *before.unbind(1), *after.unbind(1)])
    steps = boxes.new_tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]], dtype=torch.int64)
    step, chosen = torch.where(taken)
    # A centre on the far edge is the last cell's.
    cell = torch.minimum(centre.floor(), extent - 1).clamp(min=0).long()[chosen] + steps[step]
    return Assigned(which[chosen], anchor[chosen], cell[:, 1], cell[:, 0])


def kapao_losses(
    levels: Sequence[Tensor], objects: Objects, anchors: Tensor, ignored: Tensor, ratio: float
) -> dict[str, Tensor]:
    """Scalars box, objectness, classes and keypoints, each summed over the levels; 0 where there is no object.

    levels: raw outputs [B, ANCHORS, h, w, outputs]; anchors [4, ANCHORS, 2] in cells; ignored: bool as SceneBatch has
    it, where cells without an object teach nothing. Within a level box is the mean of 1 - CIoU over the assigned
    outputs, keypoints the mean distance in cells over their people's labelled joints, classes the mean cross-entropy
    over the assigned outputs and all classes, objectness that over all outputs against the CIoU. Two objects at one
    output want the larger CIoU of it (in the releases the last one written wins).

    Every factor that depends on sizes is in here, so that a recipe's weights are the releases' gains.
    """
    joints = objects.keypoints.shape[1]
    terms: dict[str, list[Tensor]] = {"box": [], "objectness": [], "classes": [], "keypoints": []}
    for level, raw in enumerate(levels):
        raw = raw.float()
        height, width = raw.shape[2:4]
        stride = STRIDES[level]
        boxes = objects.boxes / stride
        found = assign(boxes, anchors[level], (height, width), ratio)
        place = (objects.image[found.object], found.anchor, found.row, found.column)
        outputs = raw[place]
        corner = torch.stack([found.column, found.row], dim=1).to(raw.dtype)
        size = anchors[level, found.anchor]
        share = outputs[:, : COMMON - 1].sigmoid()
        predicted = torch.cat([share[:, :2] * 2 - 0.5 + corner, (share[:, 2:] * 2) ** 2 * size], dim=1)
        overlap = ciou(predicted, boxes[found.object])
        terms["box"].append(_mean(1 - overlap))
        terms["objectness"].append(BALANCE[level] * _objectness(raw, place, overlap, ignored, stride))
        kind = objects.kind[found.object]
        wanted = F.one_hot(kind, 1 + joints).to(raw.dtype)
        classes = outputs[:, COMMON : COMMON + 1 + joints]
        terms["classes"].append(_mean(F.binary_cross_entropy_with_logits(classes, wanted, reduction="none")))
        points = (outputs[:, COMMON + 1 + joints :].sigmoid() * 4 - 2).unflatten(1, (joints, 2)) * size[:, None]
        apart = points + corner[:, None] - objects.keypoints[found.object] / stride
        labelled = objects.labelled[found.object]
        terms["keypoints"].append(_mean(torch.linalg.vector_norm(apart[labelled], dim=1)))
    height, width = (side * STRIDES[0] for side in levels[0].shape[2:4])
    factors = {
        "box": 1.0,
        "objectness": height * width / REFERENCE_SIDE**2,
        "classes": (1 + joints) / CLASSES_OF_COCO,
        "keypoints": 1.0,
    }
    common = LEVELS_OF_COCO / len(levels)
    return {name: common * factors[name] * torch.stack(parts).sum() for name, parts in terms.items()}


def _mean(values: Tensor) -> Tensor:
    """0, but still with a gradient, without any."""
    return values.sum() / max(1, values.numel())


def _objectness(raw: Tensor, place: tuple[Tensor, ...], overlap: Tensor, ignored: Tensor, stride: int) -> Tensor:
    """Cross-entropy over all outputs; ignored ones without an object count as right."""
    images, anchors, height, width = raw.shape[:4]
    image, anchor, row, column = place
    flat = ((image * anchors + anchor) * height + row) * width + column
    wanted = raw.new_zeros(images * anchors * height * width)
    wanted = wanted.scatter_reduce(0, flat, overlap.detach().clamp(min=0), "amax")
    known = ~ignored[:, None, stride // 2 // IGNORE_STRIDE :: stride // IGNORE_STRIDE].expand(-1, anchors, -1, -1)
    known = known[..., stride // 2 // IGNORE_STRIDE :: stride // IGNORE_STRIDE].flatten()
    known = known.scatter(0, flat, torch.ones_like(flat, dtype=torch.bool))
    values = F.binary_cross_entropy_with_logits(raw[..., COMMON - 1].flatten(), wanted, reduction="none")
    return torch.where(known, values, 0.0).mean()


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """[M] complete IoU of boxes [M, 4] x, y, w, h (Zheng et al., AAAI 2020, equations 7 to 10); at most 1.

    The weight of the aspect is a constant to the gradient.
    """
    low = torch.maximum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    high = torch.minimum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    shared = (high - low).clamp(min=0).prod(dim=1)
    overlap = shared / (first[:, 2:].prod(dim=1) + second[:, 2:].prod(dim=1) - shared + EPS)
    low = torch.minimum(first[:, :2] - first[:, 2:] / 2, second[:, :2] - second[:, 2:] / 2)
    high = torch.maximum(first[:, :2] + first[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2)
    diagonal = (high - low).square().sum(dim=1) + EPS
    apart = (first[:, :2] - second[:, :2]).square().sum(dim=1)
    angles = _shape(second) - _shape(first)
    aspect = 4 / math.pi**2 * angles.square()
    with torch.no_grad():
        weight = aspect / (aspect - overlap + 1 + EPS)
    return overlap - apart / diagonal - weight * aspect


def _shape(boxes: Tensor) -> Tensor:
    """[M] angle of the diagonal. Of boxes with hardly a size it would be one whose gradient is not a number."""
    width, height = boxes[:, 2:].clamp(min=EPS).unbind(1)
    return torch.atan2(width, height)


def fitted_shape(anchors: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether anchors are four levels of ANCHORS widths and heights."""
    return len(anchors) == len(STRIDES) and all(len(level) == ANCHORS for level in anchors)
