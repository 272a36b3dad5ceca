"""Mosaics: four scenes around a point, as one picture with everyone who is left in it (YOLOv4, section 3.3).

A sample's mosaic is its own scene at the top left and the next three of its batch, each as large as it would be alone,
their corners at a point drawn anywhere on the canvas; then the sample's own movement, mirror and colour. Point and
choice come from the numbers drawn for the sample, so that they do not depend on the batch; its companions do: they
repeat with the same number of ranks and parts per step.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pose.data import augment as augmentation
from pose.data import scene_views, views
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.skeleton import Skeleton

TILES = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Of a mosaic, in the order of a batch's rows: 1 where the tile is right of, or below, the point."""
LEAST_SHARE = 0.1
"""Of a person's box: with less of it in view the person is not there."""
FINE = 4096
"""Splits one uniform number into two: which of so many parts it is in, and where in that part."""


@torch.no_grad()
def compose_mosaics(batch: SceneBatch, size: tuple[int, int], skeleton: Skeleton, share: float) -> SceneBatch:
    """As scene_views.finish, with about this share of the rows as mosaics. The batch must have numbers in `augment`.

    A mosaic keeps its first scene's `image_ids`, `sample`, `image_sizes` and `to_original`; its extents are the canvas.
    """
    assert batch.augment is not None
    change = augmentation.named(batch.augment)
    # Drawn for every sample, whether or not anything is erased.
    chosen = (change["erase_x"] * FINE) % 1 < share
    parts, rows = [], []
    if chosen.any():
        rows.append(torch.where(chosen)[0])
        parts.append(_mosaics(batch, rows[-1], size, skeleton))
    if not chosen.all():
        rows.append(torch.where(~chosen)[0])
        parts.append(scene_views.finish(_at(batch, rows[-1]), size, skeleton))
    return _together(parts, torch.cat(rows).argsort())


def _mosaics(batch: SceneBatch, rows: Tensor, size: tuple[int, int], skeleton: Skeleton) -> SceneBatch:
    """The mosaics of these rows."""
    assert batch.augment is not None
    own = batch.augment[rows]
    change = augmentation.named(own)
    canvas = batch.extents.new_tensor(size).expand(len(rows), 2)
    point = torch.stack([(change["erase_y"] * FINE) % 1, (change["erase_x"] * FINE).floor() / FINE], dim=1) * canvas
    move = augmentation.movement(change, canvas)
    normalise = augmentation.normaliser(batch.images.device)
    back = views.inverse(move)
    tiles, pixels, ignored = [], batch.extents.new_zeros(()), batch.people.new_zeros(())
    for place, side in enumerate(TILES):
        tile = replace(_at(batch, (rows + place) % len(batch)), augment=own)
        warp, region = _placed(tile, size, point, side)
        warp = views.compose(move, warp)
        seen = augmentation.colour(normalise(scene_views.shrunk(tile, size).contiguous()), change, normalise)
        step = seen.shape[-1] / batch.images.shape[-1]
        seen.mul_(scene_views.within(tile.extents * step, seen.shape[-1], seen.shape[-2])[:, None])
        mine = _covered(back, region, size, 1)
        pixels = pixels + views.sample(seen, views.inverse(warp) * step, size) * mine[:, None]
        mask = scene_views.ignored_in_view(tile, warp, canvas, size)
        ignored = ignored | (mask & _covered(back, region, size, IGNORE_STRIDE))
        tile = scene_views.mirrored_scenes(tile, change["flip"] > 0, skeleton)
        tiles.append(_people(tile, warp, canvas))
    erased = augmentation.erase(pixels, change)
    first = tiles[0]
    people = {
        name: torch.cat([getattr(tile, name) for tile in tiles], dim=1)
        for name in ("people", "keypoints", "labelled", "presence", "boxes", "areas")
    }
    return replace(first, images=erased, ignored=ignored, extents=canvas.clone(), augment=None, **people)


def _placed(tile: SceneBatch, size: tuple[int, int], point: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[B, 2, 3] stored px to the unmoved mosaic, and [B, 4] xyxy: the part of it that the tile fills."""
    warp = scene_views.fit_view(tile, size)
    extents = tile.extents * warp[:, [0, 1], [0, 1]].float()
    beyond = extents.new_tensor(side)
    corner = point - extents * (1 - beyond)
    warp = torch.cat([warp[:, :, :2], corner.double()[:, :, None]], dim=2)
    return warp, torch.cat([corner, corner + extents], dim=1)


def _covered(back: Tensor, region: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """[B, H, W] bool: cells of `stride` px whose centres come from the region [B, 4] under `back` [B, 2, 3]."""
    width, height = (-(-length // stride) for length in size)
    columns = (torch.arange(width, device=region.device, dtype=torch.float32) + 0.5) * stride
    rows = (torch.arange(height, device=region.device, dtype=torch.float32) + 0.5) * stride
    back = back.float()
    inside = torch.ones(len(region), height, width, dtype=torch.bool, device=region.device)
    for axis in (0, 1):
        along = back[:, axis, 0, None] * columns
        across = back[:, axis, 1, None] * rows + back[:, axis, 2, None]
        value = along[:, None, :] + across[:, :, None]
        inside &= (value >= region[:, axis, None, None]) & (value < region[:, axis + 2, None, None])
    return inside


def _people(tile: SceneBatch, warp: Tensor, canvas: Tensor) -> SceneBatch:
    """The tile's people as the mosaic shows them. The tile ends at its scene's edge as a picture does at its own."""
    shown = scene_views.people_in_view(tile, warp, canvas)
    inside = ((tile.keypoints >= 0) & (tile.keypoints <= tile.extents[:, None, None])).all(dim=3)
    corners = tile.boxes[:, :, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(len(tile), -1, 2)
    corners = views.apply(warp, corners).reshape(*tile.people.shape, 4, 2)
    whole = (corners.amax(dim=2) - corners.amin(dim=2)).prod(dim=2)
    share = (shown.boxes[..., 2:] - shown.boxes[..., :2]).prod(dim=2) / whole.clamp(min=1e-6)
    there = shown.people & (share >= LEAST_SHARE)
    return replace(
        shown,
        people=there,
        labelled=shown.labelled & inside & there[..., None],
        presence=shown.presence * (inside & there[..., None]),
        boxes=shown.boxes * there[..., None],
        areas=shown.areas * there * share.clamp(max=1),
    )


def _at(batch: SceneBatch, rows: Tensor) -> SceneBatch:
    """The batch's rows in another order, or some of them."""
    return replace(batch, **{name: tensor[rows] for name, tensor in batch.tensors().items()})


def _together(parts: list[SceneBatch], order: Tensor) -> SceneBatch:
    """The rows of all parts, in this order. Missing slots are empty."""
    slots = max(part.people.shape[1] for part in parts)
    names = list(parts[0].tensors())
    grown = [
        {
            name: _grown(tensor, slots) if name in _SLOTTED else tensor
            for name, tensor in part.tensors().items()
        }
        for part in parts
    ]  # fmt: skip
    return replace(parts[0], **{name: torch.cat([part[name] for part in grown])[order] for name in names})


_SLOTTED = ("people", "keypoints", "labelled", "presence", "boxes", "areas")


def _grown(tensor: Tensor, slots: int) -> Tensor:
    rest = tensor.new_zeros(len(tensor), slots - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, rest], dim=1)
