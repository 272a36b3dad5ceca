"""Random places for synthetic people to stand in, and what a camera does to them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def random_colour(rng: np.random.Generator, low: int = 20, high: int = 235) -> np.ndarray:
    """[3] float32 in low..high."""
    return rng.uniform(low, high, 3).astype(np.float32)


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[H, W, 3] float32 in 0..255: a gradient or a ground and a sky, blotches, and things without a body."""
    image = Image.fromarray(_ground(rng, width, height))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 14)):
        _thing(rng, pen, width, height)
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(float(rng.uniform(0.3, 0.02 * min(width, height)))))
    return np.asarray(image, dtype=np.float32)


def _ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[H, W, 3] uint8: two colours that meet along a line, softly or sharply, under cloudy unevenness."""
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else np.pi / 2 + rng.normal(0, 0.06)
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    y = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    ramp = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + np.float32(rng.uniform(-0.3, 0.3))
    mix = np.clip(ramp * np.float32(rng.choice([1.0, 3.0, 60.0])) + 0.5, 0, 1)
    one, other = random_colour(rng), random_colour(rng)
    cells = int(rng.integers(3, 12))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    scene = one + (other - one) * mix[..., None]
    scene += (clouds - 128) * np.float32(rng.uniform(0.05, 0.5))
    return np.clip(scene, 0, 255).astype(np.uint8)


def _thing(rng: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """One ellipse, polygon, box, or bundle of parallel bars."""
    fill = tuple(int(c) for c in random_colour(rng))
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
    """The finished picture [H, W, 3] through a camera: brightness, tint, falling-off corners, sensor noise."""
    height, width = grain.shape
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    y = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    gain = np.float32(rng.uniform(0.65, 1.25)) * (1 - np.float32(rng.uniform(0, 0.8)) * (x * x + y * y))
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    noise = grain[::-1, ::-1] * np.float32(rng.uniform(1, 7))
    return Image.fromarray(np.clip(image * gain[..., None] * tint + noise[..., None], 0, 255).astype(np.uint8))
