"""Scenes: from rows to shards to batches to inputs, against what was written and what is drawn in the pictures."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pose.config import AugmentParams
from pose.data import scenes, views
from pose.data.augment import COLUMNS, draw
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.data.loader import Loader, open_loader
from pose.errors import DataError
from pose.layers.normalise import Normalise
from pose.skeleton import LSP14

STORED = 96
SIZES = [(120, 90), (90, 120), (64, 64), (192, 96)]
"""Originals, the last one exactly twice its stored size."""
FULL = AugmentParams(scale=0.3, rotate=40, translate=0.1, flip=0.5, colour=0.3, erase=0.5)
STILL = dict.fromkeys(COLUMNS, 0.0) | {"scale": 1.0, "contrast": 1.0, "red": 1.0, "green": 1.0, "blue": 1.0}
GROUND = (124, 116, 104)
INPUTS = [(64, 64), (80, 48), (48, 80), (96, 96)]


def change(count: int, **columns: float) -> torch.Tensor:
    return torch.tensor([(STILL | columns)[name] for name in COLUMNS]).expand(count, -1)


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def make_row(index: int) -> scenes.SceneRow:
    """A noisy picture with index % 4 people anywhere in it; every second one has ignored regions."""
    rng = np.random.default_rng(index)
    size = SIZES[index % len(SIZES)]
    count = index % 4
    stored = scenes.fit(size, STORED)
    low = rng.uniform(0, 0.5, (count, 2)) * size
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, (count, 2)) * size], axis=1)
    visibility = rng.integers(0, 3, (count, 14, 1))
    points = rng.uniform(boxes[:, None, :2], boxes[:, None, 2:], (count, 14, 2)) * (visibility > 0)
    ignored = rng.random(scenes.mask_shape(stored)) < (0.3 if index % 2 else 0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(stored, Image.Resampling.BICUBIC)
    return scenes.SceneRow(
        jpeg=encoded(picture),
        file_name=f"im{index}.jpg",
        image_id=1000 + index,
        image_size=size,
        annotation_ids=np.arange(count) + 10 * index,
        boxes=boxes,
        keypoints=np.concatenate([points, visibility], axis=2),
        areas=rng.uniform(100, 900, count),
        ignored=ignored,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("scenes")
    assert scenes.write_scenes(map(make_row, range(11)), directory, "train", 4, LSP14, STORED) == 11
    return directory


@pytest.fixture
def split(folder: Path) -> scenes.SceneSplit:
    return scenes.SceneSplit.open(folder, "train")


def load(
    split: scenes.SceneSplit, rows: list[int], augment: AugmentParams | None = None, threads: int = 1
) -> SceneBatch:
    loader = scenes.SceneLoader(split, threads)
    return next(loader.batches(np.array(rows), len(rows), augment, 5, 2))


class TestShards:
    def test_what_is_written_is_read(self, split, folder):
        assert len(list(folder.glob("scene-train-*.arrow"))) == 3
        assert (len(split), split.size, split.skeleton.name) == (11, STORED, "lsp14")
        for n in range(11):
            row, place = make_row(n), split.people_of(n)
            assert split.jpeg(n).tobytes() == row.jpeg
            assert split.image_ids[n] == row.image_id
            assert split.file_names[n] == row.file_name
            assert tuple(split.image_sizes[n]) == row.image_size
            assert tuple(split.stored_sizes[n]) == Image.open(io.BytesIO(row.jpeg)).size
            assert split.annotation_ids[place].tolist() == row.annotation_ids.tolist()
            np.testing.assert_allclose(split.boxes[place], row.boxes, rtol=1e-6)
            np.testing.assert_allclose(split.keypoints[place], row.keypoints[:, :, :2], rtol=1e-6)
            assert np.array_equal(split.labelled[place], row.keypoints[:, :, 2] > 0)
            assert np.array_equal(split.presence[place], row.keypoints[:, :, 2] == 2)
            np.testing.assert_allclose(split.areas[place], row.areas, rtol=1e-6)
            assert np.array_equal(split.ignored(n), row.ignored)
        assert split.location(5).endswith("scene-train-00001.arrow, row 1")

    def test_the_same_rows_are_the_same_bytes(self, folder, tmp_path):
        scenes.write_scenes(map(make_row, range(11)), tmp_path, "train", 4, LSP14, STORED)
        for path in folder.glob("*.arrow"):
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()

    def test_a_split_without_a_single_person(self, tmp_path):
        scenes.write_scenes(map(make_row, (0, 4, 8)), tmp_path, "val", 2, LSP14, STORED)
        batch = load(scenes.SceneSplit.open(tmp_path, "val"), [0, 1, 2])
        assert batch.people.shape == (3, 1)
        assert not batch.people.any()
        assert not scenes.finish(batch, (64, 64), LSP14).ignored.any()

    @pytest.mark.parametrize(("image", "stored"), [((640, 480), (96, 72)), ((40, 50), (77, 96)), ((1000, 3), (96, 1))])
    def test_fit(self, image, stored):
        assert scenes.fit(image, STORED) == stored

    @pytest.mark.parametrize(
        ("field", "value"),
        [("boxes", np.zeros((2, 4))), ("keypoints", np.zeros((3, 17, 3))), ("ignored", np.zeros((9, 9), bool))],
    )
    def test_a_row_that_does_not_fit_is_refused(self, tmp_path, field, value):
        row = replace(make_row(3), **{field: value})
        with pytest.raises(ValueError, match=rf"{field} of im3\.jpg"):
            scenes.write_scenes([row], tmp_path, "train", 4, LSP14, STORED)
        with pytest.raises(ValueError, match="larger than 95"):
            scenes.write_scenes([make_row(3)], tmp_path, "train", 4, LSP14, 95)

    def test_missing_and_foreign_shards(self, tmp_path):
        with pytest.raises(DataError, match=r"holds no scene-val-\*\.arrow.*block `scene`"):
            scenes.SceneSplit.open(tmp_path, "val")
        (tmp_path / "scene-val-00000.arrow").write_bytes(b"nothing")
        with pytest.raises(DataError, match="not a whole Arrow file"):
            scenes.SceneSplit.open(tmp_path, "val")

    def test_a_broken_jpeg_is_named(self, tmp_path):
        row = make_row(3)
        rows = [make_row(0), replace(row, jpeg=row.jpeg[:-400])]
        scenes.write_scenes(rows, tmp_path, "train", 4, LSP14, STORED)
        with pytest.raises(DataError, match=r"00000\.arrow, row 1, image id 1003 \(im3\.jpg\), does not decode"):
            load(scenes.SceneSplit.open(tmp_path, "train"), [0, 1])


class TestLoader:
    def test_people_are_where_the_original_says(self, split):
        batch = load(split, list(range(11)))
        assert batch.images.shape == (11, 3, STORED, STORED)
        assert batch.people.sum(dim=1).tolist() == [n % 4 for n in range(11)]
        assert not batch.boxes[~batch.people].any()
        original = views.apply(batch.to_original.double(), batch.boxes.reshape(11, -1, 2).double()).reshape(11, -1, 4)
        points = views.apply(batch.to_original.double(), batch.keypoints.reshape(11, -1, 2).double())
        for n in range(11):
            row, count = make_row(n), n % 4
            np.testing.assert_allclose(original[n, :count], row.boxes, atol=1e-3)
            np.testing.assert_allclose(points[n, : 14 * count], row.keypoints[:, :, :2].reshape(-1, 2), atol=1e-3)
            scale = np.prod(split.stored_sizes[n] / row.image_size)
            np.testing.assert_allclose(batch.areas[n, :count], row.areas * scale, rtol=1e-5)

    def test_pixels_masks_and_padding(self, split):
        batch = load(split, [1, 4])
        for place, row in enumerate((1, 4)):
            width, height = split.stored_sizes[row]
            picture = np.asarray(Image.open(io.BytesIO(make_row(row).jpeg)))
            pixels = batch.images[place].permute(1, 2, 0).numpy()
            assert np.array_equal(pixels[:height, :width], picture)
            assert (pixels[height:] == GROUND).all()
            assert (pixels[:, width:] == GROUND).all()
            mask = make_row(row).ignored
            assert np.array_equal(batch.ignored[place, : mask.shape[0], : mask.shape[1]], mask)
            assert batch.ignored[place].sum() == mask.sum()

    def test_threads_order_and_start_change_nothing(self, folder):
        order = np.random.default_rng(1).permutation(11)
        runs = [
            list(open_loader("scene", folder, "train", threads).batches(order, 3, FULL, 1, 7, start))
            for threads, start in ((1, 0), (3, 0), (2, 2))
        ]
        assert [len(run) for run in runs] == [4, 4, 2]
        assert runs[0][-1].sample.tolist() == order[9:].tolist()
        for a, b in [*zip(runs[0], runs[1], strict=True), *zip(runs[0][2:], runs[2], strict=True)]:
            for name, tensor in a.tensors().items():
                assert torch.equal(tensor, getattr(b, name)), name

    def test_open_loader_knows_both_views(self, folder):
        assert isinstance(open_loader("scene", folder, "train", 1), scenes.SceneLoader)
        with pytest.raises(DataError, match=r"holds no train-\*"):
            assert isinstance(open_loader("person", folder, "train", 1), Loader)

    def test_unlabelled_is_the_same_without_shards(self, split):
        pictures = [Image.fromarray(np.full((h, w, 3), 50 + w, np.uint8)) for w, h in SIZES]
        batch = scenes.unlabelled(pictures, [7, 8, 9, 10], STORED, LSP14)
        loaded = load(split, [0, 1, 2, 3])
        for name in ("extents", "to_original", "image_sizes"):
            torch.testing.assert_close(getattr(batch, name), getattr(loaded, name))
        assert batch.image_ids.tolist() == [7, 8, 9, 10]
        assert (batch.images[2] == 50 + 64).all()
        assert (batch.images[0, 0, 72:] == GROUND[0]).all()


def dots(points: np.ndarray, size: tuple[int, int], radius: float = 3) -> Image.Image:
    """A white Gaussian around one point [2], on about the mean colour."""
    width, height = size
    x = np.exp(-((np.arange(width) + 0.5 - points[0]) ** 2) / (2 * radius**2))
    y = np.exp(-((np.arange(height) + 0.5 - points[1]) ** 2) / (2 * radius**2))
    light = (y[:, None] * x)[..., None]
    return Image.fromarray(np.round(np.array(GROUND) + light * (255 - np.array(GROUND))).astype(np.uint8))


def dot_batch(augment: torch.Tensor | None = None) -> tuple[SceneBatch, np.ndarray]:
    """One scene of each size with a dot at the joints of its one person, and a box around it; the dots' places."""
    points = np.array([[0.55, 0.4], [0.45, 0.6], [0.4, 0.45], [0.6, 0.55]]) * SIZES
    batch = scenes.unlabelled([dots(p, s) for p, s in zip(points, SIZES, strict=True)], range(4), STORED, LSP14)
    scale = batch.extents.numpy() / np.array(SIZES)
    centre = torch.from_numpy((points * scale).astype(np.float32))
    filled = replace(
        batch,
        people=torch.ones(4, 1, dtype=torch.bool),
        keypoints=centre[:, None, None].expand(4, 1, 14, 2).contiguous(),
        labelled=torch.ones(4, 1, 14, dtype=torch.bool),
        presence=torch.ones(4, 1, 14),
        boxes=torch.cat([centre - 6, centre + 6], dim=1)[:, None],
        areas=torch.full((4, 1), 50.0),
        augment=augment,
    )
    return filled, points


def centroids(images: torch.Tensor) -> np.ndarray:
    light = (images[:, 0].double() - 0.1).clamp_(min=0)
    columns = torch.arange(images.shape[-1], dtype=torch.float64) + 0.5
    rows = torch.arange(images.shape[-2], dtype=torch.float64) + 0.5
    total = light.sum(dim=(1, 2))
    x, y = (light.sum(dim=1) * columns).sum(dim=1) / total, (light.sum(dim=2) * rows).sum(dim=1) / total
    return torch.stack([x, y], dim=1).numpy()


CHANGES = (
    {"rotate": math.radians(25)},
    {"scale": 1.2},
    {"scale": 0.75},
    {"right": 0.09, "down": -0.06},
    {"flip": 1.0},
    {"scale": 1.15, "rotate": math.radians(-28), "right": -0.05, "down": 0.06, "flip": 1.0},
)


class TestFinish:
    @pytest.mark.parametrize("size", INPUTS)
    @pytest.mark.parametrize("columns", [None, *CHANGES])
    def test_points_boxes_and_pixels_agree(self, columns, size):
        batch, points = dot_batch(None if columns is None else change(4, **columns))
        seen = scenes.finish(batch, size, LSP14)
        assert seen.images.shape == (4, 3, size[1], size[0])
        assert seen.people.all()
        assert seen.labelled.all()
        found = centroids(seen.images)
        assert np.abs(found - seen.keypoints[:, 0, 0].numpy()).max() < 0.12
        # A box's corners may be clipped, its middle only follows where none is.
        low, high = seen.boxes[:, 0].numpy()[:, :2], seen.boxes[:, 0].numpy()[:, 2:]
        whole = ((low > 0) & (high < seen.extents.numpy())).all(axis=1)
        assert whole.sum() >= 3
        np.testing.assert_allclose((low + high)[whole] / 2, seen.keypoints[:, 0, 0].numpy()[whole], atol=1e-3)
        back = views.apply(seen.to_original.double(), seen.keypoints[:, 0].double()).numpy()
        assert np.abs(back - points[:, None]).max() < 1e-2

    @pytest.mark.parametrize("size", INPUTS)
    def test_the_image_fills_the_input_at_its_top_left(self, size):
        batch, _ = dot_batch()
        plain, seen = scenes.plain(batch, size), scenes.finish(batch, size, LSP14)
        assert plain.dtype == torch.uint8
        assert torch.equal(seen.images, Normalise()(plain))
        for n, (width, height) in enumerate(batch.extents.tolist()):
            scale = min(size[0] / width, size[1] / height)
            assert seen.extents[n].tolist() == pytest.approx([width * scale, height * scale])
            assert (plain[n, :, math.ceil(height * scale) + 1 :] == torch.tensor(GROUND)[:, None, None]).all()
            assert (plain[n, :, :, math.ceil(width * scale) + 1 :] == torch.tensor(GROUND)[:, None, None]).all()

    def test_a_scene_of_the_input_s_size_is_seen_unchanged(self, split):
        batch = load(split, [1, 2, 3])
        assert torch.equal(scenes.plain(batch, (STORED, STORED)), batch.images)

    def test_shrunk_scenes_are_pillow_s(self, split):
        """Within the image: at its last line Pillow knows nothing of the padding that follows."""
        batch = load(split, [2])
        seen = scenes.plain(batch, (64, 64))[0].permute(1, 2, 0).numpy()
        picture = Image.fromarray(batch.images[0].permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.abs(seen.astype(int) - expected)[:-1, :-1].max() <= 1

    @pytest.mark.parametrize("size", INPUTS)
    def test_a_turned_box_holds_its_corners_and_is_clipped(self, size):
        batch, _ = dot_batch(change(4, rotate=math.radians(30), scale=1.1, right=0.2))
        seen = scenes.finish(batch, size, LSP14)
        to_input = views.compose(views.inverse(seen.to_original.double()), batch.to_original.double())
        corners = batch.boxes[:, 0][:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 4, 2).double()
        moved = views.apply(to_input, corners).numpy().clip(0, seen.extents.numpy()[:, None])
        np.testing.assert_allclose(seen.boxes[:, 0, :2], moved.min(axis=1), atol=1e-3)
        np.testing.assert_allclose(seen.boxes[:, 0, 2:], moved.max(axis=1), atol=1e-3)
        determinant = np.linalg.det(to_input[:, :, :2].numpy())
        np.testing.assert_allclose(seen.areas[:, 0], 50 * determinant, rtol=1e-4)

    def test_who_leaves_the_view_leaves_the_slot(self):
        batch, _ = dot_batch(change(4, right=0.9))
        seen = scenes.finish(batch, (64, 64), LSP14)
        assert not seen.people.any()
        for name in ("labelled", "presence", "boxes", "areas"):
            assert not getattr(seen, name).any(), name

    def test_joints_out_of_view_are_not_labelled_where_the_person_stays(self):
        batch, _ = dot_batch(change(4, right=0.1))
        keypoints = batch.keypoints.clone()
        keypoints[:, 0, 3, 0] = batch.extents[:, 0] - 2
        seen = scenes.finish(replace(batch, keypoints=keypoints), (64, 64), LSP14)
        assert seen.people.all()
        lost = ~seen.labelled[:, 0]
        assert lost[:, 3].all()
        assert lost.sum() == 4
        assert torch.equal(seen.presence[:, 0] == 0, lost)

    def test_a_mirrored_person_s_joints_change_sides(self):
        batch, _ = dot_batch(change(4, flip=1.0))
        ankle, other = LSP14.index("left_ankle"), LSP14.index("right_ankle")
        batch.labelled[:, 0, ankle] = False
        seen = scenes.finish(batch, (64, 64), LSP14)
        assert not seen.labelled[:, 0, other].any()
        assert seen.labelled[:, 0, ankle].all()
        plain = scenes.finish(replace(batch, augment=None), (64, 64), LSP14)
        assert torch.equal(seen.extents, plain.extents)
        # The picture is mirrored within its own part of the input.
        for n, (width, height) in enumerate(plain.extents.round().long().tolist()):
            here = seen.images[n, :, : height - 2, 2 : width - 2]
            there = plain.images[n, :, : height - 2, 2 : width - 2].flip(2)
            assert (here - there).abs().max() < 0.3

    @pytest.mark.parametrize("columns", [None, *CHANGES])
    def test_ignored_regions_move_with_the_pixels(self, columns):
        size = (96, 96)
        white = [Image.new("RGB", s, GROUND) for s in SIZES]
        blocks = np.zeros((4, *scenes.mask_shape((STORED, STORED))), bool)
        blocks[:, 5:10, 8:14] = True
        batch = scenes.unlabelled(white, range(4), STORED, LSP14)
        canvas = batch.images.permute(0, 2, 3, 1).numpy()
        canvas[:, 5 * IGNORE_STRIDE : 10 * IGNORE_STRIDE, 8 * IGNORE_STRIDE : 14 * IGNORE_STRIDE] = 255
        augment = None if columns is None else change(4, **columns)
        batch = replace(batch, ignored=torch.from_numpy(blocks), augment=augment)
        seen = scenes.finish(batch, size, LSP14)
        assert seen.ignored.shape == (4, 24, 24)
        share = (seen.images[:, 0] > 1).float().reshape(4, 24, IGNORE_STRIDE, 24, IGNORE_STRIDE).mean(dim=(2, 4))
        assert seen.ignored.sum() > 60
        assert seen.ignored[share > 0.9].all()
        assert not seen.ignored[share < 0.1].any()

    def test_nothing_lies_beyond_the_extents_of_an_augmented_scene(self, split):
        batch = load(split, [0, 1, 3, 4], FULL)
        seen = scenes.finish(batch, (64, 64), LSP14)
        for n, (width, height) in enumerate(seen.extents.tolist()):
            assert not seen.images[n, :, math.ceil(height) :].any()
            assert not seen.images[n, :, :, math.ceil(width) :].any()
            assert not seen.ignored[n, math.ceil(height / 4) :].any()
            assert (seen.boxes[n, :, 2] <= width).all()
            assert (seen.boxes[n, :, 3] <= height).all()

    def test_no_change_is_about_the_plain_view(self, split):
        batch = load(split, [1, 2, 3])
        plain = scenes.finish(batch, (64, 64), LSP14)
        still = scenes.finish(replace(batch, augment=change(3)), (64, 64), LSP14)
        for name in ("keypoints", "boxes", "people", "extents", "to_original", "ignored"):
            torch.testing.assert_close(getattr(still, name), getattr(plain, name))
        inner = (slice(None), slice(None), slice(0, 30), slice(0, 30))
        torch.testing.assert_close(still.images[inner], plain.images[inner], rtol=0, atol=0.03)

    @pytest.mark.parametrize("augment", [None, FULL])
    def test_a_scene_looks_the_same_in_any_batch(self, split, augment):
        rows = [3, 0, 6, 5, 10]
        whole = scenes.finish(load(split, rows, augment), (64, 48), LSP14)
        for place, row in enumerate(rows):
            alone = scenes.finish(load(split, [row], augment), (64, 48), LSP14)
            for name, tensor in alone.tensors().items():
                mine = getattr(whole, name)[place : place + 1]
                if name in ("people", "keypoints", "labelled", "presence", "boxes", "areas"):
                    count = len(make_row(row).boxes)
                    mine, tensor = mine[:, :count], tensor[:, :count]
                assert torch.equal(mine, tensor), name
        assert not whole.people.sum() > sum(len(make_row(row).boxes) for row in rows)


def test_draws_are_those_of_seed_epoch_and_row(split):
    batch = load(split, [4, 2], FULL)
    assert np.array_equal(batch.augment, draw(FULL, 5, 2, np.array([4, 2])))
    assert load(split, [4, 2]).augment is None


def test_rectangles_drawn_in_the_picture_stay_in_their_boxes():
    """End to end: a rectangle of people's colour in the original is where finish says its box is."""
    picture = Image.new("RGB", (200, 120), (0, 0, 0))
    ImageDraw.Draw(picture).rectangle([60, 40, 99, 89], fill=(255, 255, 255))
    batch = scenes.unlabelled([picture], [1], 100, LSP14)
    box = torch.tensor([[[60.0, 40, 100, 90]]]) * 0.5
    batch = replace(batch, people=torch.tensor([[True]]), boxes=box, augment=change(1, flip=1.0, right=0.1, scale=1.1))
    seen = scenes.finish(batch, (100, 100), LSP14)
    lines, columns = np.nonzero((seen.images[0, 0] > 0.5).numpy())
    x0, y0, x1, y1 = seen.boxes[0, 0].tolist()
    np.testing.assert_allclose(
        [columns.min(), lines.min(), columns.max() + 1, lines.max() + 1], [x0, y0, x1, y1], atol=1
    )
