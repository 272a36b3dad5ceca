"""Crop maps: exact round trips, and pixels that lie where the map says, against an independent area average."""

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.config import CropParams
from pose.data import crops
from pose.data.crops import PADDING, crop_affine, extract, invert, transform

SQUASHED = CropParams(view="image", size=64)
PERSON = CropParams(view="person", size=64, margin=1.25)
BOXES = [(10.0, 20.0, 60.5, 140.25), (-30.0, 5.0, 40.0, 25.0), (0.0, 0.0, 200.0, 150.0)]


@pytest.mark.parametrize("params", [SQUASHED, PERSON])
@pytest.mark.parametrize("box", BOXES)
def test_round_trip(params: CropParams, box: tuple[float, ...]) -> None:
    affine = crop_affine(params, np.array(box), (200, 150))
    points = np.random.default_rng(0).uniform(-50, 300, (40, 2))
    back = transform(invert(affine), transform(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_squashed_view_is_the_share_of_the_image() -> None:
    affine = crop_affine(SQUASHED, np.array(BOXES[0]), (200, 150))
    np.testing.assert_allclose(transform(affine, np.array([[50.0, 75.0], [200, 150]])), [[16, 32], [64, 64]])


@pytest.mark.parametrize("box", BOXES)
def test_person_view_is_the_square_around_the_box(box: tuple[float, ...]) -> None:
    x0, y0, x1, y1 = box
    affine = crop_affine(PERSON, np.array(box), (200, 150))
    half = 1.25 * max(x1 - x0, y1 - y0) / 2
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    np.testing.assert_allclose(transform(affine, centre[None])[0], [32, 32])
    np.testing.assert_allclose(transform(affine, np.array([centre - half, centre + half])), [[0, 0], [64, 64]])


def test_box_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no area"):
        crop_affine(PERSON, np.array([5.0, 5, 5, 5]), (200, 150))


def smooth_image(width: int, height: int) -> Image.Image:
    """A picture of slow waves, so that any shift of the sampling grid shows."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    waves = [np.sin(x / 17) + np.cos(y / 23), np.cos(x / 29 + y / 31), np.sin(y / 19 - x / 37)]
    return Image.fromarray(np.stack([127 + 55 * wave for wave in waves], axis=-1).round().astype(np.uint8))


def brute_force(image: Image.Image, affine: np.ndarray, size: int, supersample: int = 8) -> np.ndarray:
    """[size, size, 3]: each crop pixel averages what lies under a triangle of two pixels' width, point by point."""
    pixels = np.asarray(image, dtype=float)
    to_original = invert(affine)
    steps = (np.arange(2 * supersample) + 0.5) / supersample - 1
    tent = 1 - np.abs(steps)
    out = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            ys, xs = np.meshgrid(row + 0.5 + steps, column + 0.5 + steps, indexing="ij")
            x, y = transform(to_original, np.stack([xs.ravel(), ys.ravel()], axis=-1)).T
            inside = (x >= 0) & (x < image.width) & (y >= 0) & (y < image.height)
            weights = np.outer(tent, tent).ravel()
            values = np.tile(np.array(PADDING, dtype=float), (len(x), 1))
            values[inside] = pixels[y[inside].astype(int), x[inside].astype(int)]
            out[row, column] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize(
    ("params", "box", "tolerance"),
    [
        (CropParams(view="image", size=24), (0, 0, 1, 1), 3),
        (CropParams(view="person", size=24), (60.0, 40.0, 130.5, 110.25), 3),
        (CropParams(view="person", size=24), (-20.0, 60.0, 90.0, 160.0), 3),
    ],
)
def test_extract_against_brute_force(params: CropParams, box: tuple[float, ...], tolerance: float) -> None:
    image = smooth_image(203, 149)
    affine = crop_affine(params, np.array(box), image.size)
    crop = np.asarray(extract(image, affine, params.size), dtype=float)
    difference = np.abs(crop - brute_force(image, affine, params.size))
    inner = difference[2:-2, 2:-2]  # at the image's edge PIL renormalises its filter, the oracle pads
    assert np.percentile(inner, 99 if params.view == "image" else 90) < tolerance
    assert np.median(difference) < 1


def test_identity_crop_keeps_every_pixel() -> None:
    image = smooth_image(64, 64)
    crop = extract(image, crop_affine(SQUASHED, np.zeros(4), image.size), 64)
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(image))


def test_whole_image_sizes_never_show_padding() -> None:
    white = [Image.new("RGB", (w, h), (255, 255, 255)) for w, h in [(51, 1148), (1723, 34), (333, 77), (97, 101)]]
    for image in white:
        assert np.asarray(extract(image, crop_affine(SQUASHED, np.zeros(4), image.size), 64)).min() == 255


def test_outside_the_image_is_padding() -> None:
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    crop = np.asarray(extract(image, crop_affine(PERSON, np.array([-40.0, -40, 40, 40]), image.size), 64))
    assert crop[5, 5].tolist() == list(PADDING)
    assert crop[45, 45].tolist() == [255, 255, 255]


def test_of_a_large_picture_a_small_box_at_the_edge_is_as_sharp_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "MOST_PADDED", 10_000)
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    for box in ([-1.0, 30, 59, 80], [560, 350, 610, 390], [-9.5, 380, 20, 401]):
        affine = crop_affine(PERSON, np.array(box), (600, 400))
        found = np.asarray(extract(Image.fromarray(noise), affine, 64))
        # The same pixels where the whole picture has padding around it, which nothing has to be added to.
        wide = np.full((600, 800, 3), PADDING, np.uint8)
        wide[100:500, 100:700] = noise
        moved = affine + np.column_stack([np.zeros((2, 2)), -affine[:, :2] @ [100, 100]])
        np.testing.assert_allclose(found, extract(Image.fromarray(wide), moved, 64), atol=1)


@pytest.mark.parametrize("half", [150.0, 400.0, 1000.0])
def test_a_picture_is_shrunk_where_its_padding_would_be_too_large(half: float, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_image(203, 149)
    affine = crop_affine(PERSON, np.array([80 - half, 70 - half, 80 + half, 70 + half]), image.size)
    whole = np.asarray(extract(image, affine, 64)).astype(int)
    monkeypatch.setattr(crops, "MOST_PADDED", 100_000)
    shrunk = np.asarray(extract(image, affine, 64)).astype(int)
    assert (shrunk != whole).any()
    assert np.abs(shrunk - whole).mean() < 0.3
    assert np.abs(shrunk - whole).max() < 12
    assert np.abs(whole - PADDING).max() > 40


def test_a_large_box_at_the_corner_of_a_larger_picture_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth_image(1300, 1300)
    affine = crop_affine(PERSON, np.array([-300.0, -300.0, 600.0, 600.0]), image.size)
    whole = np.asarray(extract(image, affine, 64)).astype(int)
    monkeypatch.setattr(crops, "MOST_PADDED", 670_000)
    shrunk = np.asarray(extract(image, affine, 64)).astype(int)
    assert (shrunk != whole).any()
    assert np.abs(shrunk - whole).max() < 12


@pytest.mark.parametrize("half", [20_000.0, 3e9, 1e30])
def test_a_box_far_too_large_needs_no_more_memory(half: float) -> None:
    image = Image.new("RGB", (2000, 1000), (250, 0, 0))
    affine = crop_affine(PERSON, np.array([1000 - half, 500 - half, 1000 + half, 500 + half]), image.size)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        crop = np.asarray(extract(image, affine, 64), np.float64)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    # As much of the picture's colour as its share of the square.
    shown = (crop - PADDING).sum(axis=(0, 1)) / (np.array([250, 0, 0]) - PADDING)
    np.testing.assert_allclose(shown, 2000 * 1000 * affine[0, 0] * affine[1, 1], rtol=0.05, atol=0.01)
