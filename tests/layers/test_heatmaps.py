"""Targets against the release's way of drawing them, joint by joint; losses against torch's own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pose.layers.heatmaps import cross_entropy, mean_squared_error, targets, to_cells, to_pixels

INPUT, MAP = (192, 256), (48, 64)


def pixel_index_targets(keypoints: np.ndarray, visible: np.ndarray, sigma: int) -> tuple[np.ndarray, np.ndarray]:
    """The documented behaviour of the release for one person [K, 2] whose pixels are counted from 0 at their centres:
    rounded cell, window of 3 sigma pasted where it overlaps the map, no weight where it does not.
    """
    width, height = MAP
    maps, weights = np.zeros((len(keypoints), height, width), np.float32), visible.astype(np.float32)
    reach = 3 * sigma
    grid = np.arange(2 * reach + 1) - reach
    window = np.exp(-(grid[None, :] ** 2 + grid[:, None] ** 2) / (2 * sigma**2))
    for k, (x, y) in enumerate(keypoints):
        cx, cy = int(x / 4 + 0.5), int(y / 4 + 0.5)
        left, top, right, bottom = cx - reach, cy - reach, cx + reach + 1, cy + reach + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weights[k] = 0
        elif weights[k]:
            for row in range(max(top, 0), min(bottom, height)):
                for column in range(max(left, 0), min(right, width)):
                    maps[k, row, column] = window[row - top, column - left]
    return maps, weights


def joints(people: int = 6, count: int = 17, reach: float = 60.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    size = torch.tensor([float(s) for s in INPUT])
    keypoints = torch.rand(people, count, 2, generator=g) * (size + 2 * reach) - reach
    return keypoints, torch.rand(people, count, generator=g) > 0.2


@pytest.mark.parametrize("sigma", [2, 3])
def test_official_targets_are_the_release_s_for_every_joint_in_and_around_the_input(sigma):
    keypoints, labelled = joints()
    keypoints[0, 0] = torch.tensor([-30.0, 100.0])  # the window ends right before the first cell
    keypoints[0, 1] = torch.tensor([-3.4, -3.4])  # cut towards zero, not rounded down
    labelled[0, :2] = True
    maps, weight = targets(keypoints + 0.5, labelled, MAP, sigma, INPUT, official=True)
    for person in range(len(keypoints)):
        wanted, weights = pixel_index_targets(keypoints[person].numpy(), labelled[person].numpy(), sigma)
        np.testing.assert_allclose(maps[person].numpy(), wanted, atol=1e-6)
        np.testing.assert_array_equal(weight[person].numpy(), weights)
    assert 0 < weight.sum() < labelled.sum()


def test_exact_targets_are_the_gaussian_at_every_cell_centre():
    keypoints, labelled = joints(people=2, count=5, reach=10.0)
    maps, weight = targets(keypoints, labelled, MAP, 2.0, INPUT)
    assert torch.equal(weight, labelled.float())
    for person, joint in np.ndindex(2, 5):
        x, y = (keypoints[person, joint] / 4).tolist()
        for row, column in [(0, 0), (10, 20), (31, 40), (63, 47)]:
            distance = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2
            wanted = math.exp(-distance / 8) if labelled[person, joint] else 0.0
            assert maps[person, joint, row, column].item() == pytest.approx(wanted, abs=1e-6)


def test_joints_without_a_position_may_hold_anything():
    keypoints, labelled = joints()
    poisoned = torch.where(labelled[..., None], keypoints, torch.nan)
    for official in (False, True):
        clean, dirty = (targets(k, labelled, MAP, 2, INPUT, official) for k in (keypoints, poisoned))
        assert torch.equal(clean[0], dirty[0])
        assert torch.equal(clean[1], dirty[1])
    logits = torch.randn(6, 17, 64, 48, requires_grad=True)
    cross_entropy(logits, poisoned, labelled, 2.0, INPUT).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[~labelled].any()
    assert logits.grad[labelled].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("official", [False, True])
def test_cells_and_pixels_are_inverse(official):
    pixels = torch.rand(20, 2) * 200
    there = to_cells(pixels, MAP, INPUT, official)
    torch.testing.assert_close(to_pixels(there, MAP, INPUT, official), pixels)


def test_corners_of_map_and_input_coincide_and_officially_their_first_centres_do():
    assert to_pixels(torch.tensor([48.0, 64.0]), MAP, INPUT, official=False).tolist() == [192.0, 256.0]
    assert to_pixels(torch.tensor([0.5, 0.5]), MAP, INPUT, official=True).tolist() == [0.5, 0.5]
    assert to_pixels(torch.tensor([10.5, 20.75]), MAP, INPUT, official=True).tolist() == [40.5, 81.5]


def test_squared_error_is_the_release_s_mean_over_joints():
    keypoints, labelled = joints()
    target, weight = targets(keypoints, labelled, MAP, 2.0, INPUT)
    maps = torch.randn(6, 17, 64, 48)
    per_joint = [
        0.5 * F.mse_loss(maps[:, k] * weight[:, k, None, None], target[:, k] * weight[:, k, None, None])
        for k in range(17)
    ]
    torch.testing.assert_close(mean_squared_error(maps, target, weight), sum(per_joint) / 17)


def test_cross_entropy_is_torch_s_divergence_from_the_normalised_target():
    keypoints, labelled = joints(reach=0.0)
    logits = torch.randn(6, 17, 64, 48)
    target, _ = targets(keypoints, labelled, MAP, 2.0, INPUT)
    wanted = target.flatten(2)[labelled]
    wanted = wanted / wanted.sum(dim=1, keepdim=True)
    reference = F.kl_div(logits.flatten(2)[labelled].log_softmax(dim=1), wanted, reduction="batchmean")
    torch.testing.assert_close(cross_entropy(logits, keypoints, labelled, 2.0, INPUT), reference)


def test_cross_entropy_of_the_target_itself_is_zero_and_of_nothing_labelled_too():
    keypoints, labelled = joints(reach=0.0)
    target, _ = targets(keypoints, torch.ones_like(labelled), MAP, 2.0, INPUT)
    perfect = target.clamp(min=1e-30).log()
    assert cross_entropy(perfect, keypoints, labelled, 2.0, INPUT).item() == pytest.approx(0, abs=1e-5)
    logits = torch.randn(6, 17, 64, 48, requires_grad=True)
    loss = cross_entropy(logits, keypoints, torch.zeros_like(labelled), 2.0, INPUT)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
