"""People drawn over their picture: left, right and middle in colours of their own, absent joints faint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from pose.people import People
from pose.skeleton import Skeleton

SIDE_COLOURS = {"left": (64, 156, 255), "right": (255, 138, 48), "middle": (236, 236, 120)}
"""RGB by the person's own side. The pair blue and orange stays apart for the colour-blind."""
OUTLINE = (16, 16, 20)
PRESENT = 0.5
"""Presence below which a joint is drawn faint."""
FAINT, STRONG = 95, 255
"""Opacity of what is probably hidden, and of what is visible."""
SMALLEST_SIDE = 320
"""Smaller pictures are enlarged to this longer side: a limb needs a few pixels to be read."""
SUPERSAMPLED_SIDE = 2400
"""Lines are drawn at up to this longer side and reduced, which antialiases them."""


@dataclass(frozen=True)
class _Pen:
    """Where a layer is drawn: its drawing, and pixels of the layer per pixel of the original."""

    draw: ImageDraw.ImageDraw
    scale: float

    def limb(self, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...], width: float) -> None:
        ends = [tuple(start * self.scale), tuple(end * self.scale)]
        self.draw.line(ends, fill=colour, width=max(1, round(width)))
        for x, y in ends:
            self.dot(x, y, width / 2, colour)

    def dot(self, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def overlay(image: Image.Image, people: People, skeleton: Skeleton) -> Image.Image:
    """The RGB picture with every person of `people` (all taken to be in it) drawn on top.

    A picture whose longer side is under 320 px comes back enlarged to that side.
    """
    enlarge = max(1.0, SMALLEST_SIDE / max(image.size))
    size = (round(image.width * enlarge), round(image.height * enlarge))
    base = image.convert("RGB")
    if size != base.size:
        base = base.resize(size, Image.Resampling.BICUBIC)
    factor = max(1, min(4, SUPERSAMPLED_SIDE // max(size)))
    layer = Image.new("RGBA", (size[0] * factor, size[1] * factor), (*OUTLINE, 0))
    pen = _Pen(ImageDraw.Draw(layer), enlarge * factor)
    for n in range(len(people)):
        # At least 1.5 px of the finished picture, whatever its size.
        width = max(1.5 * factor, 0.018 * _extent(people, n) * pen.scale)
        _person(pen, people, n, skeleton, width)
    if factor > 1:
        layer = layer.reduce(factor)
    return Image.alpha_composite(base.convert("RGBA"), layer).convert("RGB")


def side_of(joint: str) -> str:
    """Which side of the person a joint's name says: left, right or middle."""
    side = joint.split("_", 1)[0]
    return side if side in ("left", "right") else "middle"


def _extent(people: People, n: int) -> float:
    """Longer side of the box around a person's joints, in pixels."""
    points = people.keypoints[n][people.labelled[n]]
    return float(np.ptp(points, axis=0).max()) if len(points) else 0.0


def _person(pen: _Pen, people: People, n: int, skeleton: Skeleton, width: float) -> None:
    points = people.keypoints[n].astype(float)
    drawn = people.labelled[n] & np.isfinite(points).all(axis=1)
    present = drawn & (people.presence[n] >= PRESENT)
    sides = [side_of(joint) for joint in skeleton.joints]
    limbs = [(a, b) for a, b in skeleton.limb_indices.tolist() if drawn[a] and drawn[b]]
    # Faint ones first, so that what is visible lies on top.
    for a, b in sorted(limbs, key=lambda limb: bool(present[limb[0]] and present[limb[1]])):
        opacity = STRONG if present[a] and present[b] else FAINT
        side = sides[a] if sides[a] == sides[b] else _outer(sides[a], sides[b])
        pen.limb(points[a], points[b], (*OUTLINE, opacity), width * 1.6)
        pen.limb(points[a], points[b], (*SIDE_COLOURS[side], opacity), width)
    for k in sorted(np.flatnonzero(drawn).tolist(), key=lambda k: bool(present[k])):
        opacity = STRONG if present[k] else FAINT
        x, y = points[k] * pen.scale
        pen.dot(x, y, width * 1.15, (*OUTLINE, opacity))
        pen.dot(x, y, width * 0.8, (*SIDE_COLOURS[sides[k]], opacity))


def _outer(first: str, second: str) -> str:
    """The colour of a limb between two sides: neck to left shoulder is left, hip to hip is middle."""
    sides = {first, second} - {"middle"}
    return sides.pop() if len(sides) == 1 else "middle"
