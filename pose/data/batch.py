"""Batch: what a loader hands to a system."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B crops with the truth about the one person in each. uint8 on the host, float after pose.data.augment."""

    images: Tensor
    """[B, 3, H, W] RGB: uint8 in 0..255 from the loader, float32 normalised once it is on the device."""
    keypoints: Tensor
    """[B, K, 2] float32, pixels of `images`; anything where not labelled."""
    labelled: Tensor
    """[B, K] bool: the joint has a position."""
    presence: Tensor
    """[B, K] float32, 1 where the joint is visible, 0 where not."""
    to_original: Tensor
    """[B, 2, 3] float32 affine: pixels of `images` to pixels of the original image."""
    sample: Tensor
    """[B] int64, the row of the split each crop is."""
    image_ids: Tensor
    """[B] int64."""
    image_sizes: Tensor
    """[B, 2] float32, width and height of the original image."""
    boxes: Tensor
    """[B, 4] float32, xyxy in the original image."""
    augment: Tensor | None = None
    """[B, C] float32, columns pose.data.augment.COLUMNS as `draw` makes them, or None for an unchanged view."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in moved.items() if t is not None})
