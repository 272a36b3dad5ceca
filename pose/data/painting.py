"""A canvas that remembers who owns each pixel, and dressed people painted on it from far to near.

Everything is a signed distance to a shape, so that edges are smooth without drawing larger and shrinking.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from pose.data.figures import HEAD_RADII, Person
from pose.data.scenery import random_colour

Pattern = Literal["plain", "hoops", "stripes", "checks", "dots"]
PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "plain", "hoops", "stripes", "checks", "dots")
PARTS = (
    "torso", "neck", "head",
    *(f"{side}_{part}" for side in ("left", "right")
      for part in ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")),
)  # fmt: skip
"""What a body is painted of; a pixel's owner is a person's first number plus an index into this."""
PARTS_PER_PERSON = 32
SHADOW = 0.35
"""How much a part darkens what lies right behind its edge."""
AMBIENT = 0.45
LIPS = np.array([150, 40, 45], np.float32)[:, None, None]


@dataclass(frozen=True)
class Cloth:
    """A surface. Colours are [3, 1, 1] float32 in 0..255; the pattern's period is a share of the person's stature."""

    colour: np.ndarray
    second: np.ndarray
    pattern: Pattern = "plain"
    period: float = 0.05
    rough: float = 0.06


@dataclass(frozen=True)
class Window:
    """The pixels around one shape, in the shape's own axes."""

    rows: slice
    columns: slice
    along: np.ndarray
    """[h, w] px from the shape's first end towards its second."""
    across: np.ndarray
    """[h, w] px from its axis, positive clockwise of the way to the second end."""


class Canvas:
    """Image [3, H, W] float32 in 0..255 and owner [H, W] int16, 0 where nobody's."""

    def __init__(self, background: np.ndarray, light: np.ndarray, grain: np.ndarray) -> None:
        """light: [3] towards the lamp (x right, y down, z away); grain: [H, W] noise of about unit variance."""
        self.image = background
        self.owner: np.ndarray = np.zeros(background.shape[1:], np.int16)
        self.light = light.astype(np.float32)
        self.grain = grain

    def window(self, a: np.ndarray, b: np.ndarray, reach: float) -> Window | None:
        """Pixels within `reach` of the segment a-b and its axes; None where it is outside the image."""
        height, width = self.owner.shape
        (ax, ay), (bx, by) = a.tolist(), b.tolist()
        x0, x1 = max(int(min(ax, bx) - reach), 0), min(int(max(ax, bx) + reach) + 1, width)
        y0, y1 = max(int(min(ay, by) - reach), 0), min(int(max(ay, by) + reach) + 1, height)
        if x0 >= x1 or y0 >= y1:
            return None
        length = max(math.hypot(bx - ax, by - ay), 1e-3)
        ux, uy = (bx - ax) / length, (by - ay) / length
        x = np.arange(x0, x1, dtype=np.float32) + (0.5 - ax)
        y = np.arange(y0, y1, dtype=np.float32)[:, None] + (0.5 - ay)
        along = x * ux + y * uy
        across = y * ux - x * uy
        return Window(slice(y0, y1), slice(x0, x1), along, across)

    def slab(
        self,
        owner: int,
        ends: tuple[np.ndarray, np.ndarray],
        widths: tuple[float, float],
        cloth: Cloth,
        unit: float,
        corner: float = 1.0,
        front: np.ndarray | None = None,
    ) -> None:
        """A tapered limb or trunk from ends[0] to ends[1], px.

        widths: half-widths at the ends. corner: 1 rounds it to a capsule, less makes it boxy. unit: px of the person's
        stature, for patterns. front: [3] forward axis of a chest; its front gets a fastening, its back a panel.
        """
        a, b = ends
        reach = max(widths) + 0.025 * unit + 2
        window = self.window(a, b, reach)
        if window is None:
            return
        length = max(math.dist(a, b), 1e-3)
        share = _clipped(window.along / length)
        half = widths[0] + (widths[1] - widths[0]) * share
        side = np.maximum(np.abs(window.across) - half * (1 - corner), 0)
        end = window.along - share * length
        distance = np.sqrt(side * side + end * end) - half * corner
        normal = np.minimum(np.maximum(window.across / half, -1), 1)
        colour = _patterned(cloth, window.along / unit, normal, sum(widths) / 2 / unit)
        perpendicular = np.array([a[1] - b[1], b[0] - a[0]]) / length
        if front is not None:
            colour = _marked(colour, cloth, share, normal, float(front[:2] @ perpendicular), front[2] < 0)
        depth = np.sqrt(1.0 - 0.95 * normal * normal)
        shade = AMBIENT + (1 - AMBIENT) * np.maximum(
            normal * float(self.light[:2] @ perpendicular) - depth * float(self.light[2]), 0
        )
        self._blend(owner, window, distance, colour * shade, cloth.rough, 0.012 * unit)

    def head(
        self, owner: int, centre: np.ndarray, frame: np.ndarray, radii: tuple[float, float], skin: Cloth, hair: Cloth
    ) -> None:
        """An ellipsoid with hair, eyes and mouth, seen as its frame (left, up, forward rows) turns it. radii in px."""
        up = frame[1, :2]
        steep = float(np.hypot(*up))
        direction = up / steep if steep > 1e-3 else np.array([0.0, -1.0])
        tall = radii[0] + (radii[1] - radii[0]) * steep
        window = self.window(centre[:2], centre[:2] + direction, max(radii) + 3)
        if window is None:
            return
        normal = _ellipsoid(window, direction, radii[0], tall)
        left, above, ahead = np.tensordot(frame.astype(np.float32), normal, axes=1)
        distance = (np.hypot(window.along / tall, window.across / radii[0]) - 1) * radii[0]
        hairy = _clipped(4 * np.maximum(above - 0.45, -0.1 - ahead + 0.3 * above) + 0.5)
        colour = skin.colour + (hair.colour - skin.colour) * hairy
        eyes = np.exp(-(((np.abs(left) - 0.38) ** 2) + (above - 0.12) ** 2) / 0.02) * (ahead > 0)
        mouth = np.exp(-(left**2 / 0.08 + (above + 0.5) ** 2 / 0.012)) * (ahead > 0)
        nose = np.exp(-(left**2 / 0.012 + (above + 0.1) ** 2 / 0.05)) * (ahead > 0)
        colour = colour * (1 - 0.85 * eyes - 0.25 * nose)
        colour = colour + (LIPS - colour) * (0.7 * mouth)
        shade = AMBIENT + (1 - AMBIENT) * np.maximum(np.tensordot(self.light, normal, axes=1), 0)
        self._blend(owner, window, distance, colour * shade, skin.rough, 0.15 * radii[0])

    def _blend(
        self, owner: int, window: Window, distance: np.ndarray, colour: np.ndarray, rough: float, shadow: float
    ) -> None:
        """Lays colour [3, h, w] where distance [h, w] px is negative: a smooth edge, a shadow on parts behind it."""
        under = self.image[:, window.rows, window.columns]
        owners = self.owner[window.rows, window.columns]
        cover = _clipped(0.5 - distance)
        keep = 1 - cover
        if owners.any():
            keep *= 1 - SHADOW * _clipped(1 - distance / (2 * shadow + 1)) * (owners > 0)
        under *= keep
        under += colour * (cover * (1 + rough * self.grain[window.rows, window.columns]))
        owners[distance < 0] = owner


def _clipped(values: np.ndarray) -> np.ndarray:
    """Values held to 0..1. On arrays this small np.clip's own overhead would be half of the drawing."""
    return np.minimum(np.maximum(values, 0), 1)


def _ellipsoid(window: Window, direction: np.ndarray, wide: float, tall: float) -> np.ndarray:
    """[3, h, w] unit normals (x right, y down, z away) of an ellipsoid whose long axis is `direction` [2]."""
    dx, dy = float(direction[0]), float(direction[1])
    along, across = window.along / tall, window.across / wide
    depth = np.sqrt(np.maximum(1 - along * along - across * across, 0))
    return np.stack([along * dx - across * dy, along * dy + across * dx, -depth])


def _patterned(cloth: Cloth, along: np.ndarray, normal: np.ndarray, half: float) -> np.ndarray:
    """[3, h, w], or [3, 1, 1] where plain: colour at `along` (statures), `normal` (-1..1 over `half` statures)."""
    if cloth.pattern == "plain":
        return cloth.colour
    turns = 2 * np.pi / cloth.period
    hoops = np.sin(along * turns)
    if cloth.pattern == "hoops":
        wave = hoops
    else:
        stripes = np.sin(np.arcsin(normal) * half * turns)
        if cloth.pattern == "stripes":
            wave = stripes
        elif cloth.pattern == "checks":
            wave = hoops * stripes
        else:
            wave = hoops * np.cos(np.arcsin(normal) * half * turns) - 0.3
    mix = _clipped(2.5 * wave + 0.5)
    return cloth.colour + (cloth.second - cloth.colour) * mix


def _marked(
    colour: np.ndarray, cloth: Cloth, share: np.ndarray, normal: np.ndarray, sideways: float, is_front: bool
) -> np.ndarray:
    """A chest's fastening down its front, or a panel on its back, where the body's turn puts it."""
    if is_front:
        mark = (np.abs(normal - sideways) < 0.09) | ((np.abs(normal - sideways) < 0.4 - 2.5 * share) & (share < 0.16))
    else:
        mark = (np.abs(normal + sideways) < 0.45) & (share > 0.2) & (share < 0.6)
    contrast = 255.0 - cloth.colour if is_front else cloth.second
    return np.where(mark, contrast, colour)


# ---------------------------------------------------------------- dressing and painting


def random_cloth(rng: np.random.Generator) -> Cloth:
    """Two colours, a pattern (plain in three of seven), a period and a roughness."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    vivid = rng.uniform(0.2, 1)
    return Cloth(
        random_colour(rng, vivid),
        random_colour(rng, vivid),
        pattern,
        float(rng.uniform(0.03, 0.09)),
        float(rng.uniform(0, 0.1)),
    )


def _skin(rng: np.random.Generator) -> Cloth:
    tone = np.array([236, 188, 150]) + rng.uniform(0, 1) * np.array([-170, -140, -115])
    colour = (tone + rng.normal(0, 6, 3)).astype(np.float32)[:, None, None]
    return Cloth(colour, colour, rough=0.03)


def paint_person(rng: np.random.Generator, canvas: Canvas, person: Person, first_owner: int) -> None:
    """Dresses a person and paints the parts from the farthest to the nearest."""
    skin, shirt, trousers, shoes = _skin(rng), random_cloth(rng), random_cloth(rng), random_cloth(rng)
    shade = float(rng.uniform(10, 200)) * np.array([1.0, rng.uniform(0.6, 1), rng.uniform(0.3, 1)])
    hair = Cloth(shade.astype(np.float32)[:, None, None], shade.astype(np.float32)[:, None, None])
    sleeve, leg = (shirt if rng.random() < 0.55 else skin), (trousers if rng.random() < 0.6 else skin)
    build = float(rng.uniform(0.85, 1.25))
    points = person.figure.points

    def limb(name: str, start: str, end: str, widths: tuple[float, float], cloth: Cloth, nearer: float = 0.0) -> None:
        depth = (points[start][2] + points[end][2]) / 2 - nearer
        scaled = (widths[0] * build * person.unit, widths[1] * build * person.unit)
        ends = (person.pixel(start), person.pixel(end))
        owner = first_owner + PARTS.index(name)
        jobs.append((depth, partial(canvas.slab, owner, ends, scaled, cloth, person.unit)))

    jobs: list[tuple[float, partial[None]]] = []
    for side in ("left", "right"):
        limb(f"{side}_upper_arm", f"{side}_shoulder", f"{side}_elbow", (0.04, 0.032), shirt, 0.03)
        limb(f"{side}_forearm", f"{side}_elbow", f"{side}_wrist", (0.031, 0.022), sleeve, 0.035)
        limb(f"{side}_hand", f"{side}_wrist", f"{side}_hand", (0.021, 0.024), skin, 0.034)
        limb(f"{side}_thigh", f"{side}_hip", f"{side}_knee", (0.062, 0.045), trousers)
        limb(f"{side}_shin", f"{side}_knee", f"{side}_ankle", (0.043, 0.028), leg, 0.005)
        limb(f"{side}_foot", f"{side}_ankle", f"{side}_toe", (0.032, 0.024), shoes, 0.01)
    limb("neck", "neck", "head_centre", (0.034, 0.032), skin)
    jobs.append((person.trunk_depth, partial(_torso, canvas, person, first_owner, shirt, build)))
    centre, radii = person.pixel("head_centre"), (HEAD_RADII[0] * person.unit, HEAD_RADII[1] * person.unit)
    head = partial(canvas.head, first_owner + PARTS.index("head"), centre, person.figure.head, radii, skin, hair)
    jobs.append((float(points["head_centre"][2]) - 0.02, head))
    for _, job in sorted(jobs, key=lambda entry: -entry[0]):
        job()


def _torso(canvas: Canvas, person: Person, first_owner: int, shirt: Cloth, build: float) -> None:
    """A boxy slab from the collar to the seat, as wide as shoulders and hips look from the camera."""
    points, unit = person.figure.points, person.unit
    top, seat = person.pixel("neck"), person.pixel("pelvis")
    axis = (seat - top) / max(float(np.hypot(*(seat - top))), 1e-3)
    across = np.array([-axis[1], axis[0]])

    def half_width(joint: str, flesh: float, thickness: float) -> float:
        apart = (points[f"left_{joint}"] - points[f"right_{joint}"])[:2] / 2
        return unit * max(abs(float(apart @ across)) + flesh * build, thickness * build)

    widths = (half_width("shoulder", 0.025, 0.075), half_width("hip", 0.045, 0.075))
    ends = (top + axis * 0.055 * unit, seat)
    canvas.slab(
        first_owner + PARTS.index("torso"), ends, widths, shirt, unit, corner=0.55, front=person.figure.chest[2]
    )
