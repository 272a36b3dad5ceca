"""Regions where nothing is known: outlines as COCO writes them, and the mask that a scene carries of them.

An outline is a list of polygons [x0, y0, x1, y1, ...] in px, or a run-length code {size: [h, w], counts}, whose counts
are a list of numbers or COCO's compressed text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from pose.data.batch import IGNORE_STRIDE

COVERED = 0.5
"""Share of a cell that a region has to cover for the cell to be ignored."""


def encode(outline: Any, width: int, height: int) -> dict:
    """The compressed run-length code of an outline in an image of that size.

    Raises ValueError saying what is wrong with it, in words that follow the outline's name.
    """
    if isinstance(outline, list):
        return _from_polygons(outline, width, height)
    if not isinstance(outline, dict) or "counts" not in outline:
        raise ValueError("is neither a list of polygons nor a run-length code")
    if list(outline.get("size", ())) != [height, width]:
        raise ValueError(f"is of size {outline.get('size')}, the image's is {[height, width]} (height, width)")
    counts = outline["counts"]
    if isinstance(counts, (str, bytes)):
        text = counts if isinstance(counts, str) else counts.decode("ascii")
        code, runs = {"size": [height, width], "counts": text}, _runs(text)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        code, runs = None, counts
    else:
        raise ValueError("has counts that are neither numbers nor text")
    # pycocotools writes runs without looking where they end.
    if min(runs, default=-1) < 0 or sum(runs) != width * height:
        raise ValueError(f"has counts that do not add up to the image's {width * height} px")
    return code or _as_text(rle.frPyObjects(outline, height, width))


def _runs(text: str) -> list[int]:
    """The runs in COCO's compressed text: numbers of 5-bit digits, low first, from the fourth on as differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"is no run-length code: it has the character {character!r}")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (digit & 16) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else []


def _from_polygons(polygons: list, width: int, height: int) -> dict:
    whole = [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    if not whole or len(whole) < len(polygons):
        raise ValueError("has polygons that are not lists of three or more x, y")
    if not all(np.isfinite(np.asarray(polygon, np.float64)).all() for polygon in whole):
        raise ValueError("has polygons with coordinates that are no numbers")
    return _as_text(rle.merge(rle.frPyObjects(whole, height, width)))


def box_outline(box: np.ndarray) -> list[list[float]]:
    """The polygon of a box xyxy."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def decode(code: dict) -> np.ndarray:
    """[height, width] bool of a run-length code that `encode` made."""
    return rle.decode(code).astype(bool)


def ignored_cells(codes: Iterable[dict], stored: tuple[int, int]) -> np.ndarray:
    """The mask of a scene's ignored regions.

    codes: run-length codes in the original image; stored: width and height of the scene's stored image.
    Returns bool [h, w], cells of IGNORE_STRIDE stored px, true where regions cover at least COVERED of the cell's part
    of the image.
    """
    width, height = stored
    lines, columns = -(-height // IGNORE_STRIDE), -(-width // IGNORE_STRIDE)
    listed = list(codes)
    if not listed:
        return np.zeros((lines, columns), bool)
    whole = Image.fromarray(rle.decode(rle.merge(listed)) * np.uint8(255))
    covered = np.asarray(whole.resize(stored, Image.Resampling.BOX), np.float32) / 255
    return _cell_means(covered, lines, columns) >= COVERED


def _cell_means(values: np.ndarray, lines: int, columns: int) -> np.ndarray:
    """Means over IGNORE_STRIDE x IGNORE_STRIDE; a cell at the far edge has the mean of what is inside."""
    height, width = values.shape
    padding = ((0, lines * IGNORE_STRIDE - height), (0, columns * IGNORE_STRIDE - width))
    cells = (lines, IGNORE_STRIDE, columns, IGNORE_STRIDE)
    total = np.pad(values, padding).reshape(cells).sum(axis=(1, 3))
    inside = np.pad(np.ones_like(values), padding).reshape(cells).sum(axis=(1, 3))
    return total / inside


def _as_text(code: dict) -> dict:
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
