"""DARK against the usual way: whole maps smoothed on the host, one Newton step per joint."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from pose.decoding.dark import dark
from pose.decoding.peaks import quarter
from pose.layers.heatmaps import targets, to_pixels

SIZE = (48, 64)


def whole_map(maps: np.ndarray, blur: int) -> np.ndarray:
    """[B, K, 2] cell indices from [B, K, h, w], following section 3.2 of the paper step by step."""
    people, count, height, width = maps.shape
    sigma = 0.3 * ((blur - 1) * 0.5 - 1) + 0.8
    kernel = np.exp(-((np.arange(blur) - blur // 2) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    positions = np.zeros((people, count, 2))
    for n, k in np.ndindex(people, count):
        y, x = np.unravel_index(np.argmax(maps[n, k]), (height, width))
        positions[n, k] = x, y
        if not (1 < x < width - 2 and 1 < y < height - 2):
            continue
        smooth = correlate1d(
            correlate1d(maps[n, k].astype(float), kernel, 0, mode="constant"), kernel, 1, mode="constant"
        )
        smooth *= maps[n, k].max() / smooth.max()
        log = np.log(np.maximum(smooth, 1e-10))
        gradient = np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
        dxx = (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2]) / 4
        dyy = (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x]) / 4
        dxy = (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1]) / 4
        positions[n, k] -= np.linalg.inv([[dxx, dxy], [dxy, dyy]]) @ gradient
    return positions


def gaussians(people: int = 8, margin: float = 0.0, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints [B, 17, 2] in input pixels, `margin` pixels from the edges, and their maps with noise."""
    g = torch.Generator().manual_seed(3)
    size = torch.tensor([192.0, 256.0])
    keypoints = margin + torch.rand(people, 17, 2, generator=g) * (size - 2 * margin)
    maps, _ = targets(keypoints, torch.ones(people, 17, dtype=torch.bool), SIZE, 2.0, (192, 256))
    return keypoints, maps + noise * torch.randn(maps.shape, generator=g)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("blur", [11, 17])
def test_smoothing_the_patch_alone_is_smoothing_the_map(noise, blur):
    _, maps = gaussians(noise=noise)
    wanted = whole_map(maps.numpy(), blur)
    np.testing.assert_allclose(dark(maps, blur)[0].numpy() - 0.5, wanted, atol=2e-4)


def test_encoding_and_decoding_is_unbiased_where_quarter_offsets_are_not_exact():
    keypoints, maps = gaussians(people=32, margin=40.0)
    errors = {
        decode: to_pixels(decode(maps)[0], SIZE, (192, 256), official=False) - keypoints for decode in (dark, quarter)
    }
    assert errors[dark].abs().max() < 0.02
    assert errors[dark].mean().abs() < 0.001
    assert errors[quarter].abs().mean() > 0.3


def test_a_step_never_leaves_for_the_unknown():
    maps = torch.zeros(1, 4, 12, 12)
    maps[0, 1] = 1.0  # flat: no maximum
    maps[0, 2, 5, :] = 1.0  # a ridge: no curvature along it
    maps[0, 3, 5, 5] = -1.0  # nothing positive
    positions, values = dark(maps)
    assert positions.isfinite().all()
    assert (positions - positions.floor() - 0.5).abs().max() <= 1.0
    assert values.tolist() == [[0.0, 1.0, 1.0, 0.0]]
