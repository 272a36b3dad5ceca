import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from pose.config import AugmentParams
from pose.data.augment import COLUMNS, draw, finish
from pose.data.batch import Batch
from pose.data.views import resize
from pose.layers.normalise import Normalise
from pose.skeleton import LSP14

FULL = AugmentParams(scale=0.25, rotate=30, translate=0.1, flip=0.5, colour=0.3, erase=0.5)
STILL = dict.fromkeys(COLUMNS, 0.0) | {"scale": 1.0, "contrast": 1.0, "red": 1.0, "green": 1.0, "blue": 1.0}
BACKGROUND = (124, 116, 104)
"""About the mean colour, so that ground new to the image looks like the rest."""


def change(count: int, **columns: float) -> torch.Tensor:
    """[count, C], the same change for every sample."""
    return torch.tensor([(STILL | columns)[name] for name in COLUMNS]).expand(count, -1)


def make_batch(images: np.ndarray, keypoints: np.ndarray, augment: torch.Tensor | None = None) -> Batch:
    """images [B, S, S, 3] uint8, keypoints [B, K, 2] px; originals are 3 and 2 times the crop, shifted by (5, -7)."""
    count, joints = keypoints.shape[:2]
    to_original = torch.tensor([[3.0, 0.0, 5.0], [0.0, 2.0, -7.0]]).expand(count, 2, 3)
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        keypoints=torch.from_numpy(keypoints.astype(np.float32)),
        labelled=torch.ones(count, joints, dtype=torch.bool),
        presence=torch.ones(count, joints),
        to_original=to_original,
        sample=torch.arange(count),
        image_ids=torch.arange(count),
        image_sizes=torch.full((count, 2), 500.0),
        boxes=torch.zeros(count, 4),
        augment=augment,
    )


def blobs(points: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """[B, size, size, 3] uint8, on each a white Gaussian around one point [B, 2] of continuous coordinates."""
    centres = np.arange(size) + 0.5
    x = np.exp(-((centres - points[:, :1]) ** 2) / (2 * sigma**2))
    y = np.exp(-((centres - points[:, 1:]) ** 2) / (2 * sigma**2))
    light = (y[:, :, None] * x[:, None, :])[..., None]
    return np.round(np.array(BACKGROUND) + light * (255 - np.array(BACKGROUND))).astype(np.uint8)


def centroids(images: torch.Tensor) -> np.ndarray:
    """[B, 2], centre of what is brighter than the ground, in continuous pixels."""
    light = (images[:, 0].double() - 0.1).clamp_(min=0)
    centres = torch.arange(images.shape[-1], dtype=torch.float64) + 0.5
    total = light.sum(dim=(1, 2))
    x, y = (light.sum(dim=1) * centres).sum(dim=1) / total, (light.sum(dim=2) * centres).sum(dim=1) / total
    return torch.stack([x, y], dim=1).numpy()


def one_joint_per_image(size: int, augment: torch.Tensor) -> tuple[Batch, np.ndarray]:
    """14 images; image k shows a blob at its joint k alone. Also the joints [14, 14, 2]."""
    points = np.random.default_rng(4).uniform(0.3 * size, 0.7 * size, (14, 14, 2))
    images = blobs(points[np.arange(14), np.arange(14)], size, sigma=size / 40)
    return make_batch(images, points, augment), points


class TestDraw:
    def test_depends_on_seed_epoch_and_row_alone(self):
        together = draw(FULL, 3, 5, np.arange(20))
        for row in (0, 7, 19):
            assert np.array_equal(draw(FULL, 3, 5, np.array([row]))[0], together[row])
        shuffled = np.random.default_rng(0).permutation(20)
        assert np.array_equal(draw(FULL, 3, 5, shuffled), together[shuffled])

    @pytest.mark.parametrize("other", [(4, 5, 0), (3, 6, 0), (3, 5, 1), (5, 3, 0)])
    def test_another_seed_epoch_or_row_is_another_change(self, other):
        seed, epoch, row = other
        assert not np.any(draw(FULL, 3, 5, np.array([0]))[0, :4] == draw(FULL, seed, epoch, np.array([row]))[0, :4])

    def test_zero_ranges_are_no_change(self):
        expected = change(9).numpy()
        drawn = draw(AugmentParams(), 1, 2, np.arange(9))
        unerased = [COLUMNS.index(name) for name in COLUMNS if name not in ("erase_x", "erase_y")]
        assert np.array_equal(drawn[:, unerased], expected[:, unerased])

    def test_one_range_does_not_move_the_others(self):
        some = draw(FULL.model_copy(update={"rotate": 0.0, "erase": 0.0}), 1, 2, np.arange(9))
        every = draw(FULL, 1, 2, np.arange(9))
        assert np.array_equal(np.delete(some, 1, axis=1)[:, :8], np.delete(every, 1, axis=1)[:, :8])
        assert not np.any(some[:, 1])

    def test_ranges_and_rates(self):
        drawn = dict(zip(COLUMNS, draw(FULL, 0, 0, np.arange(4000)).T, strict=True))
        assert 0.8 <= drawn["scale"].min() < 0.803
        assert 1.245 < drawn["scale"].max() <= 1.25
        assert abs(np.log(drawn["scale"]).mean()) < 0.01
        assert math.radians(29.9) < np.abs(drawn["rotate"]).max() <= math.radians(30) + 1e-6
        assert 0.0995 < np.abs(drawn["right"]).max() <= 0.1
        assert abs(drawn["flip"].mean() - 0.5) < 0.03
        assert set(np.unique(drawn["flip"])) == {0, 1}
        area = drawn["erase_width"] * drawn["erase_height"]
        assert abs((area > 0).mean() - 0.5) < 0.03
        assert area[area > 0].min() >= 0.02 - 1e-6
        assert area.max() <= 0.15 + 1e-6
        assert abs(np.corrcoef(drawn["right"], drawn["down"])[0, 1]) < 0.05

    def test_no_rows_are_no_lines(self):
        assert draw(FULL, 0, 0, np.zeros(0, int)).shape == (0, len(COLUMNS))


class TestResize:
    @pytest.mark.parametrize(("stored", "size"), [(96, 64), (256, 224), (96, 96), (64, 96)])
    def test_equals_pillow_to_one_level(self, stored, size):
        pixels = np.random.default_rng(1).integers(0, 256, (2, stored, stored, 3), dtype=np.uint8)
        batch = make_batch(pixels, np.full((2, 14, 2), 10.0))
        expected = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.BILINEAR)) for p in pixels])
        seen = resize(batch.images, (size, size)).permute(0, 2, 3, 1).numpy()
        assert np.abs(seen.astype(int) - expected).max() <= 1
        finished = finish(batch, (size, size), LSP14)
        assert torch.equal(finished.images, Normalise()(resize(batch.images, (size, size))))
        torch.testing.assert_close(finished.keypoints, batch.keypoints * size / stored)

    def test_keypoints_and_blobs_shrink_alike(self):
        batch, points = one_joint_per_image(256, augment=None)
        finished = finish(replace(batch, augment=None), (96, 96), LSP14)
        found = centroids(finished.images)
        assert np.abs(found - points[np.arange(14), np.arange(14)] * 96 / 256).max() < 0.1

    def test_an_unchanged_view_keeps_labels_outside_it(self):
        batch = make_batch(np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 14, 2), -3.0))
        finished = finish(batch, (64, 64), LSP14)
        assert finished.labelled.all()
        assert finished.presence.all()


class TestWarp:
    CHANGES = (
        {"rotate": math.radians(25)},
        {"scale": 1.25},
        {"scale": 0.8},
        {"right": 0.09, "down": -0.06},
        {"flip": 1.0},
        {"scale": 1.15, "rotate": math.radians(-28), "right": -0.05, "down": 0.08, "flip": 1.0},
        {"scale": 0.85, "rotate": math.radians(17), "right": 0.05, "down": 0.02},
    )

    @pytest.mark.parametrize("columns", CHANGES)
    @pytest.mark.parametrize(("stored", "size"), [(128, 128), (160, 112)])
    def test_keypoints_follow_the_pixels(self, columns, stored, size):
        batch, _ = one_joint_per_image(stored, change(14, **columns))
        finished = finish(batch, (size, size), LSP14)
        # A mirrored person's right ankle is where the left one was.
        shown = LSP14.mirror if columns.get("flip") else np.arange(14)
        expected = finished.keypoints.numpy()[np.arange(14), shown]
        assert np.abs(centroids(finished.images) - expected).max() < 0.1
        assert finished.labelled.all()

    @pytest.mark.parametrize("columns", CHANGES)
    def test_to_original_leads_back(self, columns):
        batch, points = one_joint_per_image(128, change(14, **columns))
        finished = finish(batch, (96, 96), LSP14)
        affine = finished.to_original.numpy().astype(np.float64)
        back = np.einsum("bij,bkj->bki", affine[:, :, :2], finished.keypoints.numpy()) + affine[:, None, :, 2]
        original = points * [3, 2] + [5, -7]
        if columns.get("flip"):
            original = original[:, LSP14.mirror]
        assert np.abs(back - original).max() < 1e-2

    def test_signs_are_as_documented(self):
        image, points = np.zeros((1, 100, 100, 3), np.uint8), np.tile([[80.0, 50.0]], (1, 14, 1))

        def moved(**columns: float) -> list[float]:
            finished = finish(make_batch(image, points, change(1, **columns)), (100, 100), LSP14)
            return finished.keypoints[0, 0].round(decimals=3).tolist()

        assert moved(rotate=math.pi / 2) == [50, 80]
        assert moved(scale=1.5) == [95, 50]
        assert moved(right=0.1, down=-0.2) == [90, 30]
        assert moved(flip=1.0) == [20, 50]
        assert moved(right=0.1, flip=1.0) == [10, 50]

    def test_pixels_equal_scipy_s_warp(self):
        rng = np.random.default_rng(2)
        pixels = ndimage.gaussian_filter(rng.uniform(0, 255, (1, 64, 64, 3)), (0, 2, 2, 0)).astype(np.uint8)
        angle, scale = math.radians(20), 1.1
        augment = change(1, rotate=angle, scale=scale, right=0.05)
        seen = finish(make_batch(pixels, np.full((1, 14, 2), 32.0), augment), (64, 64), LSP14).images[0]
        turn = scale * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # y, x
        middle = np.array([31.5, 31.5])
        back = np.linalg.inv(turn)
        offset = middle - back @ (middle + np.array([0, 0.05 * 64]))
        for channel, plane in enumerate(Normalise()(torch.from_numpy(pixels).permute(0, 3, 1, 2))[0].numpy()):
            expected = ndimage.affine_transform(plane, back, offset, order=1)
            inside = ndimage.affine_transform(np.ones_like(plane), back, offset, order=1) > 0.999
            inside &= ndimage.binary_erosion(inside)
            assert inside.mean() > 0.7
            assert np.abs(seen[channel].numpy() - expected)[inside].max() < 1e-3

    def test_the_mirror_alone_is_exact(self):
        pixels = np.random.default_rng(3).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
        batch = make_batch(pixels, np.full((2, 14, 2), 10.0), change(2, flip=1.0))
        plain = finish(replace(batch, augment=None), (48, 48), LSP14).images
        torch.testing.assert_close(finish(batch, (48, 48), LSP14).images, plain.flip(3), rtol=0, atol=1e-4)

    def test_no_change_is_the_plain_view(self):
        pixels = np.random.default_rng(3).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
        batch = make_batch(pixels, np.full((2, 14, 2), 10.0), change(2))
        plain = finish(replace(batch, augment=None), (32, 32), LSP14)
        torch.testing.assert_close(finish(batch, (32, 32), LSP14).images, plain.images, rtol=0, atol=1e-4)

    def test_labels_swap_with_their_joints(self):
        batch = make_batch(np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 14, 2), 10.0))
        ankle, other = LSP14.index("left_ankle"), LSP14.index("right_ankle")
        batch.labelled[:, ankle] = False
        batch.presence[:, ankle] = 0
        augment = torch.cat([change(1), change(1, flip=1.0)])
        finished = finish(replace(batch, augment=augment), (32, 32), LSP14)
        assert finished.labelled[:, [ankle, other]].tolist() == [[False, True], [True, False]]
        assert finished.presence[:, [ankle, other]].tolist() == [[0, 1], [1, 0]]

    def test_a_joint_that_leaves_the_view_is_not_labelled(self):
        points = np.full((1, 14, 2), 32.0)
        points[0, 3] = [60, 32]
        batch = make_batch(np.zeros((1, 64, 64, 3), np.uint8), points, change(1, right=0.1))
        finished = finish(batch, (64, 64), LSP14)
        assert np.flatnonzero(~finished.labelled[0].numpy()).tolist() == [3]
        assert np.flatnonzero(finished.presence[0].numpy() == 0).tolist() == [3]


class TestColourAndErase:
    def test_colour_is_what_it_says_in_bytes(self):
        pixels = np.random.default_rng(5).integers(60, 180, (1, 16, 16, 3), dtype=np.uint8)
        columns = {"contrast": 1.2, "red": 1.1, "green": 0.9, "blue": 1.0}
        batch = make_batch(pixels, np.full((1, 14, 2), 8.0), change(1, **columns))
        mean = np.array([123.675, 116.28, 103.53])
        wanted = ((pixels[0] - mean) * 1.2 + mean) * [1.1, 0.9, 1.0]
        expected = (np.clip(wanted, 0, 255) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        seen = finish(batch, (16, 16), LSP14).images[0].permute(1, 2, 0).numpy()
        assert np.abs(seen - expected).max() < 1e-3

    def test_stays_between_black_and_white(self):
        pixels = np.random.default_rng(5).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
        augment = torch.from_numpy(draw(AugmentParams(colour=1.0), 0, 0, np.arange(8)))
        seen = finish(make_batch(pixels, np.full((8, 14, 2), 8.0), augment), (16, 16), LSP14).images
        assert (seen >= Normalise().black).all()
        assert (seen <= Normalise().white).all()
        assert (seen == Normalise().white).any()

    def test_new_ground_keeps_the_mean_colour(self):
        columns = {"right": 0.1, "contrast": 1.3, "red": 1.2}
        batch = make_batch(np.full((1, 40, 40, 3), 30, np.uint8), np.full((1, 14, 2), 8.0), change(1, **columns))
        seen = finish(batch, (40, 40), LSP14).images[0]
        assert torch.equal(seen[:, :, :4], torch.zeros(3, 40, 4))
        assert (seen[:, :, 5:] != 0).all()

    def test_erases_one_rectangle_and_no_label(self):
        columns = {"erase_x": 0.5, "erase_y": 0.25, "erase_width": 0.25, "erase_height": 0.5}
        batch = make_batch(np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 14, 2), 16.0), change(1, **columns))
        finished = finish(batch, (32, 32), LSP14)
        erased = np.zeros((32, 32), bool)
        erased[0:16, 12:20] = True
        assert np.array_equal((finished.images[0] == 0).all(dim=0).numpy(), erased)
        assert finished.labelled.all()


def test_the_same_bits_twice_and_in_any_batch():
    pixels = np.random.default_rng(6).integers(0, 256, (7, 96, 96, 3), dtype=np.uint8)
    points = np.random.default_rng(6).uniform(0, 96, (7, 14, 2))
    augment = torch.from_numpy(draw(FULL, 0, 0, np.arange(7)))
    whole = finish(make_batch(pixels, points, augment), (64, 64), LSP14)
    again = finish(make_batch(pixels, points, augment), (64, 64), LSP14)
    alone = finish(make_batch(pixels[5:6], points[5:6], augment[5:6]), (64, 64), LSP14)
    for name in ("images", "keypoints", "labelled", "presence", "to_original"):
        assert torch.equal(getattr(whole, name), getattr(again, name))
        assert torch.equal(getattr(whole, name)[5:6], getattr(alone, name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_what_the_cpu_sees():
    pixels = np.random.default_rng(6).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    augment = torch.from_numpy(draw(FULL, 0, 0, np.arange(4)))
    batch = make_batch(pixels, np.full((4, 14, 2), 40.0), augment)
    here = finish(batch, (64, 64), LSP14)
    there = finish(batch.to(torch.device("cuda")), (64, 64), LSP14).to(torch.device("cpu"))
    # One level of 255, in units of the deviation, where the two resizes round differently.
    assert (here.images - there.images).abs().max() < 3 / (255 * 0.224)
    assert (here.images - there.images).abs().mean() < 1e-3
    torch.testing.assert_close(here.keypoints, there.keypoints, rtol=0, atol=1e-3)
    torch.testing.assert_close(here.to_original, there.to_original, rtol=0, atol=1e-3)
