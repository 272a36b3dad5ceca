"""Peaks against a plain loop over people and joints."""

import numpy as np
import pytest
import torch

from pose.decoding.peaks import highest, mass, patches, quarter
from pose.layers.heatmaps import targets


def per_joint(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documented behaviour of the release on [B, K, h, w]: cell indices with a quarter offset, and values."""
    people, count, height, width = maps.shape
    positions, values = np.zeros((people, count, 2)), np.zeros((people, count))
    for n, k in np.ndindex(people, count):
        best = int(np.argmax(maps[n, k]))
        x, y = best % width, best // width
        values[n, k] = maps[n, k, y, x]
        if values[n, k] <= 0:
            x = y = 0
        positions[n, k] = x, y
        if 1 < x < width - 1 and 1 < y < height - 1:
            across = maps[n, k, y, x + 1] - maps[n, k, y, x - 1]
            down = maps[n, k, y + 1, x] - maps[n, k, y - 1, x]
            positions[n, k] += 0.25 * np.sign([across, down])
    return positions, values


@pytest.mark.parametrize("shape", [(4, 17, 64, 48), (3, 5, 7, 9), (200, 3, 4, 5), (9, 3, 2, 2)])
def test_quarter_is_the_release_s_on_noise_with_peaks_at_every_edge(shape):
    maps = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    maps[0, 0] = -1 - np.abs(maps[0, 0])
    positions, values = quarter(torch.from_numpy(maps))
    wanted_positions, wanted_values = per_joint(maps)
    np.testing.assert_array_equal(positions.numpy() - 0.5, wanted_positions)
    np.testing.assert_array_equal(values.numpy(), wanted_values.astype(np.float32))


def test_of_equal_cells_the_first_in_reading_order_is_taken():
    maps = torch.zeros(1, 2, 6, 5)
    maps[0, 0, 2, 3] = maps[0, 0, 2, 1] = maps[0, 0, 4, 0] = 1.0
    cells, values = highest(maps)
    assert cells.tolist() == [[[1, 2], [0, 0]]]
    assert values.tolist() == [[1.0, 0.0]]


def test_quarter_is_at_most_a_quarter_cell_off_on_clean_gaussians():
    keypoints = 12 + 40 * torch.rand(8, 17, 2)
    maps, _ = targets(keypoints, torch.ones(8, 17, dtype=torch.bool), (16, 16), 1.5, (64, 64))
    error = 4 * quarter(maps)[0] - keypoints
    assert error.abs().max() <= 1.0 + 1e-4
    assert error.mean().abs() < 0.1


def test_patches_are_the_map_with_zeros_around_it():
    maps = torch.randn(2, 3, 6, 5)
    cells = torch.tensor([[0, 0], [4, 5], [2, 3]]).expand(2, 3, 2)
    padded = torch.nn.functional.pad(maps, (2, 2, 2, 2))
    found = patches(maps, cells, 2)
    for k, (x, y) in enumerate(cells[0].tolist()):
        assert torch.equal(found[:, k], padded[:, k, y : y + 5, x : x + 5])


def test_mass_of_a_probability_is_all_of_it_within_a_wide_radius():
    maps = torch.randn(2, 3, 6, 5).flatten(2).softmax(dim=2).unflatten(2, (6, 5))
    cells, values = highest(maps)
    torch.testing.assert_close(mass(maps, cells, 6), torch.ones(2, 3))
    torch.testing.assert_close(mass(maps, cells, 0), values)
