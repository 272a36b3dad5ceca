"""A contact sheet of what a network sees: prepared crops after resize and augmentation, with the joints it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pose.config import AugmentParams
from pose.data.augment import draw, finish
from pose.data.batch import Batch
from pose.data.loader import Loader
from pose.data.shards import Split
from pose.layers.normalise import Normalise
from pose.skeleton import Skeleton

COLUMNS, ROWS = 6, 6
TILE, GAP, CAPTION, LEGEND = 224, 6, 18, 34
"""px: side of a picture, space around it, height of the line under it and of the line over the sheet."""
SMOOTH = 4
"""Lines are drawn this much larger and reduced, which antialiases them."""
PAGE, INK = (24, 26, 30), (225, 225, 225)
SIDES = {"left": (64, 156, 255), "right": (255, 138, 48), "middle": (250, 235, 120)}
"""RGB by the person's own side."""
OUTLINE = (16, 16, 20)
LINE, DOT = 2.5, 4.5
"""px of the sheet: width of a limb, radius of a joint."""
SEED = 0


def sheet(
    split: Split, size: tuple[int, int], augment: AugmentParams | None, path: Path, padding: float = 1.25
) -> Path:
    """Writes the PNG and returns its path.

    With `augment`, each line is one sample: as it is, then as it meets the first epochs. Without, every picture is
    another sample. Samples lie evenly over the split.
    """
    if augment is None:
        batch = _samples(split, COLUMNS * ROWS)
        captions = [f"image {image}" for image in batch.image_ids.tolist()]
    else:
        chosen = _samples(split, ROWS)
        batch, captions = _epochs(chosen, augment)
    seen = finish(batch, size, split.skeleton, padding)
    pictures = _pictures(seen)
    lines = -(-len(batch) // COLUMNS)
    width, height = COLUMNS * (TILE + GAP) + GAP, lines * (TILE + CAPTION + GAP) + LEGEND
    page = Image.new("RGB", (width, height), PAGE)
    _legend(page, f"input {size[0]} x {size[1]} px")
    for n, picture in enumerate(pictures):
        left, top = tile_corner(n)
        page.paste(_with_joints(picture, seen, n, split.skeleton), (left, top))
        shown = int(seen.presence[n].sum())
        caption = f"{captions[n]}, {shown} of {split.skeleton.size} visible"
        ImageDraw.Draw(page).text((left + 2, top + TILE + 1), caption, INK, ImageFont.load_default(12))
    page.save(path, format="PNG")
    return path


def tile_corner(n: int) -> tuple[int, int]:
    """Left and top of the n-th picture, px of the sheet."""
    line, column = divmod(n, COLUMNS)
    return GAP + column * (TILE + GAP), LEGEND + line * (TILE + CAPTION + GAP)


def _samples(split: Split, count: int) -> Batch:
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(np.int64))
    return next(Loader(split, threads=1).batches(rows, len(rows), None, SEED, 0))


def _epochs(batch: Batch, augment: AugmentParams) -> tuple[Batch, list[str]]:
    """Each sample COLUMNS times: unchanged, then as drawn for epoch 0, 1, ..."""
    rows, columns = batch.sample.numpy(), COLUMNS - 1
    changes = [draw(AugmentParams(), SEED, 0, rows), *(draw(augment, SEED, epoch, rows) for epoch in range(columns))]
    place = torch.arange(len(rows)).repeat_interleave(COLUMNS)
    repeated = {name: value[place] for name, value in batch.tensors().items()}
    drawn = torch.from_numpy(np.stack(changes, axis=1).reshape(len(place), -1))
    names = ["as it is", *(f"epoch {epoch}" for epoch in range(columns))]
    captions = [f"image {batch.image_ids[i]}, {name}" for i in range(len(rows)) for name in names]
    return replace(batch, **repeated | {"augment": drawn}), captions


def _pictures(batch: Batch) -> list[Image.Image]:
    """The network's input turned back into bytes and enlarged without smoothing: its pixels stay visible."""
    normalise = Normalise()
    levels = (batch.images / normalise.inverse_std + normalise.mean).round().clamp(0, 255).to(torch.uint8)
    arrays = levels.permute(0, 2, 3, 1).contiguous().numpy()
    return [_fitted(Image.fromarray(array)) for array in arrays]


def _fitted(picture: Image.Image) -> Image.Image:
    """Enlarged to the tile's longer side, at its top left."""
    factor = TILE / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    tile = Image.new("RGB", (TILE, TILE), PAGE)
    tile.paste(picture.resize(size, Image.Resampling.NEAREST))
    return tile


def _with_joints(picture: Image.Image, batch: Batch, n: int, skeleton: Skeleton) -> Image.Image:
    """Limbs between labelled joints; visible joints filled, hidden ones open."""
    layer = Image.new("RGBA", (TILE * SMOOTH, TILE * SMOOTH), (*OUTLINE, 0))
    pen = ImageDraw.Draw(layer)
    points = batch.keypoints[n].numpy() * (TILE * SMOOTH / max(batch.images.shape[-2:]))
    labelled, visible = batch.labelled[n].numpy(), batch.presence[n].numpy() > 0.5
    for a, b in skeleton.limb_indices:
        if labelled[a] and labelled[b]:
            colour = SIDES[_side(skeleton.joints[a], skeleton.joints[b])]
            pen.line([tuple(points[a]), tuple(points[b])], (*colour, 200), round(LINE * SMOOTH))
    for k in np.flatnonzero(labelled):
        _joint(pen, points[k], SIDES[_side(skeleton.joints[k])], filled=bool(visible[k]))
    return Image.alpha_composite(picture.convert("RGBA"), layer.reduce(SMOOTH)).convert("RGB")


def _joint(pen: ImageDraw.ImageDraw, point: np.ndarray, colour: tuple[int, int, int], filled: bool) -> None:
    def circle(radius: float) -> tuple[float, float, float, float]:
        x, y, r = float(point[0]), float(point[1]), radius * SMOOTH
        return (x - r, y - r, x + r, y + r)

    if filled:
        pen.ellipse(circle(DOT + 1), (*OUTLINE, 255))
        pen.ellipse(circle(DOT), (*colour, 255))
    else:
        pen.ellipse(circle(DOT + 1), (0, 0, 0, 0), (*OUTLINE, 255), 3 * SMOOTH)
        pen.ellipse(circle(DOT + 0.5), None, (*colour, 255), round(1.5 * SMOOTH))


def _side(*joints: str) -> str:
    """Left or right where all these joints are on that side of the person."""
    sides = {joint.split("_", 1)[0] for joint in joints}
    side = sides.pop() if len(sides) == 1 else "middle"
    return side if side in SIDES else "middle"


def _legend(page: Image.Image, title: str) -> None:
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    x, middle = GAP + 2, LEGEND // 2
    sides = [(f"person's {side}" if side != "middle" else side, colour, True) for side, colour in SIDES.items()]
    for text, colour, filled in [(title, None, True), *sides, ("open: labelled, hidden", INK, False)]:
        if colour is not None:
            mark = Image.new("RGBA", (20 * SMOOTH, 20 * SMOOTH), (0, 0, 0, 0))
            _joint(ImageDraw.Draw(mark), np.array([10.0, 10.0]) * SMOOTH, colour, filled)
            small = mark.reduce(SMOOTH)
            page.paste(small, (x, middle - 10), small)
            x += 22
        pen.text((x, middle), text, INK, font, anchor="lm")
        x += round(pen.textlength(text, font)) + 18
    pen.text((x, middle), "no mark: no position", INK, font, anchor="lm")
