"""What preview draws on a picture: joints and limbs, boxes, ignored regions, target maps. Sizes in px of the sheet."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from pose.skeleton import Skeleton

SMOOTH = 4
"""Lines are drawn this much larger and reduced, which antialiases them."""
SIDES = {"left": (64, 156, 255), "right": (255, 138, 48), "middle": (250, 235, 120)}
"""RGB by the person's own side."""
OUTLINE = (16, 16, 20)
BOX, IGNORED, TARGET = (240, 240, 240), (230, 40, 60), (255, 40, 200)
LINE, DOT = 2.5, 4.5
"""Width of a limb, radius of a joint."""
SMALL = 0.45
"""Both are this much smaller where targets are to be seen beneath, or many people."""


def layer(side: int) -> Image.Image:
    """A transparent picture to draw on, SMOOTH times as large as a tile."""
    return Image.new("RGBA", (side * SMOOTH, side * SMOOTH), (*OUTLINE, 0))


def laid_over(picture: Image.Image, drawn: Image.Image) -> Image.Image:
    """The RGB picture under a layer."""
    return Image.alpha_composite(picture.convert("RGBA"), drawn.reduce(SMOOTH)).convert("RGB")


def draw_person(
    pen: ImageDraw.ImageDraw,
    points: np.ndarray,
    labelled: np.ndarray,
    visible: np.ndarray,
    skeleton: Skeleton,
    size: float = 1.0,
) -> None:
    """Limbs between labelled joints [K, 2]; visible joints filled, hidden ones open."""
    points = points * SMOOTH
    for a, b in skeleton.limb_indices:
        if labelled[a] and labelled[b]:
            colour = SIDES[side(skeleton.joints[a], skeleton.joints[b])]
            width = max(1, round(LINE * SMOOTH * size))
            pen.line([tuple(points[a]), tuple(points[b])], (*colour, 200), width)
    for k in np.flatnonzero(labelled):
        draw_joint(pen, points[k], SIDES[side(skeleton.joints[k])], bool(visible[k]), size)


def draw_joint(
    pen: ImageDraw.ImageDraw, point: np.ndarray, colour: tuple[int, int, int], filled: bool, size: float = 1.0
) -> None:
    """One joint at a point [2] of the layer."""

    def circle(radius: float) -> tuple[float, float, float, float]:
        x, y, r = float(point[0]), float(point[1]), radius * SMOOTH * size
        return (x - r, y - r, x + r, y + r)

    if filled:
        pen.ellipse(circle(DOT + 1), (*OUTLINE, 255))
        pen.ellipse(circle(DOT), (*colour, 255))
    else:
        pen.ellipse(circle(DOT + 1), (0, 0, 0, 0), (*OUTLINE, 255), round(3 * SMOOTH * size))
        pen.ellipse(circle(DOT + 0.5), None, (*colour, 255), round(1.5 * SMOOTH * size))


def draw_box(pen: ImageDraw.ImageDraw, box: np.ndarray) -> None:
    """The outline of a box [4] xyxy."""
    # Pillow draws the outline's width inwards.
    for colour, width in ((OUTLINE, 3), (BOX, 1.5)):
        outward = np.array([-1, -1, 1, 1]) * width / 2
        pen.rectangle(((box + outward) * SMOOTH).tolist(), None, (*colour, 255), round(width * SMOOTH))


def tinted(
    picture: Image.Image, values: np.ndarray, size: tuple[int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """The picture with a colour over it as strong as `values` [h, w] in [0, 1], whose cells fill `size` at its top
    left; a whole one hides three quarters of what is beneath.
    """
    cells = Image.fromarray(np.round(191 * values.clip(0, 1)).astype(np.uint8))
    mask = Image.new("L", picture.size, 0)
    mask.paste(cells.resize(size, Image.Resampling.NEAREST))
    return Image.composite(Image.new("RGB", picture.size, colour), picture, mask)


def side(*joints: str) -> str:
    """Left or right where all these joints are on that side of the person."""
    sides = {joint.split("_", 1)[0] for joint in joints}
    name = sides.pop() if len(sides) == 1 else "middle"
    return name if name in SIDES else "middle"
