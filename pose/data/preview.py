"""A contact sheet of what a network sees: prepared crops or scenes after resize and augmentation, with what it learns.

Joints and limbs always; of scenes also boxes and ignored regions; the target maps of systems that have some, or what
else they have to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pose.config import AugmentParams
from pose.data import marks
from pose.data.batch import Batch, SceneBatch
from pose.data.loader import Loader
from pose.data.scenes import SceneLoader
from pose.layers.normalise import Normalise
from pose.skeleton import Skeleton

GAP, CAPTION, LEGEND = 6, 18, 34
"""px: space around a picture, height of the line under it and of the line over the sheet."""
PAGE, INK = (24, 26, 30), (225, 225, 225)
SEED = 0


@dataclass(frozen=True)
class Grid:
    """How pictures lie on the sheet."""

    columns: int
    rows: int
    tile: int
    """px, side of a picture."""

    def corner(self, n: int) -> tuple[int, int]:
        """Left and top of the n-th picture, px of the sheet."""
        line, column = divmod(n, self.columns)
        return GAP + column * (self.tile + GAP), LEGEND + line * (self.tile + CAPTION + GAP)


PEOPLE, SCENES = Grid(6, 6, 224), Grid(3, 4, 454)


def sheet(
    loader: Loader | SceneLoader,
    prepare: Callable[[Any], Any],
    augment: AugmentParams | None,
    path: Path,
    targets: Callable[[Any], Tensor] | None = None,
    shows: str = "targets",
) -> Path:
    """Writes the PNG and returns its path.

    prepare: what a system makes of the loader's batches (System.prepare); targets: [B, h, w] in [0, 1] for a prepared
    batch, which `shows` names in the legend. With `augment`, each line is one sample: as it is, then as it meets the
    first epochs. Without, every picture is another sample. Samples lie evenly over the split.
    """
    grid = SCENES if isinstance(loader, SceneLoader) else PEOPLE
    if augment is None:
        batches = {"": _samples(loader, grid.columns * grid.rows, None, 0)}
    else:
        # A column is a batch, as in training: a mosaic's companions are other samples and not its own repeated.
        batches = {", as it is": _samples(loader, grid.rows, None, 0)}
        batches |= {f", epoch {n}": _samples(loader, grid.rows, augment, n) for n in range(grid.columns - 1)}
    seen = [prepare(batch) for batch in batches.values()]
    lines = -(-sum(map(len, seen)) // grid.columns)
    page = Image.new(
        "RGB", (grid.corner(grid.columns - 1)[0] + grid.tile + GAP, grid.corner(lines * grid.columns)[1]), PAGE
    )
    height, width = seen[0].images.shape[-2:]
    _legend(page, f"input {width} x {height} px", isinstance(seen[0], SceneBatch), shows if targets else None)
    for column, (name, batch) in enumerate(zip(batches, seen, strict=True)):
        for n, (picture, said) in enumerate(_marked(batch, grid.tile, loader.split.skeleton, targets)):
            left, top = grid.corner(column + n * len(seen))
            page.paste(picture, (left, top))
            caption = f"image {batch.image_ids[n]}{name}, {said}"
            ImageDraw.Draw(page).text((left + 2, top + grid.tile + 1), caption, INK, ImageFont.load_default(12))
    page.save(path, format="PNG")
    return path


def _samples(loader: Loader | SceneLoader, count: int, augment: AugmentParams | None, epoch: int) -> Any:
    """One batch of different samples, whatever the epoch."""
    last = len(loader.split) - 1
    rows = np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(np.int64))
    return next(iter(loader.batches(rows, len(rows), augment, SEED, epoch)))


# ---------------------------------------------------------------- pictures


def _marked(
    seen: Batch | SceneBatch, tile: int, skeleton: Skeleton, targets: Callable[[Any], Tensor] | None
) -> Iterator[tuple[Image.Image, str]]:
    """Each picture of a prepared batch with what is learned from it, and that in words."""
    maps = None if targets is None else targets(seen).clamp(0, 1).numpy()
    for n, picture in enumerate(_pictures(seen, tile)):
        if maps is not None:
            picture = marks.tinted(picture, maps[n], _shown(seen, tile), marks.TARGET)
        if isinstance(seen, SceneBatch):
            yield _with_people(picture, seen, n, skeleton, maps is not None), _people(seen, n)
        else:
            yield _with_joints(picture, seen, n, skeleton, maps is not None), _joints(seen, n)


def _pictures(batch: Batch | SceneBatch, tile: int) -> list[Image.Image]:
    """The network's input turned back into bytes and, enlarged without smoothing, put at the top left of a tile: its
    pixels stay visible.
    """
    normalise = Normalise()
    levels = (batch.images / normalise.inverse_std + normalise.mean).round().clamp(0, 255).to(torch.uint8)
    pictures = []
    for array in levels.permute(0, 2, 3, 1).contiguous().numpy():
        picture = Image.new("RGB", (tile, tile), PAGE)
        picture.paste(Image.fromarray(array).resize(_shown(batch, tile), Image.Resampling.NEAREST))
        pictures.append(picture)
    return pictures


def _factor(batch: Batch | SceneBatch, tile: int) -> float:
    """px of the tile per px of the input."""
    return tile / max(batch.images.shape[-2:])


def _shown(batch: Batch | SceneBatch, tile: int) -> tuple[int, int]:
    """Width and height of the input on its tile."""
    height, width = (round(side * _factor(batch, tile)) for side in batch.images.shape[-2:])
    return width, height


def _with_joints(picture: Image.Image, batch: Batch, n: int, skeleton: Skeleton, targets: bool) -> Image.Image:
    layer = marks.layer(picture.width)
    points = batch.keypoints[n].numpy() * _factor(batch, picture.width)
    visible = batch.presence[n].numpy() > 0.5
    size = marks.SMALL if targets else 1.0
    marks.draw_person(ImageDraw.Draw(layer), points, batch.labelled[n].numpy(), visible, skeleton, size)
    return marks.laid_over(picture, layer)


def _with_people(picture: Image.Image, batch: SceneBatch, n: int, skeleton: Skeleton, targets: bool) -> Image.Image:
    """Everyone with a box, over a tint where nothing is known."""
    tile = picture.width
    picture = marks.tinted(picture, batch.ignored[n].numpy() * 0.6, _shown(batch, tile), marks.IGNORED)
    layer, factor = marks.layer(tile), _factor(batch, tile)
    pen = ImageDraw.Draw(layer)
    for person in np.flatnonzero(batch.people[n].numpy()):
        marks.draw_box(pen, batch.boxes[n, person].numpy() * factor)
        points, visible = batch.keypoints[n, person].numpy() * factor, batch.presence[n, person].numpy() > 0.5
        marks.draw_person(pen, points, batch.labelled[n, person].numpy(), visible, skeleton, marks.SMALL)
    return marks.laid_over(picture, layer)


def _joints(batch: Batch, n: int) -> str:
    return f"{int(batch.presence[n].sum())} of {batch.presence.shape[1]} visible"


def _people(batch: SceneBatch, n: int) -> str:
    count, joints = int(batch.people[n].sum()), int(batch.labelled[n].sum())
    return f"{count} {'person' if count == 1 else 'people'} with {joints} joints"


def _legend(page: Image.Image, title: str, scenes: bool, shows: str | None) -> None:
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    x, middle = GAP + 2, LEGEND // 2
    sides = [(f"person's {s}" if s != "middle" else s, colour, True) for s, colour in marks.SIDES.items()]
    more = [("ignored", marks.IGNORED, True)] * scenes
    more += [] if shows is None else [(shows, marks.TARGET, True)]
    for text, colour, filled in [(title, None, True), *sides, *more, ("open: labelled, hidden", INK, False)]:
        if colour is not None:
            mark = Image.new("RGBA", (20 * marks.SMOOTH, 20 * marks.SMOOTH), (0, 0, 0, 0))
            marks.draw_joint(ImageDraw.Draw(mark), np.array([10.0, 10.0]) * marks.SMOOTH, colour, filled)
            small = mark.reduce(marks.SMOOTH)
            page.paste(small, (x, middle - 10), small)
            x += 22
        pen.text((x, middle), text, INK, font, anchor="lm")
        x += round(pen.textlength(text, font)) + 18
    pen.text((x, middle), "no mark: no position", INK, font, anchor="lm")
