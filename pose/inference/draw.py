"""People drawn over their picture: left, right and middle in colours of their own, what is unsure faint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pose.people import People
from pose.skeleton import Skeleton

SIDE_COLOURS = {"left": (64, 156, 255), "right": (255, 138, 48), "middle": (236, 236, 120)}
"""RGB by the person's own side. The pair blue and orange stays apart for the colour-blind."""
OUTLINE = (16, 16, 20)
BOX = (240, 240, 240)
FAINT, STRONG = 85, 255
"""Opacity of a joint that is probably hidden or misplaced, and of one that is sure."""
UNSURE, SURE = 0.1, 0.6
"""Confidences at which a joint is as faint, and as strong, as joints get; between them its opacity is linear."""
SMALLEST_SIDE = 320
"""Smaller pictures are enlarged to this longer side: a limb needs a few pixels to be read."""
SUPERSAMPLED_SIDE = 2400
"""People are drawn at up to this longer side and reduced, which antialiases them; twice it at the most."""
WIDTH = 0.018
"""Of a limb, as a share of the person's extent."""
NARROWEST = 1.5
"""px of the finished picture."""
FARTHEST = 8.0
"""Joints are drawn at most this many picture sides outside: numbers beyond it mean nothing and cost time."""


@dataclass(frozen=True)
class _Pen:
    """Where a layer is drawn: its drawing, its corner in the picture, and its pixels per pixel of the picture."""

    draw: ImageDraw.ImageDraw
    corner: np.ndarray
    scale: float

    def limb(self, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...], width: float) -> None:
        ends = [tuple((point - self.corner) * self.scale) for point in (start, end)]
        self.draw.line(ends, fill=colour, width=max(1, round(width * self.scale)))
        for point in (start, end):
            self.dot(point, width / 2, colour)

    def dot(self, point: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
        (x, y), r = (point - self.corner) * self.scale, radius * self.scale
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def overlay(
    image: Image.Image, people: People, skeleton: Skeleton, *, boxes: bool = False, scores: bool = False
) -> Image.Image:
    """The RGB picture with every person of `people` (all taken to be in it) drawn on top, small ones last.

    boxes, scores: also each person's box, and the person score beside it. A picture whose longer side is under 320 px
    comes back enlarged to that side.
    """
    enlarge = max(1.0, SMALLEST_SIDE / max(image.size))
    size = (round(image.width * enlarge), round(image.height * enlarge))
    base = image.convert("RGB")
    if size != base.size:
        base = base.resize(size, Image.Resampling.BICUBIC)
    elif base is image:
        base = image.copy()
    limit = FARTHEST * max(size)
    points = np.clip(people.keypoints.astype(np.float64) * enlarge, -limit, limit)
    extents = np.array([_extent(points[n], people.labelled[n], size) for n in range(len(people))])
    for n in np.argsort(-extents, kind="stable").tolist():
        width = max(NARROWEST, WIDTH * extents[n])
        if boxes or scores:
            _label(base, people.boxes[n].astype(float) * enlarge, float(people.person_scores[n]), boxes, scores)
        _person(base, points[n], people.labelled[n], confidence(people, n), skeleton, width)
    return base


def side_of(joint: str) -> str:
    """Which side of the person a joint's name says: left, right or middle."""
    side = joint.split("_", 1)[0]
    return side if side in ("left", "right") else "middle"


def confidence(people: People, n: int) -> np.ndarray:
    """[K] in [0, 1]: how much a joint of person n is to be trusted, in its position and in being visible at all."""
    return np.minimum(people.scores[n], people.presence[n])


def _extent(points: np.ndarray, drawn: np.ndarray, size: tuple[int, int]) -> float:
    """Longer side of the box around a person's joints within the picture, in pixels."""
    inside = np.clip(points[drawn & np.isfinite(points).all(axis=1)], 0, size)
    return float(np.ptp(inside, axis=0).max()) if len(inside) else 0.0


def _person(
    base: Image.Image, points: np.ndarray, drawn: np.ndarray, sure: np.ndarray, skeleton: Skeleton, width: float
) -> None:
    """Draws into `base`; only the person's own part of the picture is touched, so that a crowd costs little."""
    drawn = drawn & np.isfinite(points).all(axis=1)
    if not drawn.any():
        return
    low = np.maximum(np.floor(points[drawn].min(axis=0) - 2 * width), 0).astype(int)
    high = np.minimum(np.ceil(points[drawn].max(axis=0) + 2 * width), base.size).astype(int)
    if (high <= low).any():
        return
    side = int((high - low).max())
    factor = 1 if side > SUPERSAMPLED_SIDE else int(np.clip(SUPERSAMPLED_SIDE // side, 2, 4))
    layer = Image.new("RGBA", tuple(((high - low) * factor).tolist()), (*OUTLINE, 0))
    _skeleton(_Pen(ImageDraw.Draw(layer), low, factor), points, drawn, sure, skeleton, width)
    region = (*low.tolist(), *high.tolist())
    part = base.crop(region).convert("RGBA")
    base.paste(Image.alpha_composite(part, layer.reduce(factor) if factor > 1 else layer).convert("RGB"), region)


def _skeleton(
    pen: _Pen, points: np.ndarray, drawn: np.ndarray, sure: np.ndarray, skeleton: Skeleton, width: float
) -> None:
    sides = [side_of(joint) for joint in skeleton.joints]
    strength = np.clip((sure - UNSURE) / (SURE - UNSURE), 0, 1)
    opacity = np.round(FAINT + (STRONG - FAINT) * np.nan_to_num(strength)).astype(int)
    limbs = [(a, b) for a, b in skeleton.limb_indices.tolist() if drawn[a] and drawn[b]]
    # Faint ones first, so that what is sure lies on top.
    for a, b in sorted(limbs, key=lambda limb: min(opacity[limb[0]], opacity[limb[1]])):
        alpha = int(min(opacity[a], opacity[b]))
        side = sides[a] if sides[a] == sides[b] else _outer(sides[a], sides[b])
        pen.limb(points[a], points[b], (*OUTLINE, alpha), width * 1.6)
        pen.limb(points[a], points[b], (*SIDE_COLOURS[side], alpha), width)
    for k in sorted(np.flatnonzero(drawn).tolist(), key=lambda k: opacity[k]):
        alpha = int(opacity[k])
        pen.dot(points[k], width * 1.15, (*OUTLINE, alpha))
        pen.dot(points[k], width * 0.8, (*SIDE_COLOURS[sides[k]], alpha))


def _outer(first: str, second: str) -> str:
    """The colour of a limb between two sides: neck to left shoulder is left, hip to hip is middle."""
    sides = {first, second} - {"middle"}
    return sides.pop() if len(sides) == 1 else "middle"


def _label(base: Image.Image, box: np.ndarray, score: float, outline: bool, text: bool) -> None:
    """The box, and the score on a dark plate at its top left corner, kept within the picture."""
    if not np.isfinite(box).all() or (box[2:] <= 0).any() or (box[:2] >= base.size).any():
        return
    draw = ImageDraw.Draw(base)
    last = np.array(base.size) - 1
    (x0, y0), (x1, y1) = np.clip(box[:2], 0, last), np.clip(box[2:] - 1, 0, last)
    if x1 < x0 or y1 < y0:
        return
    thick = max(1, round(0.004 * float(np.ptp([[x0, y0], [x1, y1]], axis=0).max())))
    if outline:
        draw.rectangle((x0, y0, x1, y1), outline=OUTLINE, width=thick + 2)
        draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1) if min(x1 - x0, y1 - y0) > 4 else (x0, y0, x1, y1),
                       outline=BOX, width=thick)  # fmt: skip
    if text:
        font = ImageFont.load_default(float(np.clip(0.06 * (y1 - y0), 11, 30)))
        left, top, right, bottom = draw.textbbox((0, 0), words := f"{score:.2f}", font=font)
        width, height = right - left + 6, bottom - top + 6
        x, y = min(x0, max(0, last[0] - width)), y0 - height if y0 >= height else y0
        draw.rectangle((x, y, x + width, y + height), fill=OUTLINE)
        draw.text((x + 3 - left, y + 3 - top), words, font=font, fill=BOX)
