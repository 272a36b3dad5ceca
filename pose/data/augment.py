"""What a training sample goes through on the device: resize, one warp, colour, an erased rectangle, normalisation.

The random numbers are drawn on the host from (seed, epoch, row) alone, so that a sample meets the same change
whatever worker, batch or restart brings it; the pixels are then changed a batch at a time where the network is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pose.config import AugmentParams
from pose.data.batch import Batch
from pose.layers.normalise import Normalise
from pose.skeleton import Skeleton

COLUMNS = (
    "scale", "rotate", "right", "down", "flip",
    "contrast", "red", "green", "blue",
    "erase_x", "erase_y", "erase_width", "erase_height",
)  # fmt: skip
"""Of `draw`: factor, radians (clockwise as seen), two shares of the input side, 0 or 1; contrast factor, gain of each
channel; centre and size of the erased rectangle as shares of the input side, size 0 where nothing is erased."""

ERASED_AREA = (0.02, 0.15)
"""Smallest and largest erased rectangle as a share of the input's area."""
ERASED_ASPECT = 2.0
"""Its sides differ by this factor at the most."""
CHANNEL_SHARE = 1 / 3
"""How far a channel's gain may leave the common one, as a share of the colour strength."""


def draw(params: AugmentParams, seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """[B, len(COLUMNS)] float32, one line per row of the split, depending on (seed, epoch, row) alone.

    Scale, contrast and gains are (1 + strength) to the power of a uniform number in [-1, 1]: as often up as down.
    """
    u = np.stack([_uniform(seed, epoch, int(row)) for row in rows]) if len(rows) else np.zeros((0, _NUMBERS))
    both = 2 * u - 1  # [B, N] in [-1, 1)
    gain = (1 + params.colour) ** both[:, 6]
    channel = (1 + params.colour * CHANNEL_SHARE) ** both[:, 7:10]
    area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * u[:, 13]
    aspect = ERASED_ASPECT ** both[:, 14]
    side = np.sqrt(area) * (u[:, 10] < params.erase)
    columns = [
        (1 + params.scale) ** both[:, 0],
        np.deg2rad(params.rotate) * both[:, 1],
        params.translate * both[:, 2],
        params.translate * both[:, 3],
        u[:, 4] < params.flip,
        (1 + params.colour) ** both[:, 5],
        *(gain[:, None] * channel).T,
        u[:, 11],
        u[:, 12],
        side * np.sqrt(aspect),
        side / np.sqrt(aspect),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


_NUMBERS = 15
"""Uniform numbers per sample; a fixed count, so that switching one change off leaves the others as they are."""


def _uniform(seed: int, epoch: int, row: int) -> np.ndarray:
    """[_NUMBERS] float64 in [0, 1). The row is the counter's highest word, so no two rows share a number."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, row]))
    return generator.random(_NUMBERS)


@torch.no_grad()
def finish(batch: Batch, input_size: int, skeleton: Skeleton) -> Batch:
    """The batch as the network sees it: float32 normalised [B, 3, S, S], on the batch's own device.

    Without `batch.augment` this is an antialiased resize. With it, the resized image is warped about its centre
    (scale, rotation, shift, then the mirror), new ground gets the mean colour, and a joint that leaves the view is
    neither labelled nor present, as in the datasets. An erased joint keeps its labels. Keypoints and `to_original`
    follow the pixels; `augment` is None afterwards.
    """
    # Planes in a row: the sums and products per channel below are a fifth quicker than with channels last.
    images = resize(batch.images, input_size).contiguous()
    normalise = _normalise(images.device)
    pixels = normalise(images)
    warp = _scaling(len(batch), batch.images.shape[-1], input_size, images.device)
    labelled, presence, keypoints = batch.labelled, batch.presence, batch.keypoints
    if batch.augment is not None:
        change = {name: batch.augment[:, i] for i, name in enumerate(COLUMNS)}
        move = _movement(change, input_size)
        pixels = _colour(pixels, change, normalise)
        pixels = _sample(pixels, _inverse(move))
        pixels = _erase(pixels, change)
        warp = _compose(move, warp)
        mirror = torch.from_numpy(skeleton.mirror).to(images.device)
        mirrored = change["flip"] > 0
        keypoints = torch.where(mirrored[:, None, None], keypoints[:, mirror], keypoints)
        labelled = torch.where(mirrored[:, None], labelled[:, mirror], labelled)
        presence = torch.where(mirrored[:, None], presence[:, mirror], presence)
    keypoints = _apply(warp, keypoints)
    if batch.augment is not None:
        inside = ((keypoints >= 0) & (keypoints <= input_size)).all(dim=2)
        labelled, presence = labelled & inside, presence * inside
    return replace(
        batch,
        images=pixels,
        keypoints=keypoints,
        labelled=labelled,
        presence=presence,
        to_original=_compose(batch.to_original.double(), _inverse(warp)).float(),
        augment=None,
    )


def resize(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] uint8 -> [B, 3, size, size] uint8, bilinear with antialiasing, rounded to whole values."""
    if images.shape[-2:] == (size, size):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    # Torch's byte kernel exists on the CPU alone.
    resized = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


@cache
def _normalise(device: torch.device) -> Normalise:
    return Normalise().to(device)


# ---------------------------------------------------------------- affine maps, [B, 2, 3] float64


def _scaling(count: int, stored: int, size: int, device: torch.device) -> Tensor:
    """Stored crop pixels -> input pixels."""
    factor = size / stored
    one = torch.tensor([[factor, 0.0, 0.0], [0.0, factor, 0.0]], dtype=torch.float64, device=device)
    return one.expand(count, 2, 3)


def _movement(change: dict[str, Tensor], size: int) -> Tensor:
    """Input pixels -> augmented input pixels: about the centre, then shifted, then mirrored left to right."""
    scale, angle, flip = (change[name].double() for name in ("scale", "rotate", "flip"))
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    middle = size / 2
    right = middle - middle * (cos - sin) + size * change["right"].double()
    down = middle - middle * (sin + cos) + size * change["down"].double()
    sign = 1 - 2 * flip
    top = torch.stack([sign * cos, -sign * sin, sign * right + flip * size], dim=1)
    bottom = torch.stack([sin, cos, down], dim=1)
    return torch.stack([top, bottom], dim=1)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies `inner` first."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    shift = (outer[:, :, :2] @ inner[:, :, 2:]) + outer[:, :, 2:]
    return torch.cat([linear, shift], dim=2)


def _inverse(affine: Tensor) -> Tensor:
    a, b, c, d = affine[:, 0, 0], affine[:, 0, 1], affine[:, 1, 0], affine[:, 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], dim=1), torch.stack([-c, a], dim=1)], dim=1)
    linear = adjugate / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -(linear @ affine[:, :, 2:])], dim=2)


def _apply(affine: Tensor, points: Tensor) -> Tensor:
    """[B, K, 2] float32 points through the maps."""
    moved = points.double() @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]
    return moved.float()


# ---------------------------------------------------------------- pixels


def _sample(pixels: Tensor, to_source: Tensor) -> Tensor:
    """[B, 3, S, S] read bilinearly where `to_source` [B, 2, 3] sends each pixel's centre; 0 outside."""
    size = pixels.shape[-1]
    # grid_sample's corners are the image's edges, -1 and 1. Broadcast sums instead of affine_grid's matrix product
    # are cheaper, and their rounding does not depend on the size of the batch.
    shift = to_source[:, :, 2] * (2 / size) - 1
    linear = (to_source[:, :, :2] * (2 / size)).float()
    centres = torch.arange(size, dtype=torch.float32, device=pixels.device) + 0.5
    along = linear[:, :, 0, None] * centres  # [B, 2, S]
    across = linear[:, :, 1, None] * centres + shift.float()[:, :, None]
    grid = along.transpose(1, 2)[:, None, :, :] + across.transpose(1, 2)[:, :, None, :]
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _colour(pixels: Tensor, change: dict[str, Tensor], normalise: Normalise) -> Tensor:
    """In place: contrast about the mean colour, then a gain per channel, within black and white."""
    gain = torch.stack([change["red"], change["green"], change["blue"]], dim=1)[:, :, None, None]
    factor = gain * change["contrast"][:, None, None, None]
    offset = (gain - 1) * normalise.mean * normalise.inverse_std
    return pixels.mul_(factor).add_(offset).clamp_(normalise.black, normalise.white)


def _erase(pixels: Tensor, change: dict[str, Tensor]) -> Tensor:
    """In place: the rectangle of each sample becomes the mean colour."""
    size = pixels.shape[-1]
    centres = (torch.arange(size, dtype=torch.float32, device=pixels.device) + 0.5) / size
    inside_x = (centres - change["erase_x"][:, None]).abs() < change["erase_width"][:, None] / 2  # [B, S]
    inside_y = (centres - change["erase_y"][:, None]).abs() < change["erase_height"][:, None] / 2
    erased = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return pixels.masked_fill_(erased, 0.0)
