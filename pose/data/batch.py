"""Batch and SceneBatch: what a loader hands to a system of the person view and of the scene view."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor


class _Rows:
    """What both kinds of batch can do: fields that are tensors have one row per sample."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return replace(cast(Any, self), **{name: t.to(device, non_blocking=True) for name, t in self.tensors().items()})

    def rows(self, first: int, end: int) -> Self:
        """Rows first to end, as views."""
        return replace(cast(Any, self), **{name: t[first:end] for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Any]:
        """The fields that are there, each with one row per sample."""
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Batch(_Rows):
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
    view: Literal["image", "person"] = "image"
    """What the stored crops are: whole images squashed to a square, or the box with a margin, aspect kept."""
    margin: float = 1.0
    """Side of a person's stored crop, as a multiple of the box's longer side."""


@dataclass(frozen=True)
class SceneBatch(_Rows):
    """B whole images with the truth about the people in each. Stored images share their top left corner; what lies
    right of and below a smaller one has the colour of pose.data.crops.PADDING.
    """

    images: Tensor
    """[B, 3, H, W] RGB: uint8 in 0..255 from the loader, float32 normalised once it is on the device."""
    extents: Tensor
    """[B, 2] float32, width and height of the image's own part of `images`."""
    people: Tensor
    """[B, P] bool: the slot holds a person (not a crowd). P is the largest count in the batch, at least 1."""
    keypoints: Tensor
    """[B, P, K, 2] float32, pixels of `images`; anything where not labelled."""
    labelled: Tensor
    """[B, P, K] bool: the joint has a position. A person may have none."""
    presence: Tensor
    """[B, P, K] float32, 1 where the joint is visible, 0 where not."""
    boxes: Tensor
    """[B, P, 4] float32 xyxy, pixels of `images`; zeros in empty slots."""
    areas: Tensor
    """[B, P] float32, segment area in square pixels of `images`."""
    ignored: Tensor
    """[B, H / IGNORE_STRIDE, W / IGNORE_STRIDE] bool: crowds and people without keypoints, where nothing is known."""
    to_original: Tensor
    """[B, 2, 3] float32 affine: pixels of `images` to pixels of the original image."""
    sample: Tensor
    """[B] int64, the row of the split each image is."""
    image_ids: Tensor
    """[B] int64."""
    image_sizes: Tensor
    """[B, 2] float32, width and height of the original image."""
    augment: Tensor | None = None
    """[B, C] float32 as pose.data.augment.draw makes them, or None for an unchanged view."""


IGNORE_STRIDE = 4
"""Pixels of a scene per cell of its mask of ignored regions."""
