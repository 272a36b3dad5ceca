import io
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pose.config import AugmentParams, CropParams
from pose.config_loading import load
from pose.data import augment, marks, mosaic, preview, scenes, shards
from pose.data.batch import SceneBatch
from pose.data.loader import Loader
from pose.skeleton import LSP14
from pose.systems import SYSTEMS, create

GRID, SCENES = preview.PEOPLE, preview.SCENES
SIZE = 64
GROUND = (40, 90, 60)
HIDDEN, UNLABELLED = LSP14.index("left_ankle"), LSP14.index("right_ankle")


def joints(number: int) -> np.ndarray:
    """[14, 2] crop px, on a grid wide enough that no mark covers another."""
    column, line = np.arange(14) % 4, np.arange(14) // 4
    return np.stack([10 + 14.0 * column, 8 + 14.0 * line], axis=1) + number % 3


def make_split(folder: Path, rows: int) -> Loader:
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
    return Loader(shards.Split.open(folder, "train"), threads=1)


def looked_at(side: int) -> partial:
    """What a system with a square input makes of a batch of people."""
    return partial(augment.finish, size=(side, side), skeleton=LSP14)


def pixel(page: Image.Image, n: int, point: np.ndarray, grid: preview.Grid = GRID) -> tuple[int, ...]:
    left, top = grid.corner(n)
    x, y = np.asarray(point) * grid.tile / SIZE
    return page.getpixel((int(left + x), int(top + y)))


def near(colour: tuple[int, ...], other: tuple[int, ...], tolerance: int = 30) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= tolerance


def test_joints_are_drawn_where_they_are_and_as_they_are(tmp_path):
    split = make_split(tmp_path, rows=40)
    page = Image.open(preview.sheet(split, looked_at(32), None, tmp_path / "sheet.png"))
    for n in (0, 1, 35):
        # 36 pictures, evenly over 40 rows, the last row last.
        points = joints(round(n * 39 / 35))
        for k, name in enumerate(LSP14.joints):
            if k not in (HIDDEN, UNLABELLED):
                assert near(pixel(page, n, points[k]), marks.SIDES[marks.side(name)]), (n, name)
        # Left ankle to left knee is a level line, so that above it a mark is alone.
        rim, inner = (np.array([0, -radius * SIZE / GRID.tile]) for radius in (marks.DOT, 2.5))
        knee = points[LSP14.index("left_knee")]
        assert near(pixel(page, n, points[HIDDEN] + rim), marks.SIDES["left"], 90)
        assert near(pixel(page, n, knee + inner), marks.SIDES["left"])
        assert not near(pixel(page, n, points[HIDDEN] + inner), marks.SIDES["left"], 90)
        assert near(pixel(page, n, points[UNLABELLED]), GROUND)


def test_a_line_of_the_sheet_is_one_sample_over_the_epochs(tmp_path):
    split = make_split(tmp_path, rows=9)
    path = tmp_path / "sheet.png"
    page = Image.open(preview.sheet(split, looked_at(32), AugmentParams(rotate=40, flip=0.5), path))
    left, top = GRID.corner(GRID.columns * GRID.rows)
    assert page.size[1] == top
    tiles = []
    for n in range(GRID.columns):
        left, top = GRID.corner(n)
        tiles.append(np.asarray(page.crop((left, top, left + GRID.tile, top + GRID.tile))).astype(int))
    assert near(pixel(page, 0, joints(0)[1]), marks.SIDES["right"])
    assert all(np.abs(tiles[0] - tile).max() > 60 for tile in tiles[1:])
    assert all(np.abs(a - b).max() > 60 for a, b in pairwise(tiles[1:]))


@pytest.mark.parametrize("augment", [None, AugmentParams(scale=0.1)])
def test_a_tiny_split_fills_a_smaller_sheet_and_the_same_bytes_twice(tmp_path, augment):
    split = make_split(tmp_path, rows=2)
    first = preview.sheet(split, looked_at(32), augment, tmp_path / "a.png").read_bytes()
    assert first == preview.sheet(split, looked_at(32), augment, tmp_path / "b.png").read_bytes()
    lines = 1 if augment is None else 2
    assert Image.open(tmp_path / "a.png").size[1] == GRID.corner(lines * GRID.columns)[1]


def test_targets_tint_the_picture_where_they_are(tmp_path):
    loader = make_split(tmp_path, rows=2)

    def targets(batch):
        maps = torch.zeros(len(batch), 8, 8)
        maps[1, 7, 6] = 1.0
        return maps

    page = Image.open(preview.sheet(loader, looked_at(32), None, tmp_path / "a.png", targets))
    # The cell's 8 px of the crop, free of joints at their lower right.
    assert near(pixel(page, 1, [55, 62]), tuple((np.array(GROUND) + 3 * np.array(marks.TARGET)) // 4))
    assert near(pixel(page, 0, [55, 62]), GROUND)
    assert near(pixel(page, 1, [45, 62]), GROUND)


def test_the_legend_says_what_is_tinted(tmp_path, monkeypatch):
    loader, said = make_split(tmp_path, rows=2), []
    whole = ImageDraw.ImageDraw.text

    def text(pen, place, words, *arguments, **named):
        said.append(words)
        assert place[0] + pen.textlength(words, named.get("font")) < pen.im.size[0]
        return whole(pen, place, words, *arguments, **named)

    def targets(batch):
        return torch.zeros(len(batch), 8, 8)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    crops = SYSTEMS["deeppose"].preview
    assert crops == "crops of later stages"
    for shown, wanted in (((), None), ((targets,), "targets"), ((targets, crops), crops)):
        said.clear()
        preview.sheet(loader, looked_at(32), AugmentParams(), tmp_path / "a.png", *shown)
        assert [words for words in ("targets", crops) if words in said] == ([wanted] if wanted else [])


def scene_row(number: int) -> scenes.SceneRow:
    """A landscape scene with two people; the lower left corner is ignored."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE // 2), GROUND).save(file, "JPEG", quality=95)
    points = np.zeros((2, 14, 3))
    points[1, 1] = [80, 20, 2]
    ignored = np.zeros(scenes.mask_shape((SIZE, SIZE // 2)), bool)
    ignored[4:, :4] = True
    boxes = np.array([[10.0, 8, 50, 56], [66, 10, 120, 40]])
    size = (SIZE * 2, SIZE)
    return scenes.SceneRow(
        file.getvalue(), f"{number}.jpg", number, size, np.arange(2), boxes, points, np.ones(2), ignored
    )


def test_scenes_show_everyone_s_box_and_joints_and_what_is_ignored(tmp_path):
    scenes.write_scenes(map(scene_row, range(5)), tmp_path, "train", 20, LSP14, SIZE)
    loader = scenes.SceneLoader(scenes.SceneSplit.open(tmp_path, "train"), threads=1)
    prepare = partial(scenes.finish, size=(64, 48), skeleton=LSP14)
    page = Image.open(preview.sheet(loader, prepare, None, tmp_path / "a.png"))
    assert page.size[1] == SCENES.corner(2 * SCENES.columns)[1]
    for n in (0, 4):
        for x, y in ((5, 16), (25, 16), (15, 28), (33, 12), (46, 20)):  # on the boxes' sides
            assert near(pixel(page, n, [x, y], SCENES), marks.BOX, 60), (n, x, y)
        assert near(pixel(page, n, [40, 10], SCENES), marks.SIDES["right"])
        assert near(pixel(page, n, [45, 15], SCENES), GROUND)
        red, green, _ = pixel(page, n, [2, 30], SCENES)
        assert red > GROUND[0] + 50 > green
        assert near(pixel(page, n, [20, 30], SCENES), GROUND)
        assert near(pixel(page, n, [60, 40], SCENES), (124, 116, 104))
    lined = Image.open(preview.sheet(loader, prepare, AugmentParams(rotate=20, flip=0.5), tmp_path / "b.png"))
    assert lined.size[1] == SCENES.corner(SCENES.rows * SCENES.columns)[1]


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if hasattr(system, "targets_preview")])
def test_targets_of_every_system_that_shows_some_lie_about_the_joints(tmp_path, name):
    """Of a network without weights, as `pose data preview` makes it."""
    whole = load().systems[name]
    with torch.device("meta"):
        system = create(name, type(whole).model_validate(whole.model_dump() | {"input_size": 128}), LSP14)
    if system.view == "scene":
        scenes.write_scenes(map(scene_row, range(2)), tmp_path, "train", 20, LSP14, SIZE)
        loader = scenes.SceneLoader(scenes.SceneSplit.open(tmp_path, "train"), threads=1)
    else:
        loader = make_split(tmp_path, rows=2)
    batch = system.prepare(next(iter(loader.batches(np.arange(2), 2, None, 0, 0))))
    targets = system.targets_preview(batch)
    count, height, width = targets.shape
    assert count == len(batch) == 2
    assert 0 <= targets.min() <= targets.max() <= 1
    image = torch.nonzero(batch.labelled)[:, 0]
    x, y = (batch.keypoints[batch.labelled] * torch.tensor([width, height]) / 128).long().unbind(dim=1)
    assert len(image) >= 2
    assert targets[image, y, x].min() > 0.3
    # The crops of DeepPose are wide.
    assert targets[image, y, x].mean() > 1.25 * targets.mean()


def test_a_mosaic_on_the_sheet_is_of_different_scenes(tmp_path):
    """As KAPAO's training makes them: four colours around a point. The first column is each scene alone."""
    colours = [(220, 40, 40), (40, 200, 40), (50, 60, 230), (230, 230, 60)]

    def plain_scene(number: int) -> scenes.SceneRow:
        file = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), colours[number]).save(file, "JPEG", quality=95)
        return scenes.SceneRow(
            file.getvalue(), f"{number}.jpg", number, (SIZE, SIZE), np.zeros(0), np.zeros((0, 4)),
            np.zeros((0, 14, 3)), np.zeros(0), np.zeros(scenes.mask_shape((SIZE, SIZE)), bool),
        )  # fmt: skip

    scenes.write_scenes(map(plain_scene, range(4)), tmp_path, "train", 20, LSP14, SIZE)
    loader = scenes.SceneLoader(scenes.SceneSplit.open(tmp_path, "train"), threads=1)
    asked = []

    def prepare(batch: SceneBatch) -> SceneBatch:
        asked.append((batch.augment is not None, batch.sample.tolist()))
        if batch.augment is None:
            return scenes.finish(batch, (SIZE, SIZE), LSP14)
        return mosaic.compose_mosaics(batch, (SIZE, SIZE), LSP14, share=1.0)

    page = Image.open(preview.sheet(loader, prepare, AugmentParams(), tmp_path / "a.png"))
    assert asked == [(n > 0, [0, 1, 2, 3]) for n in range(SCENES.columns)]
    places = [np.array([x, y]) for x in range(1, SIZE, 3) for y in range(1, SIZE, 3)]
    counts = []
    for n in range(SCENES.rows * SCENES.columns):
        shown = [pixel(page, n, place, SCENES) for place in places]
        seen = {k for k, colour in enumerate(colours) if any(near(colour, other) for other in shown)}
        line, column = divmod(n, SCENES.columns)
        if column == 0:
            assert seen == {line}
        else:
            counts.append(len(seen))
    # A point at the edge leaves some of the four out of the picture.
    assert np.mean(counts) > 3
