"""Outlines against areas and pixels known by arithmetic; the mask of a scene against a mask drawn by hand."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from pose.data import masks
from pose.data.batch import IGNORE_STRIDE
from pose.data.scenes import mask_shape


def column_major_counts(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed code, written down from its definition: runs down the columns, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs


def test_polygons_and_both_codes_say_the_same() -> None:
    drawn = np.zeros((30, 50), np.uint8)
    drawn[5:20, 10:40] = 1
    polygon = [[10, 5, 40, 5, 40, 20, 10, 20]]
    counts = column_major_counts(drawn)
    text = rle.encode(np.asfortranarray(drawn))
    for outline in (polygon, {"size": [30, 50], "counts": counts}, text, text | {"counts": text["counts"].decode()}):
        code = masks.encode(outline, 50, 30)
        assert isinstance(code["counts"], str)
        np.testing.assert_array_equal(masks.decode(code), drawn.astype(bool))


def test_several_polygons_are_one_region() -> None:
    code = masks.encode([[0, 0, 10, 0, 10, 10, 0, 10], [20, 0, 30, 0, 30, 10, 20, 10]], 40, 20)
    assert int(masks.decode(code).sum()) == 200


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        ("polygon", "neither a list of polygons nor a run-length code"),
        ({"size": [20, 40]}, "neither"),
        ([[0, 0, 10, 0]], "three or more"),
        ([[0, 0, 10, 0, 10]], "three or more"),
        ([[0, 0, 10, 0, 10, float("nan")]], "no numbers"),
        ({"size": [40, 20], "counts": [800]}, r"of size \[40, 20\]"),
        ({"size": [20, 40], "counts": [800, 1]}, "do not add up to the image's 800 px"),
        ({"size": [20, 40], "counts": [-1, 801]}, "do not add up"),
        ({"size": [20, 40], "counts": "PP"}, "do not add up"),
        ({"size": [20, 40], "counts": "\n~"}, "no run-length code"),
        ({"size": [20, 40], "counts": 7}, "neither numbers nor text"),
    ],
)
def test_what_is_no_outline(outline: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        masks.encode(outline, 40, 20)


@pytest.mark.parametrize("stored", [(64, 48), (63, 41), (30, 100)])
def test_a_scenes_mask_covers_the_same_part_of_the_image(stored: tuple[int, int]) -> None:
    """A region in the right third of an image, whatever its stored size."""
    width, height = 300, 240
    code = masks.encode(masks.box_outline(np.array([200.0, 0, 300, 240])), width, height)
    cells = masks.ignored_cells([code], stored)
    assert cells.shape == mask_shape(stored)
    centres = (np.arange(cells.shape[1]) + 0.5) * IGNORE_STRIDE / stored[0]
    sure = np.abs(centres - 2 / 3) > IGNORE_STRIDE / stored[0]
    np.testing.assert_array_equal(cells[:, sure], np.broadcast_to(centres > 2 / 3, cells.shape)[:, sure])


def test_regions_add_up_and_none_is_none() -> None:
    picture = Image.new("L", (80, 80))
    pen = ImageDraw.Draw(picture)
    boxes = [(8, 8, 24, 32), (40, 0, 80, 16), (16, 24, 48, 64)]
    for x0, y0, x1, y1 in boxes:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), 1)
    codes = [masks.encode(masks.box_outline(np.array(box, float)), 80, 80) for box in boxes]
    expected = np.asarray(picture)[::IGNORE_STRIDE, ::IGNORE_STRIDE].astype(bool)
    np.testing.assert_array_equal(masks.ignored_cells(codes, (80, 80)), expected)
    assert not masks.ignored_cells([], (80, 80)).any()
