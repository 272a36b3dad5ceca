"""What a network sees of a scene: the whole image fitted into its input, batched on the device, with its people.

The input shows the stored image at its top left, aspect kept, as large as it fits. Augmentation moves the picture
within the part of the input it fills (`extents`), so that what lies beyond stays empty.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pose.data import augment as augmentation
from pose.data import views
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.skeleton import Skeleton

LEAST = 1.0
"""px: a person of whom less than this is in view, in width or height, is not there."""


def plain(batch: SceneBatch, size: tuple[int, int]) -> Tensor:
    """uint8 [B, 3, H, W]: the unaugmented input in whole values, as exported networks take it."""
    images = shrunk(batch, size)
    to_source = views.inverse(fit_view(batch, size)) * (images.shape[-1] / batch.images.shape[-1])
    pixels = views.sample(images.float() - views.fill(images), to_source, size) + views.fill(images)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


@torch.no_grad()
def finish(batch: SceneBatch, size: tuple[int, int], skeleton: Skeleton) -> SceneBatch:
    """The batch as the network sees it: float32 normalised [B, 3, H, W] for `size` = (W, H), on the batch's device.

    Without `batch.augment` this is the plain view. With it, the picture is scaled, turned, shifted and mirrored about
    the middle of its extents; new ground gets the mean colour, joints that leave the extents are neither labelled nor
    present, and areas follow the scale. In both, a box becomes the one around its moved corners, clipped to the
    extents, and a person without a pixel in view leaves the slot. `augment` is None afterwards.
    """
    normalise = augmentation.normaliser(batch.images.device)
    warp = fit_view(batch, size)
    extents = batch.extents * warp[:, [0, 1], [0, 1]].float()
    if batch.augment is None:
        pixels = normalise(plain(batch, size).contiguous())
    else:
        change = augmentation.named(batch.augment)
        source = shrunk(batch, size).contiguous()
        step = source.shape[-1] / batch.images.shape[-1]
        seen = augmentation.colour(normalise(source), change, normalise)
        seen.mul_(within(batch.extents * step, seen.shape[-1], seen.shape[-2])[:, None])
        warp = views.compose(augmentation.movement(change, extents), warp)
        pixels = views.sample(seen, views.inverse(warp) * step, size)
        pixels.mul_(within(extents, *size)[:, None])
        pixels = augmentation.erase(pixels, change)
        batch = mirrored_scenes(batch, change["flip"] > 0, skeleton)
    moved = people_in_view(batch, warp, extents)
    return replace(
        moved,
        images=pixels,
        extents=extents,
        ignored=ignored_in_view(batch, warp, extents, size),
        to_original=views.compose(batch.to_original.double(), views.inverse(warp)).float(),
        augment=None,
    )


def fit_view(batch: SceneBatch, size: tuple[int, int]) -> Tensor:
    """[B, 2, 3] float64, stored px to input px: one factor, no shift."""
    scale = (batch.extents.new_tensor(size).double() / batch.extents.double()).amin(dim=1)
    linear = scale[:, None, None] * torch.eye(2, dtype=torch.float64, device=scale.device)
    return torch.cat([linear, torch.zeros_like(linear[:, :, :1])], dim=2)


def shrunk(batch: SceneBatch, size: tuple[int, int]) -> Tensor:
    """uint8: the stored canvases, antialiased to the input's resolution: the same factor for any batch."""
    stored = batch.images.shape[-1]
    factor = max(size) / stored
    side = max(size)
    return views.resize(batch.images, (side, side)) if factor < views.WORTHWHILE else batch.images


def within(extents: Tensor, width: int, height: int) -> Tensor:
    """[B, height, width] bool: pixels whose centres lie within the extents [B, 2]."""
    columns = torch.arange(width, dtype=torch.float32, device=extents.device) + 0.5
    rows = torch.arange(height, dtype=torch.float32, device=extents.device) + 0.5
    across, down = columns < extents[:, :1], rows < extents[:, 1:]
    return down[:, :, None] & across[:, None, :]


def mirrored_scenes(batch: SceneBatch, flipped: Tensor, skeleton: Skeleton) -> SceneBatch:
    """Left joints become right ones in the rows that are flipped."""
    mirror = torch.from_numpy(skeleton.mirror).to(batch.images.device)
    where = flipped[:, None, None]
    return replace(
        batch,
        keypoints=torch.where(where[..., None], batch.keypoints[:, :, mirror], batch.keypoints),
        labelled=torch.where(where, batch.labelled[:, :, mirror], batch.labelled),
        presence=torch.where(where, batch.presence[:, :, mirror], batch.presence),
    )


def people_in_view(batch: SceneBatch, warp: Tensor, extents: Tensor) -> SceneBatch:
    """Keypoints, boxes and areas under the warp, and who is still there."""
    count, slots, joints, _ = batch.keypoints.shape
    keypoints = views.apply(warp, batch.keypoints.reshape(count, -1, 2)).reshape(count, slots, joints, 2)
    labelled, presence = batch.labelled, batch.presence
    if batch.augment is not None:
        inside = ((keypoints >= 0) & (keypoints <= extents[:, None, None])).all(dim=3)
        labelled, presence = labelled & inside, presence * inside
    corners = views.apply(warp, batch.boxes[:, :, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(count, -1, 2))
    corners = torch.minimum(corners.reshape(count, slots, 4, 2).clamp_(min=0), extents[:, None, None])
    low, high = corners.amin(dim=2), corners.amax(dim=2)
    there = batch.people & (high - low >= LEAST).all(dim=2)
    linear = warp[:, :, :2]
    growth = (linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]).abs().float()
    return replace(
        batch,
        people=there,
        keypoints=keypoints,
        labelled=labelled & there[:, :, None],
        presence=presence * there[:, :, None],
        boxes=torch.cat([low, high], dim=2) * there[:, :, None],
        areas=batch.areas * growth[:, None] * there,
    )


def ignored_in_view(batch: SceneBatch, warp: Tensor, extents: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, H / IGNORE_STRIDE, W / IGNORE_STRIDE], read bilinearly: what is mostly ignored is ignored."""
    width, height = (-(-side // IGNORE_STRIDE) for side in size)
    to_cells = views.inverse(warp)
    to_cells = torch.cat([to_cells[:, :, :2], to_cells[:, :, 2:] / IGNORE_STRIDE], dim=2)
    cells = views.sample(batch.ignored[:, None].float(), to_cells, (width, height))[:, 0] > 0.5
    return cells & within(extents / IGNORE_STRIDE, width, height)
