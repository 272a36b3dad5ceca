"""OpenPose at work, for people to look at: its maps as light, its fields as arrows, and how people are put together.

    python -m pose.inference.paf_view FOLDER PICTURE -o steps.png

writes one picture of four steps: maps, fields, candidates with the links that were matched, people. FOLDER is a bundle
or a finished training. `pose predict --steps` does so for every picture and frame.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pose.data import scenes
from pose.data.crops import transform
from pose.decoding.grouping import Grouping
from pose.errors import ConfigError
from pose.inference.draw import OUTLINE, SIDE_COLOURS, overlay, side_of
from pose.inference.maps import DIMMED, Heat, glow
from pose.inference.weights import trained
from pose.layers.paf import Layout
from pose.people import People
from pose.skeleton import Skeleton

LEAST = 0.2
"""Shorter vectors of a field are not drawn."""
SMALLEST = 480
"""Smaller pictures are enlarged to this longer side: an arrow needs a few pixels to be read."""
SMOOTH = 2
"""Drawn this much larger and reduced."""
GAP, CAPTION = 6, 22
PAGE, INK = (24, 26, 30), (225, 225, 225)


@dataclass(frozen=True)
class Steps:
    """What OpenPose made of one picture."""

    heats: np.ndarray
    """[K, h, w] of the layout's joints."""
    fields: np.ndarray
    """[2L, h, w]."""
    grouping: Grouping
    people: People
    layout: Layout
    to_original: np.ndarray
    """[2, 3], pixels of the network's input to pixels of the picture."""
    input_size: tuple[int, int]

    def at(self, cells: np.ndarray) -> np.ndarray:
        """Places [N, 2] on the maps as pixels of the picture."""
        height, width = self.heats.shape[1:]
        stride = np.array(self.input_size) / (width, height)
        return transform(self.to_original, np.asarray(cells, np.float64) * stride)


def looker(folder: Path) -> Callable[[Image.Image], Steps]:
    """What the OpenPose of a bundle or training folder makes of a picture. Raises ConfigError for another system."""
    from pose.systems.openpose import OpenPose

    model = trained(folder)
    system = model.system
    if not isinstance(system, OpenPose):
        raise ConfigError(
            f"--steps: {model.name} ({folder}) does not put people together from maps and fields, as openpose does, "
            "so there are none to show; leave --steps away"
        )
    size = system.params.input_size

    @torch.inference_mode()
    def look(image: Image.Image) -> Steps:
        batch = system.prepare(scenes.unlabelled([image], [0], max(size), system.skeleton))
        outputs = system.forward(system.network, batch)
        heats, fields = (maps[0].cpu().numpy() for maps in system.last_maps(outputs))
        each = system.grouped(outputs)
        people = system.placed(each, batch)
        return Steps(heats, fields, each[0], people, system.layout, batch.to_original[0].double().numpy(), size)

    return look


def seen(folder: Path) -> Callable[[Image.Image, People], Image.Image]:
    """For `pose predict --maps`: a picture, dimmed, with the maps as light and the fields as arrows."""
    look = looker(folder)

    def draw(image: Image.Image, people: People) -> Image.Image:
        steps = look(image)
        return arrows(lit(image, steps), steps)

    return draw


def sheets(folder: Path) -> Callable[[Image.Image], Image.Image]:
    """For `pose predict --steps`: a picture's four steps, see the module."""
    return partial(sheet, look=looker(folder))


# ---------------------------------------------------------------- the steps


def lit(image: Image.Image, steps: Steps) -> Image.Image:
    """The picture, dimmed, with everyone's joints glowing in it in the colours of the sides."""
    heat = Heat(steps.heats.clip(0, 1), steps.to_original, steps.input_size)
    return glow(image, [heat], steps.layout.joints)


def arrows(image: Image.Image, steps: Steps) -> Image.Image:
    """The picture with the longest vector of every cell as an arrow; brighter where it is longer."""
    vectors = steps.fields.reshape(-1, 2, *steps.fields.shape[1:])
    lengths = np.hypot(vectors[:, 0], vectors[:, 1])
    limb = lengths.argmax(axis=0)
    longest = lengths.max(axis=0)
    rows, columns = np.nonzero(longest >= LEAST)
    cells = np.stack([columns, rows], axis=1) + 0.5
    half = 0.5 * vectors[limb[rows, columns], :, rows, columns]
    starts, ends = steps.at(cells - half), steps.at(cells + half)
    colours = [side_colour(steps.layout.joints, pair) for pair in steps.layout.limbs.tolist()]
    canvas = _Canvas(image)
    for n, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
        strength = int(255 * min(1.0, float(longest[row, column])))
        canvas.arrow(starts[n], ends[n], (*colours[limb[row, column]], strength))
    return canvas.done()


def linked(image: Image.Image, steps: Steps) -> Image.Image:
    """The dimmed picture with all candidates, and the links that were matched, wider where they are surer."""
    canvas = _Canvas(_dimmed(image))
    places = steps.at(steps.grouping.candidates.places)
    links, joints = steps.grouping.links, steps.layout.joints
    for limb, start, end, score in zip(links.limbs, links.starts, links.ends, links.scores, strict=True):
        colour = side_colour(joints, steps.layout.limbs[limb].tolist())
        canvas.line(places[start], places[end], (*colour, 230), 1 + 3 * float(score))
    for joint, place, height in zip(
        steps.grouping.candidates.joints, places, steps.grouping.candidates.heights, strict=True
    ):
        canvas.dot(place, 2 + 2 * float(height), SIDE_COLOURS[side_of(joints.joints[joint])])
    return canvas.done()


def sheet(image: Image.Image, look: Callable[[Image.Image], Steps]) -> Image.Image:
    """The four steps side by side, two in a line. A small picture is looked at and drawn enlarged."""
    image = _enlarged(image.convert("RGB"))
    steps = look(image)
    candidates, groups = steps.grouping.candidates, steps.grouping.groups
    pictures = {
        f"maps of {steps.layout.joints.size} joints": lit(image, steps),
        f"fields of {len(steps.layout.limbs)} limbs": arrows(_dimmed(image), steps),
        f"{len(candidates.joints)} candidates, {len(steps.grouping.links.limbs)} links": linked(image, steps),
        f"{len(groups.scores)} people": overlay(image, steps.people, steps.layout.people, scores=True),
    }
    width, height = image.size
    page = Image.new("RGB", (2 * width + 3 * GAP, 2 * (height + CAPTION) + 3 * GAP), PAGE)
    for n, (caption, picture) in enumerate(pictures.items()):
        left, top = GAP + n % 2 * (width + GAP), GAP + n // 2 * (height + CAPTION + GAP)
        page.paste(picture, (left, top))
        ImageDraw.Draw(page).text((left + 2, top + height + 2), caption, INK, ImageFont.load_default(14))
    return page


def side_colour(joints: Skeleton, pair: list[int]) -> tuple[int, int, int]:
    """Of a limb: its side's, where only one of its joints has one that one's."""
    sides = {side_of(joints.joints[joint]) for joint in pair} - {"middle"}
    return SIDE_COLOURS[sides.pop() if len(sides) == 1 else "middle"]


# ---------------------------------------------------------------- drawing


class _Canvas:
    """A layer over a picture, drawn larger and reduced."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image.convert("RGB")
        self.layer = Image.new("RGBA", (image.width * SMOOTH, image.height * SMOOTH), (*OUTLINE, 0))
        self.pen = ImageDraw.Draw(self.layer)

    def line(self, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...], width: float) -> None:
        ends = [tuple((point * SMOOTH).tolist()) for point in (start, end)]
        self.pen.line(ends, fill=colour, width=max(1, round(width * SMOOTH)))

    def arrow(self, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...]) -> None:
        """A line with a head of a third of its length."""
        self.line(start, end, colour, 1)
        along = (end - start) / 3
        across = np.array([-along[1], along[0]]) / 2
        points = [end, end - along + across, end - along - across]
        self.pen.polygon([tuple((point * SMOOTH).tolist()) for point in points], fill=colour)

    def dot(self, place: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
        (x, y), r = place * SMOOTH, radius * SMOOTH
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255), outline=(*OUTLINE, 255))

    def done(self) -> Image.Image:
        layer = self.layer.reduce(SMOOTH)
        return Image.alpha_composite(self.image.convert("RGBA"), layer).convert("RGB")


def _dimmed(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image.convert("RGB"), np.float32) * DIMMED).astype(np.uint8))


def _enlarged(image: Image.Image) -> Image.Image:
    factor = SMALLEST / max(image.size)
    if factor <= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("steps.png"))
    arguments = parser.parse_args()
    image = Image.open(arguments.picture).convert("RGB")
    sheet(image, looker(arguments.folder)).save(arguments.out)


if __name__ == "__main__":
    main()
