"""Random places for synthetic people to stand in, and what a camera does to them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def random_colour(rng: np.random.Generator, vivid: float = 1.0) -> np.ndarray:
    """[3, 1, 1] float32 in 15..240: grey at vivid 0, any colour at 1."""
    colour = rng.uniform(15, 240, 3)
    grey = colour.sum() / 3
    return (grey + vivid * (colour - grey)).astype(np.float32)[:, None, None]


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[3, H, W] float32 in 0..255: a gradient or a ground and a sky, blotches, and things without a body."""
    image = _ground(rng, width, height)
    pen = ImageDraw.Draw(image)
    vivid = rng.uniform(0, 1)
    for _ in range(rng.integers(1, 10)):
        _thing(rng, pen, width, height, vivid)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 0.02 * min(width, height)))))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)


def _ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Two colours that meet along a line, softly or sharply, under cloudy unevenness."""
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else np.pi / 2 + rng.normal(0, 0.06)
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    y = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    ramp = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + np.float32(rng.uniform(-0.3, 0.3))
    mix = np.clip(ramp * np.float32(rng.choice([1.0, 3.0, 60.0])) + 0.5, 0, 1)
    vivid = rng.uniform(0, 0.9)
    one, other = random_colour(rng, vivid), random_colour(rng, vivid)
    cells = int(rng.integers(3, 12))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    scene = (one + (other - one) * mix).transpose(1, 2, 0).astype(np.uint8)
    clouds = coarse.resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(Image.fromarray(scene), clouds, rng.uniform(0.03, 0.3))


def _thing(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int, vivid: float) -> None:
    """One ellipse, polygon, box, or bundle of parallel bars."""
    fill = tuple(random_colour(rng, vivid).astype(int).ravel().tolist())
    size = min(width, height)
    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    rx, ry = rng.uniform(0.03, 0.28, 2) * size
    kind = rng.integers(4)
    if kind == 0:
        pen.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        pen.polygon([(cx + rx * np.cos(a), cy + ry * np.sin(a)) for a in angles], fill=fill)
    elif kind == 2:
        pen.rectangle((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)
    else:
        angle, gap = rng.uniform(0, np.pi), rng.uniform(0.05, 0.15) * size
        dx, dy = np.cos(angle) * size, np.sin(angle) * size
        for k in range(int(rng.integers(1, 6))):
            ox, oy = cx - np.sin(angle) * gap * k, cy + np.cos(angle) * gap * k
            pen.line((ox - dx, oy - dy, ox + dx, oy + dy), fill=fill, width=max(1, int(0.02 * size)))


def lamp(rng: np.random.Generator) -> np.ndarray:
    """[3] unit vector towards the light: from above more often than not, and from the camera's side."""
    direction = np.array([rng.normal(0, 0.6), rng.normal(-0.5, 0.4), -1.0])
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def expose(rng: np.random.Generator, image: np.ndarray, grain: np.ndarray) -> Image.Image:
    """The finished picture [3, H, W] through a camera: brightness, tint, falling-off corners, sensor noise."""
    height, width = grain.shape
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    y = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    gain = np.float32(rng.uniform(0.65, 1.25)) * (1 - np.float32(rng.uniform(0, 0.8)) * (x * x + y * y))
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)[:, None, None]
    exposed = image * gain * tint + grain[::-1, ::-1] * np.float32(rng.uniform(1, 6))
    return Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
