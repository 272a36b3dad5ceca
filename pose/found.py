"""What a network says of whole scenes, in pixels of its input, and the way from there to People."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pose.data.batch import SceneBatch
from pose.people import People


@dataclass(frozen=True)
class Found:
    """The people found in B images, R in all, in pixels of the input; those of an image by falling score."""

    image: Tensor
    """[R] int64, which of the B."""
    boxes: Tensor
    """[R, 4] xyxy."""
    scores: Tensor
    """[R] in [0, 1]."""
    keypoints: Tensor
    """[R, K, 2]; each system says where it puts a joint that it did not find."""
    confidences: Tensor
    """[R, K] in [0, 1], 0 where not found."""

    @staticmethod
    def together(parts: Sequence[Found]) -> Found:
        """All people of the parts, in order. At least one part."""
        return Found(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Found)))

    def to(self, device: torch.device) -> Found:
        """The same on that device."""
        return Found(*(getattr(self, field.name).to(device) for field in fields(Found)))


def boxes_around(keypoints: Tensor) -> Tensor:
    """[R, 4] xyxy around all joints [R, K, 2] of each person."""
    return torch.cat([keypoints.amin(dim=1), keypoints.amax(dim=1)], dim=1)


def to_people(found: Found, batch: SceneBatch) -> People:
    """Maps what was found back to original images; boxes are clipped to them. Presence is the confidence."""
    affine, size = batch.to_original[found.image].double(), batch.image_sizes[found.image].double()
    low, high = _apply(affine, found.boxes[:, None, :2])[:, 0], _apply(affine, found.boxes[:, None, 2:])[:, 0]
    boxes = torch.cat([low.clamp(min=0), torch.minimum(high, size)], dim=1)
    boxes = torch.cat([torch.minimum(boxes[:, :2], size), boxes[:, 2:].clamp(min=0)], dim=1)

    def array(tensor: Tensor, dtype: type = np.float32) -> np.ndarray:
        return tensor.detach().cpu().numpy().astype(dtype)

    return People(
        image_ids=array(batch.image_ids[found.image], np.int64),
        image_sizes=array(size),
        keypoints=array(_apply(affine, found.keypoints)),
        scores=array(found.confidences),
        presence=array(found.confidences),
        boxes=array(boxes),
        person_scores=array(found.scores),
    )


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    """[R, 2, 3] on [R, P, 2]."""
    return points.double() @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
