"""Views: from stored crops to what a network sees of them, one affine map per sample, batched on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pose.data.batch import Batch

WORTHWHILE = 0.95
"""Stored crops are only shrunk before the warp where that leaves less than this of their side."""


def view(batch: Batch, size: tuple[int, int], padding: float) -> Tensor:
    """[B, 2, 3] float64, stored crop pixels to pixels of the unaugmented input of width and height `size`.

    Whole images are squashed to the input. A person's box is multiplied by `padding` about its centre, widened in the
    one direction that gives it the input's aspect, and fills the input (SimpleBaseline, section 3.1).
    """
    width, height = size
    stored_height, stored_width = batch.images.shape[-2:]
    device = batch.images.device
    if batch.view == "image":
        scales = torch.tensor([width / stored_width, height / stored_height], dtype=torch.float64, device=device)
        linear = torch.diag(scales).expand(len(batch), 2, 2)
        return torch.cat([linear, torch.zeros(len(batch), 2, 1, dtype=torch.float64, device=device)], dim=2)
    to_stored = inverse(batch.to_original.double())
    corners = apply(to_stored, batch.boxes.reshape(-1, 2, 2).double())
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    target = torch.tensor([width, height], dtype=torch.float64, device=device)
    scale = (target / (padding * (high - low))).amin(dim=1)
    shift = target / 2 - scale[:, None] * (low + high) / 2
    linear = scale[:, None, None] * torch.eye(2, dtype=torch.float64, device=device)
    return torch.cat([linear, shift[:, :, None]], dim=2)


def source(batch: Batch, size: tuple[int, int], padding: float) -> Tensor:
    """uint8 [B, 3, H', W']: the stored crops, antialiased to about the resolution they are looked at.

    Whole images come at exactly `size`. How far a person's crop is shrunk depends on the dataset's margin and the
    input alone, not on the box, so that it is the same in any batch.
    """
    if batch.view == "image":
        return resize(batch.images, size)
    stored = batch.images.shape[-1]
    factor = max(size) * batch.margin / (padding * stored)
    side = max(1, round(stored * factor))
    return resize(batch.images, (side, side)) if factor < WORTHWHILE else batch.images


def plain(batch: Batch, size: tuple[int, int], padding: float) -> Tensor:
    """uint8 [B, 3, H, W]: the unaugmented input in whole values, as exported networks take it."""
    images = source(batch, size, padding)
    if batch.view == "image":
        return images
    to_source = inverse(view(batch, size, padding)) * (images.shape[-1] / batch.images.shape[-1])
    pixels = sample(images.float() - fill(images), to_source, size) + fill(images)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, H, W] uint8 -> [B, 3, height, width] uint8, bilinear with antialiasing, rounded to whole values."""
    width, height = size
    if images.shape[-2:] == (height, width):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    # Torch's byte kernel exists on the CPU alone.
    resized = F.interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def sample(pixels: Tensor, to_source: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 3, height, width] read bilinearly from `pixels` where `to_source` [B, 2, 3] sends each centre; 0 outside."""
    width, height = size
    extent = torch.tensor([pixels.shape[-1], pixels.shape[-2]], dtype=torch.float64, device=pixels.device)
    # grid_sample's corners are the image's edges, -1 and 1. Broadcast sums instead of affine_grid's matrix product
    # are cheaper, and their rounding does not depend on the size of the batch.
    shift = to_source[:, :, 2] * (2 / extent) - 1
    linear = (to_source[:, :, :2] * (2 / extent)[:, None]).float()
    columns = torch.arange(width, dtype=torch.float32, device=pixels.device) + 0.5
    rows = torch.arange(height, dtype=torch.float32, device=pixels.device) + 0.5
    along = linear[:, :, 0, None] * columns  # [B, 2, W]
    across = linear[:, :, 1, None] * rows + shift.float()[:, :, None]  # [B, 2, H]
    grid = along.transpose(1, 2)[:, None, :, :] + across.transpose(1, 2)[:, :, None, :]
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def fill(images: Tensor) -> Tensor:
    """[1, 3, 1, 1] float32, the colour of what lies outside an image: ImageNet's mean, zero once normalised."""
    from pose.data.crops import PADDING

    return torch.tensor(PADDING, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)


# ---------------------------------------------------------------- affine maps, [B, 2, 3] float64


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies `inner` first."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    shift = (outer[:, :, :2] @ inner[:, :, 2:]) + outer[:, :, 2:]
    return torch.cat([linear, shift], dim=2)


def inverse(affine: Tensor) -> Tensor:
    """The maps back."""
    a, b, c, d = affine[:, 0, 0], affine[:, 0, 1], affine[:, 1, 0], affine[:, 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], dim=1), torch.stack([-c, a], dim=1)], dim=1)
    linear = adjugate / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -(linear @ affine[:, :, 2:])], dim=2)


def apply(affine: Tensor, points: Tensor) -> Tensor:
    """[B, P, 2] points through the maps, in the points' own precision."""
    moved = points.double() @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
    return moved.to(points.dtype)
