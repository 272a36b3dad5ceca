"""The person view: from a box to the input, against the released SimpleBaseline's affine, Pillow and drawn dots."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pose.config import AugmentParams, CropParams
from pose.data import crops, views
from pose.data.augment import COLUMNS, HALF_PADDING, UPPER_SHARE, draw, finish
from pose.data.batch import Batch
from pose.skeleton import COCO17, LSP14, Skeleton

CROP = CropParams(view="person", size=160, margin=2.0)
FULL = AugmentParams(scale=0.3, rotate=40, translate=0.05, flip=0.5, colour=0.3, erase=0.5, half_body=0.5)
STILL = dict.fromkeys(COLUMNS, 0.0) | {"scale": 1.0, "contrast": 1.0, "red": 1.0, "green": 1.0, "blue": 1.0}
SIZES = [(48, 64), (72, 96), (64, 64), (96, 64)]
BOXES = np.array([[90, 60, 150, 200], [40, 100, 220, 160], [100.3, 90.7, 160.2, 150.1], [150, 20, 190, 230]], float)
IMAGE_SIZE = (300, 260)
GROUND = (124, 116, 104)


def change(count: int, **columns: float) -> torch.Tensor:
    return torch.tensor([(STILL | columns)[name] for name in COLUMNS]).expand(count, -1)


def blob_image(points: np.ndarray, sigma: float) -> Image.Image:
    """White Gaussians around points [P, 2] of continuous coordinates, on about the mean colour."""
    width, height = IMAGE_SIZE
    x = np.exp(-((np.arange(width) + 0.5 - points[:, :1]) ** 2) / (2 * sigma**2))
    y = np.exp(-((np.arange(height) + 0.5 - points[:, 1:]) ** 2) / (2 * sigma**2))
    light = np.einsum("ph,pw->hw", y, x)[..., None].clip(max=1)
    return Image.fromarray(np.round(np.array(GROUND) + light * (255 - np.array(GROUND))).astype(np.uint8))


def make_batch(
    pictures: list[Image.Image], boxes: np.ndarray, keypoints: np.ndarray, augment: torch.Tensor | None = None
) -> Batch:
    """What the loader gives for boxes [B, 4] and keypoints [B, K, 2] in the pictures' px, without JPEG between."""
    affines = [crops.crop_affine(CROP, box, IMAGE_SIZE) for box in boxes]
    stored = [np.asarray(crops.extract(p, a, CROP.size)) for p, a in zip(pictures, affines, strict=True)]
    count, joints = keypoints.shape[:2]
    return Batch(
        images=torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2),
        keypoints=torch.from_numpy(crops.transform(np.stack(affines), keypoints).astype(np.float32)),
        labelled=torch.ones(count, joints, dtype=torch.bool),
        presence=torch.ones(count, joints),
        to_original=torch.from_numpy(crops.invert(np.stack(affines)).astype(np.float32)),
        sample=torch.arange(count),
        image_ids=torch.arange(count),
        image_sizes=torch.tensor([IMAGE_SIZE] * count, dtype=torch.float32),
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        augment=augment,
        view="person",
        margin=CROP.margin,
    )


def noise_batch(augment: torch.Tensor | None = None, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (len(BOXES), 30, 34, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p).resize(IMAGE_SIZE, Image.Resampling.BICUBIC) for p in small]
    keypoints = rng.uniform(BOXES[:, None, :2], BOXES[:, None, 2:], (len(BOXES), 14, 2))
    return make_batch(pictures, BOXES, keypoints, augment)


def official_affine(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[2, 3]: the released code's map, by what it does: centre and scale in units of 200 px, then three points.

    The points: the centre, half the source width above it, and the corner that makes a right angle with both; only
    the width decides the similarity. Solved here as six linear equations.
    """
    width, height = size
    centre, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    aspect = width / height
    if extent[0] > aspect * extent[1]:
        extent = np.array([extent[0], extent[0] / aspect])
    else:
        extent = np.array([extent[1] * aspect, extent[1]])
    scale = extent / 200 * 1.25

    def three(middle: np.ndarray, side: float) -> np.ndarray:
        above = middle - np.array([0, side / 2])
        arm = middle - above
        return np.stack([middle, above, above + np.array([-arm[1], arm[0]])])

    source = three(centre, scale[0] * 200)
    target = three(np.array([width / 2, height / 2]), width)
    return np.linalg.solve(np.column_stack([source, np.ones(3)]), target).T


class TestPlainView:
    @pytest.mark.parametrize("size", SIZES)
    def test_equals_the_released_affine(self, size):
        batch = noise_batch()
        to_input = views.compose(views.view(batch, size, 1.25), views.inverse(batch.to_original.double())).numpy()
        expected = np.stack([official_affine(box, size) for box in BOXES])
        corners = np.array([[0, 0], [300, 0], [300, 260], [0, 260]], float)
        difference = crops.transform(to_input, corners) - crops.transform(expected, corners)
        # The stored crop's map is kept in float32.
        assert np.abs(difference).max() < 1e-3
        # The same numbers mean other things: to OpenCV, which applies that map, (0, 0) is the first pixel's centre,
        # here it is its corner. Where pixels are read is compared with Pillow below, which agrees with us.

    @pytest.mark.parametrize("size", SIZES)
    def test_the_padded_box_touches_the_input_s_sides_and_is_in_the_middle(self, size):
        batch = noise_batch()
        warp = views.compose(views.view(batch, size, 1.25), views.inverse(batch.to_original.double()))
        for box, corners in zip(BOXES, views.apply(warp, torch.from_numpy(BOXES).reshape(-1, 2, 2)), strict=True):
            low, high = corners.numpy()
            np.testing.assert_allclose((low + high) / 2, np.array(size) / 2, atol=1e-3)
            assert max((high - low) * 1.25 / size) == pytest.approx(1, abs=1e-4)
            assert (high - low)[0] / (high - low)[1] == pytest.approx((box[2] - box[0]) / (box[3] - box[1]), rel=1e-4)

    @pytest.mark.parametrize("size", SIZES)
    def test_pixels_are_pillow_s(self, size):
        batch = noise_batch()
        seen = views.plain(batch, size, 1.25)
        stored = views.source(batch, size, 1.25)
        back = views.inverse(views.view(batch, size, 1.25)) * (stored.shape[-1] / CROP.size)
        for image, found, affine in zip(stored, seen, back, strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            expected = picture.transform(
                size, Image.Transform.AFFINE, affine.flatten().tolist(), Image.Resampling.BILINEAR
            )
            difference = np.abs(np.asarray(expected).astype(int) - found.permute(1, 2, 0).numpy())
            # Pillow leaves what it would have to extrapolate black.
            inside = np.asarray(expected).any(axis=2)
            assert inside.mean() > 0.6
            assert difference[inside].max() <= 2

    @pytest.mark.parametrize("size", SIZES)
    def test_keypoints_lie_where_they_are_drawn(self, size):
        centres = (BOXES[:, :2] + BOXES[:, 2:]) / 2 + [[11, -13], [-21, 5], [9, 12], [-4, 31]]
        pictures = [blob_image(centre[None], sigma=4) for centre in centres]
        seen = finish(make_batch(pictures, BOXES, np.repeat(centres[:, None], 14, axis=1)), size, LSP14)
        assert np.abs(centroids(seen.images) - seen.keypoints[:, 0].numpy()).max() < 0.1

    @pytest.mark.parametrize("augmented", [False, True])
    @pytest.mark.parametrize("size", SIZES)
    def test_to_original_leads_back(self, size, augmented):
        augment = torch.from_numpy(draw(FULL, 1, 2, np.arange(len(BOXES)))) if augmented else None
        batch = noise_batch(augment)
        seen = finish(batch, size, LSP14)
        back = views.apply(seen.to_original.double(), seen.keypoints.double())
        original = views.apply(batch.to_original.double(), batch.keypoints.double())
        if augment is not None:
            flipped = augment[:, COLUMNS.index("flip")] > 0
            original[flipped] = original[flipped][:, LSP14.mirror]
        assert (back - original).abs().max() < 2e-3
        assert augmented or torch.equal(seen.boxes, batch.boxes)  # a half body has a box of its own
        assert seen.augment is None

    def test_what_the_crop_does_not_hold_has_the_mean_colour(self):
        # A lying box in an upright input: 1.25 x 180 px wide, so 300 high, but the crop keeps 360 px around it.
        batch = replace(noise_batch(), margin=2.0)
        tall = views.plain(batch, (32, 96), 1.25)[1]
        top = (96 - 96 * 360 / (1.25 * 180 * 3)) / 2
        assert top > 20
        assert torch.equal(
            tall[:, : int(top) - 1], torch.tensor(GROUND, dtype=torch.uint8)[:, None, None].expand(3, int(top) - 1, 32)
        )


def centroids(images: torch.Tensor) -> np.ndarray:
    """[B, 2], centre of what is brighter than the ground, in continuous pixels."""
    light = (images[:, 0].double() - 0.1).clamp_(min=0)
    columns = torch.arange(images.shape[-1], dtype=torch.float64) + 0.5
    rows = torch.arange(images.shape[-2], dtype=torch.float64) + 0.5
    total = light.sum(dim=(1, 2))
    x, y = (light.sum(dim=1) * columns).sum(dim=1) / total, (light.sum(dim=2) * rows).sum(dim=1) / total
    return torch.stack([x, y], dim=1).numpy()


@pytest.mark.parametrize(
    "columns",
    [
        {"rotate": math.radians(30)},
        {"scale": 0.8, "flip": 1.0},
        {"scale": 1.2, "rotate": math.radians(-25), "right": 0.05, "down": -0.04, "flip": 1.0},
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_augmented_keypoints_follow_the_pixels(size, columns):
    centres = (BOXES[:, :2] + BOXES[:, 2:]) / 2 + [[5, -13], [-11, 5], [9, 8], [-4, 21]]
    pictures = [blob_image(centre[None], sigma=4) for centre in centres]
    batch = make_batch(pictures, BOXES, np.repeat(centres[:, None], 14, axis=1), change(len(BOXES), **columns))
    seen = finish(batch, size, LSP14)
    assert np.abs(centroids(seen.images) - seen.keypoints[:, 0].numpy()).max() < 0.1


@pytest.mark.parametrize("augmented", [False, True])
def test_a_person_looks_the_same_in_any_batch(augmented):
    augment = torch.from_numpy(draw(FULL, 3, 4, np.arange(len(BOXES)))) if augmented else None
    batch = noise_batch(augment)
    whole = finish(batch, (48, 64), LSP14)
    again = finish(batch, (48, 64), LSP14)
    for row in range(len(BOXES)):
        alone = finish(batch.rows(row, row + 1), (48, 64), LSP14)
        for name in ("images", "keypoints", "labelled", "presence", "to_original"):
            assert torch.equal(getattr(whole, name)[row : row + 1], getattr(alone, name)), name
            assert torch.equal(getattr(whole, name), getattr(again, name)), name


class TestHalfBody:
    UPPER, LOWER = 1.0, 2.0

    def looked_at(self, batch: Batch, skeleton: Skeleton = COCO17) -> np.ndarray:
        """[B, 4] centre, width and height, in original px, of what fills a 48 x 64 input."""
        seen = finish(batch, (48, 64), skeleton)
        ends = torch.tensor([[0.0, 0.0], [48.0, 64.0]], dtype=torch.float64).expand(len(batch), 2, 2)
        low, high = views.apply(seen.to_original.double(), ends).unbind(dim=1)
        return torch.cat([(low + high) / 2, high - low], dim=1).numpy()

    def person(self, half: float, skeleton: Skeleton = COCO17, **columns: float) -> tuple[Batch, np.ndarray]:
        """One person whose joints lie anywhere in the first box."""
        points = np.random.default_rng(3).uniform(BOXES[0, :2], BOXES[0, 2:], (1, skeleton.size, 2))
        picture = Image.new("RGB", IMAGE_SIZE)
        return make_batch([picture], BOXES[:1], points, change(1, half_body=half, **columns)), points[0]

    def expected(self, points: np.ndarray) -> np.ndarray:
        extent = (points.max(axis=0) - points.min(axis=0)) * HALF_PADDING
        width = max(extent[0], extent[1] * 48 / 64)
        return np.array([*points.mean(axis=0), width, width * 64 / 48])

    @pytest.mark.parametrize(("half", "ids"), [(UPPER, range(11)), (LOWER, range(11, 17))])
    def test_shows_the_half_s_joints_about_their_mean(self, half, ids):
        batch, points = self.person(half)
        np.testing.assert_allclose(self.looked_at(batch)[0], self.expected(points[list(ids)]), atol=2e-3)

    def test_the_box_becomes_the_half_s_and_else_stays(self):
        batch, points = self.person(self.UPPER)
        half, joints = finish(batch, (48, 64), COCO17).boxes[0].numpy(), points[:11]
        np.testing.assert_allclose((half[:2] + half[2:]) / 2, joints.mean(axis=0), atol=2e-3)
        np.testing.assert_allclose((half[2:] - half[:2]) * 1.25, np.ptp(joints, axis=0) * HALF_PADDING, atol=2e-3)
        whole, _ = self.person(0.0)
        assert torch.equal(finish(whole, (48, 64), COCO17).boxes, whole.boxes)

    def test_halves_of_another_skeleton(self):
        batch, points = self.person(self.LOWER, LSP14)
        np.testing.assert_allclose(self.looked_at(batch, LSP14)[0], self.expected(points[:6]), atol=2e-3)

    def test_zero_is_the_whole_body(self):
        batch, _ = self.person(0.0)
        plain = self.looked_at(replace(batch, augment=None))
        np.testing.assert_array_equal(self.looked_at(batch), plain)

    def test_too_few_joints_in_the_half_are_the_other_half(self):
        batch, points = self.person(self.LOWER)
        batch.labelled[0, 13:] = False  # leaves two hips
        np.testing.assert_allclose(self.looked_at(batch)[0], self.expected(points[:11]), atol=2e-3)

    def test_half_the_joints_or_fewer_are_shown_as_a_whole(self):
        batch, _ = self.person(self.UPPER)
        batch.labelled[0, 8:] = False
        np.testing.assert_array_equal(self.looked_at(batch), self.looked_at(replace(batch, augment=None)))

    def test_joints_on_one_line_do_not_blow_it_up(self):
        batch, _ = self.person(self.LOWER)
        batch.keypoints[0, 11:] = batch.keypoints[0, 11].clone()
        seen = finish(batch, (48, 64), COCO17)
        assert torch.isfinite(seen.images).all()
        # A pixel of the original, times the padding, fills the input.
        assert self.looked_at(batch)[0, 2] == pytest.approx(HALF_PADDING, rel=1e-3)

    def test_whole_images_stay_whole(self):
        batch, _ = self.person(self.UPPER)
        batch = replace(batch, view="image")
        np.testing.assert_array_equal(self.looked_at(batch), self.looked_at(replace(batch, augment=None)))

    def test_rates(self):
        drawn = draw(AugmentParams(half_body=0.3), 0, 0, np.arange(6000))[:, COLUMNS.index("half_body")]
        assert set(np.unique(drawn)) == {0, 1, 2}
        assert abs((drawn > 0).mean() - 0.3) < 0.02
        assert abs((drawn[drawn > 0] == 1).mean() - UPPER_SHARE) < 0.04
        # The normal distribution below one half.
        assert pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=0.003) == UPPER_SHARE
