"""Crops: what of an image the person view sees, as an exact affine map and the antialiased pixels it leads to.

Maps are axis-aligned ([2, 3]: scale and shift), from continuous pixels of the original image to pixels of the crop.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from pose.config import CropParams

PADDING = (124, 116, 104)
"""RGB outside the image: ImageNet's mean, zero once normalised."""

ROUNDING = 1e-6
"""px: a crop's corner this close to a whole pixel is that pixel."""

MOST_PADDED = 2**26
"""px of a picture with its padding; a box that wants more sees the picture shrunk first."""


def crop_affine(params: CropParams, box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The map of one person's crop, [2, 3] float64, original px to crop px in [0, size]^2.

    box: xyxy in the original image; image_size: its width and height.
    View `image` squashes the whole image to the square, so that crop / size is (x / w, y / h); `person` keeps the
    aspect and takes the square around the box's centre, `margin` times its longer side wide.
    """
    if params.view == "image":
        scale = params.size / np.asarray(image_size, dtype=np.float64)
        corner = np.zeros(2)
    else:
        x0, y0, x1, y1 = (float(value) for value in box)
        side = params.margin * max(x1 - x0, y1 - y0)
        if side <= 0:
            raise ValueError(f"box {[x0, y0, x1, y1]} has no area; the audit leaves such people out")
        scale = np.full(2, params.size / side)
        corner = np.array([x0 + x1 - side, y0 + y1 - side]) / 2
    return np.column_stack([np.diag(scale), -scale * corner])


def invert(affine: np.ndarray) -> np.ndarray:
    """The inverse map(s), [..., 2, 3]."""
    linear = np.linalg.inv(affine[..., :2])
    return np.concatenate([linear, -linear @ affine[..., 2:]], axis=-1)


def transform(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [..., P, 2] under map(s) [..., 2, 3]."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def extract(image: Image.Image, affine: np.ndarray, size: int) -> Image.Image:
    """The RGB crop of size x size px under an axis-aligned map, antialiased, padded where it leaves the image."""
    if affine[0, 1] or affine[1, 0]:
        raise ValueError(f"crops are axis-aligned, this map is not: {affine.tolist()}")
    corners = _corners(affine, size)
    if (corners[0] >= 0).all() and (corners[1] <= image.size).all():
        return _resized(image, corners, size)
    low, high = _around(image, corners)
    if _too_large(low, high):
        low, high = _read(image, corners, size)
    if _too_large(low, high):
        image, affine = _shrunk(image, affine, 1.1 * math.sqrt(math.prod((high - low).tolist()) / MOST_PADDED))
        corners = _corners(affine, size)
        low, high = _read(image, corners, size)
        if _too_large(low, high):
            return Image.new("RGB", (size, size), PADDING)  # of the whole picture less than a pixel would show
    padded = Image.new("RGB", (int(high[0] - low[0]), int(high[1] - low[1])), PADDING)
    padded.paste(image, (int(-low[0]), int(-low[1])))
    return _resized(padded, corners - low, size)


def _corners(affine: np.ndarray, size: int) -> np.ndarray:
    """[2, 2]: where in the picture the crop begins and ends."""
    corners = transform(invert(affine), np.array([[0.0, 0.0], [size, size]]))
    whole = np.round(corners)
    return np.where(np.abs(corners - whole) < ROUNDING, whole, corners)


def _too_large(low: np.ndarray, high: np.ndarray) -> bool:
    return math.prod((high - low).tolist()) > MOST_PADDED


def _around(image: Image.Image, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high [2], whole px: the picture and the crop with these corners."""
    return np.minimum(np.floor(corners[0]), 0), np.maximum(np.ceil(corners[1]), image.size)


def _read(image: Image.Image, corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What of these px the filter reads for the crop."""
    low, high = _around(image, corners)
    support = np.maximum(1, (corners[1] - corners[0]) / size) + 1
    return np.maximum(low, np.floor(corners[0] - support)), np.minimum(high, np.ceil(corners[1] + support))


def _resized(image: Image.Image, corners: np.ndarray, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=tuple(corners.ravel().tolist()))


def _shrunk(image: Image.Image, affine: np.ndarray, factor: float) -> tuple[Image.Image, np.ndarray]:
    """The picture about `factor` times smaller, a pixel at least, and the map of its pixels to the same crop."""
    small = [max(1, int(side / factor)) for side in image.size]
    linear = affine[:, :2] @ np.diag(np.divide(image.size, small))
    return image.resize((small[0], small[1]), Image.Resampling.BOX), np.column_stack([linear, affine[:, 2]])
