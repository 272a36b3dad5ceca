"""What a training sample goes through on the device: view, one warp, colour, an erased rectangle, normalisation.

The random numbers are drawn on the host from (seed, epoch, row) alone, so that a sample meets the same change
whatever worker, batch or restart brings it; the pixels are then changed a batch at a time where the network is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pose.config import AugmentParams
from pose.data import views
from pose.data.batch import Batch
from pose.layers.normalise import Normalise
from pose.skeleton import Skeleton

COLUMNS = (
    "scale", "rotate", "right", "down", "flip",
    "contrast", "red", "green", "blue",
    "erase_x", "erase_y", "erase_width", "erase_height", "half_body",
)  # fmt: skip
"""Of `draw`: factor, radians (clockwise as seen), two shares of the input side, 0 or 1; contrast factor, gain of each
channel; centre and size of the erased rectangle as shares of the input side, size 0 where nothing is erased; 0 for the
whole body, 1 for its upper and 2 for its lower half."""

ERASED_AREA = (0.02, 0.15)
"""Smallest and largest erased rectangle as a share of the input's area."""
ERASED_ASPECT = 2.0
"""Its sides differ by this factor at the most."""
CHANNEL_SHARE = 1 / 3
"""How far a channel's gain may leave the common one, as a share of the colour strength."""

UPPER_SHARE = 0.69
"""Of half bodies: the released code of HRNet takes the upper half where a normal number is below 0.5."""
HALF_PADDING = 1.5
"""The box of a half body's joints times this is looked at (HRNet's released code)."""
LEAST_JOINTS = 3
"""Labelled joints that a half must have."""
LOWER = ("hip", "knee", "ankle")
"""Last words of the lower half's joint names; all others are the upper half's."""


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
        (u[:, 15] < params.half_body) * np.where(u[:, 16] < UPPER_SHARE, 1, 2),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


_NUMBERS = 17
"""Uniform numbers per sample; a fixed count, so that switching one change off leaves the others as they are."""


def _uniform(seed: int, epoch: int, row: int) -> np.ndarray:
    """[_NUMBERS] float64 in [0, 1). The row is the counter's highest word, so no two rows share a number."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, row]))
    return generator.random(_NUMBERS)


@torch.no_grad()
def finish(batch: Batch, size: tuple[int, int], skeleton: Skeleton, padding: float = 1.25) -> Batch:
    """The batch as the network sees it: float32 normalised [B, 3, H, W], on the batch's own device.

    size: width and height of the input. Without `batch.augment` this is the plain view (pose.data.views). With it,
    the view of a person may become that of half the body; it is warped about its centre (scale, rotation, shift, then
    the mirror), new ground gets the mean colour, and a joint that leaves the view is neither labelled nor present, as
    in the datasets. An erased joint keeps its labels. Keypoints and `to_original` follow the pixels; `boxes` stay, but
    for half bodies, whose they become; `augment` is None afterwards.
    """
    normalise = normaliser(batch.images.device)
    change = None if batch.augment is None else named(batch.augment)
    seen = batch if change is None else _half_bodies(batch, change["half_body"], skeleton, padding)
    warp = views.view(seen, size, padding)
    labelled, presence, keypoints = batch.labelled, batch.presence, batch.keypoints
    if change is None:
        # Planes in a row: the sums and products per channel are a fifth quicker than with channels last.
        pixels = normalise(views.plain(batch, size, padding).contiguous())
    else:
        images = views.source(batch, size, padding).contiguous()
        # Whole images come at the input's size already.
        step = torch.tensor([images.shape[-1], images.shape[-2]], device=images.device) / batch.images.shape[-1]
        pixels = colour(normalise(images), change, normalise)
        warp = views.compose(movement(change, keypoints.new_tensor(size).expand(len(batch), 2)), warp)
        pixels = views.sample(pixels, views.inverse(warp) * step.double()[:, None], size)
        pixels = erase(pixels, change)
        mirror = torch.from_numpy(skeleton.mirror).to(images.device)
        mirrored = change["flip"] > 0
        keypoints = torch.where(mirrored[:, None, None], keypoints[:, mirror], keypoints)
        labelled = torch.where(mirrored[:, None], labelled[:, mirror], labelled)
        presence = torch.where(mirrored[:, None], presence[:, mirror], presence)
    keypoints = views.apply(warp, keypoints)
    if change is not None:
        inside = ((keypoints >= 0) & (keypoints <= keypoints.new_tensor(size))).all(dim=2)
        labelled, presence = labelled & inside, presence * inside
    return replace(
        batch,
        images=pixels,
        keypoints=keypoints,
        labelled=labelled,
        presence=presence,
        to_original=views.compose(batch.to_original.double(), views.inverse(warp)).float(),
        boxes=seen.boxes,
        augment=None,
    )


@cache
def normaliser(device: torch.device) -> Normalise:
    """The one of that device."""
    return Normalise().to(device)


def _half_bodies(batch: Batch, chosen: Tensor, skeleton: Skeleton, padding: float) -> Batch:
    """The batch with the boxes of half bodies, such that `padding` times the box is HALF_PADDING times its joints'.

    Where a person has more than half of all joints labelled. Without LEAST_JOINTS in the chosen half it is the other,
    without them in both it is the whole body. Whole images (view "image") stay as they are.
    """
    if batch.view == "image":
        return batch
    lower = torch.tensor([name.endswith(LOWER) for name in skeleton.joints], device=chosen.device)
    upper_half, lower_half = batch.labelled & ~lower, batch.labelled & lower
    enough = [half.sum(dim=1) >= LEAST_JOINTS for half in (upper_half, lower_half)]
    take_upper = torch.where(chosen == 1, enough[0], ~enough[1])
    half = torch.where(take_upper[:, None], upper_half, lower_half)
    applies = (chosen > 0) & (enough[0] | enough[1]) & (batch.labelled.sum(dim=1) > skeleton.size // 2)
    points = views.apply(batch.to_original.double(), batch.keypoints)
    low = torch.where(half[:, :, None], points, torch.inf).amin(dim=1)
    high = torch.where(half[:, :, None], points, -torch.inf).amax(dim=1)
    centre = (points * half[:, :, None]).sum(dim=1) / half.sum(dim=1, keepdim=True).clamp(min=1)
    # At least a pixel, where all joints lie on one line.
    reach = (high - low).clamp(min=1) * (HALF_PADDING / padding / 2)
    boxes = torch.cat([centre - reach, centre + reach], dim=1)
    return replace(batch, boxes=torch.where(applies[:, None], boxes, batch.boxes))


def named(augment: Tensor) -> dict[str, Tensor]:
    """The columns [B] of `draw` by their names."""
    return {name: augment[:, i] for i, name in enumerate(COLUMNS)}


def movement(change: dict[str, Tensor], extents: Tensor) -> Tensor:
    """[B, 2, 3] float64, input pixels -> augmented input pixels: about the centre, then shifted, then mirrored.

    extents: [B, 2], width and height of what is moved and mirrored within itself; shifts are shares of them.
    """
    width, height = extents.double().unbind(dim=1)
    scale, angle, flip = (change[name].double() for name in ("scale", "rotate", "flip"))
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    right = width / 2 - (width / 2 * cos - height / 2 * sin) + width * change["right"].double()
    down = height / 2 - (width / 2 * sin + height / 2 * cos) + height * change["down"].double()
    sign = 1 - 2 * flip
    top = torch.stack([sign * cos, -sign * sin, sign * right + flip * width], dim=1)
    bottom = torch.stack([sin, cos, down], dim=1)
    return torch.stack([top, bottom], dim=1)


def colour(pixels: Tensor, change: dict[str, Tensor], normalise: Normalise) -> Tensor:
    """In place: contrast about the mean colour, then a gain per channel, within black and white."""
    gain = torch.stack([change["red"], change["green"], change["blue"]], dim=1)[:, :, None, None]
    factor = gain * change["contrast"][:, None, None, None]
    offset = (gain - 1) * normalise.mean * normalise.inverse_std
    return pixels.mul_(factor).add_(offset).clamp_(normalise.black, normalise.white)


def erase(pixels: Tensor, change: dict[str, Tensor]) -> Tensor:
    """In place: the rectangle of each sample becomes the mean colour."""
    inside_x = _within(pixels.shape[-1], change["erase_x"], change["erase_width"])
    inside_y = _within(pixels.shape[-2], change["erase_y"], change["erase_height"])
    erased = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return pixels.masked_fill_(erased, 0.0)


def _within(length: int, centre: Tensor, width: Tensor) -> Tensor:
    """[B, length] bool: the pixels of a row or column whose centres lie inside; all in shares of the length."""
    centres = (torch.arange(length, dtype=torch.float32, device=centre.device) + 0.5) / length
    return (centres - centre[:, None]).abs() < width[:, None] / 2
