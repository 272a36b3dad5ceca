import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.config import AugmentParams, CropParams
from pose.data import preview, shards
from pose.skeleton import LSP14

SIZE = 64
GROUND = (40, 90, 60)
HIDDEN, UNLABELLED = LSP14.index("left_ankle"), LSP14.index("right_ankle")


def joints(number: int) -> np.ndarray:
    """[14, 2] crop px, on a grid wide enough that no mark covers another."""
    column, line = np.arange(14) % 4, np.arange(14) // 4
    return np.stack([10 + 14.0 * column, 8 + 14.0 * line], axis=1) + number % 3


def make_split(folder: Path, rows: int) -> shards.Split:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), GROUND).save(file, "JPEG", quality=95)
    visibility = np.full(14, 2)
    visibility[HIDDEN], visibility[UNLABELLED] = 1, 0

    def row(number: int) -> shards.Row:
        return shards.Row(
            jpeg=file.getvalue(),
            file_name=f"im{number}.jpg",
            image_id=number,
            annotation_id=number,
            image_size=(SIZE * 2, SIZE * 2),
            box=np.array([0.0, 0.0, 128.0, 128.0]),
            keypoints=joints(number) * 2,
            visibility=visibility,
            to_crop=np.array([[0.5, 0, 0], [0, 0.5, 0]]),
        )

    shards.write_shards(map(row, range(rows)), folder, "train", 20, LSP14, CropParams(view="image", size=SIZE))
    return shards.Split.open(folder, "train")


def pixel(page: Image.Image, n: int, point: np.ndarray) -> tuple[int, ...]:
    left, top = preview.tile_corner(n)
    x, y = point * preview.TILE / SIZE
    return page.getpixel((int(left + x), int(top + y)))


def near(colour: tuple[int, ...], other: tuple[int, ...], tolerance: int = 30) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= tolerance


def test_joints_are_drawn_where_they_are_and_as_they_are(tmp_path):
    split = make_split(tmp_path, rows=40)
    page = Image.open(preview.sheet(split, (32, 32), None, tmp_path / "sheet.png"))
    for n in (0, 1, 35):
        # 36 pictures, evenly over 40 rows, the last row last.
        points = joints(round(n * 39 / 35))
        for k, name in enumerate(LSP14.joints):
            if k not in (HIDDEN, UNLABELLED):
                assert near(pixel(page, n, points[k]), preview.SIDES[preview._side(name)]), (n, name)
        # Left ankle to left knee is a level line, so that above it a mark is alone.
        rim, inner = (np.array([0, -radius * SIZE / preview.TILE]) for radius in (preview.DOT, 2.5))
        knee = points[LSP14.index("left_knee")]
        assert near(pixel(page, n, points[HIDDEN] + rim), preview.SIDES["left"], 90)
        assert near(pixel(page, n, knee + inner), preview.SIDES["left"])
        assert not near(pixel(page, n, points[HIDDEN] + inner), preview.SIDES["left"], 90)
        assert near(pixel(page, n, points[UNLABELLED]), GROUND)


def test_a_line_of_the_sheet_is_one_sample_over_the_epochs(tmp_path):
    split = make_split(tmp_path, rows=9)
    path = tmp_path / "sheet.png"
    page = Image.open(preview.sheet(split, (32, 32), AugmentParams(rotate=40, flip=0.5), path))
    left, top = preview.tile_corner(preview.COLUMNS * preview.ROWS)
    assert page.size[1] == top
    tiles = []
    for n in range(preview.COLUMNS):
        left, top = preview.tile_corner(n)
        tiles.append(np.asarray(page.crop((left, top, left + preview.TILE, top + preview.TILE))).astype(int))
    assert near(pixel(page, 0, joints(0)[1]), preview.SIDES["right"])
    assert all(np.abs(tiles[0] - tile).max() > 60 for tile in tiles[1:])
    assert all(np.abs(a - b).max() > 60 for a, b in pairwise(tiles[1:]))


@pytest.mark.parametrize("augment", [None, AugmentParams(scale=0.1)])
def test_a_tiny_split_fills_a_smaller_sheet_and_the_same_bytes_twice(tmp_path, augment):
    split = make_split(tmp_path, rows=2)
    first = preview.sheet(split, (32, 32), augment, tmp_path / "a.png").read_bytes()
    assert first == preview.sheet(split, (32, 32), augment, tmp_path / "b.png").read_bytes()
    lines = 1 if augment is None else 2
    assert Image.open(tmp_path / "a.png").size[1] == preview.tile_corner(lines * preview.COLUMNS)[1]
