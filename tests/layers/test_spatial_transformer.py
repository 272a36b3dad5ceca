"""The transformer and its inverse: closed form, exact where bilinear reading is exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pose.layers.spatial_transformer import Localisation, compose, identity, invert, move, read_by_gathering, warp


def random_theta(count: int, seed: int = 0, strength: float = 0.3) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    change = strength * (2 * torch.rand(count, 2, 3, generator=g, dtype=torch.float64) - 1)
    return identity(change) + change


def test_inverse_is_the_paper_s_gamma():
    theta = random_theta(50)
    gamma = invert(theta)
    assert gamma[:, :, :2] == pytest.approx(torch.linalg.inv(theta[:, :, :2]), abs=1e-12)
    wanted = -(gamma[:, :, :2] @ theta[:, :, 2:])
    assert gamma[:, :, 2:] == pytest.approx(wanted, abs=1e-12)
    assert compose(gamma, theta) == pytest.approx(identity(theta).expand(50, 2, 3), abs=1e-12)
    assert compose(theta, gamma) == pytest.approx(identity(theta).expand(50, 2, 3), abs=1e-12)


@pytest.mark.parametrize("size", [(48, 64), (33, 20)])
def test_warping_there_and_back_gives_a_plane_back_exactly(size):
    """Bilinear reading is exact on planes, so there only the geometry can be wrong."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5, indexing="ij")
    plane = torch.stack([x, y, 3 + 0.7 * x - 1.3 * y])[None]
    theta = random_theta(8, strength=0.15)
    back = warp(warp(plane.expand(8, -1, -1, -1), theta), invert(theta))
    seen = warp(warp(torch.ones(8, 1, height, width, dtype=torch.float64), theta), invert(theta)) == 1
    assert seen.double().mean() > 0.4
    seen = F.max_pool2d((~seen).double(), 3, stride=1, padding=1) == 0  # a cell away from what was outside
    for channel in range(3):
        wanted = plane[0, channel].expand(8, height, width)[seen[:, 0]]
        assert back[:, channel][seen[:, 0]] == pytest.approx(wanted, abs=1e-9)


def test_identity_changes_nothing():
    maps = torch.randn(2, 5, 31, 17)
    assert warp(maps, identity(maps).expand(2, 2, 3)) == pytest.approx(maps, abs=1e-5)


def test_same_as_torchs_own_affine_grid():
    maps = torch.randn(6, 3, 20, 31)
    theta = random_theta(6).float()
    grid = F.affine_grid(theta, [6, 3, 20, 31], align_corners=False)
    assert warp(maps, theta) == pytest.approx(F.grid_sample(maps, grid, align_corners=False), abs=1e-4)


def test_reading_by_gathering_has_the_kernels_values_and_gradients():
    theta = random_theta(4, strength=0.5).requires_grad_()
    maps = torch.randn(4, 3, 20, 31, dtype=torch.float64, requires_grad=True)
    grid = F.affine_grid(theta, [4, 3, 12, 17], align_corners=False)
    wanted = F.grid_sample(maps, grid, align_corners=False)
    got = read_by_gathering(maps, grid)
    assert torch.allclose(got, wanted, atol=1e-9)
    assert (wanted == 0).any(), "some of it lies outside"
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((got * weights).sum(), (maps, theta), retain_graph=True),
        torch.autograd.grad((wanted * weights).sum(), (maps, theta)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_points_go_where_pixels_go():
    """A blob at a place of the input appears where the inverse sends that place, and `move` sends it back."""
    width, height = 64, 48
    theta = random_theta(10, seed=2, strength=0.2)
    at = torch.tensor([[[30.0, 22.0]]], dtype=torch.float64).expand(10, 1, 2)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    blob = torch.exp(-((x - 30) ** 2 + (y - 22) ** 2) / 50)[None, None].double()
    seen = warp(blob.expand(10, 1, height, width), theta)[:, 0]
    mass = seen.sum(dim=(1, 2))
    centre = torch.stack([(seen * x).sum(dim=(1, 2)) / mass, (seen * y).sum(dim=(1, 2)) / mass], dim=1)
    there = move(at, invert(theta), (width, height))
    assert centre == pytest.approx(there[:, 0], abs=0.1)
    assert move(there, theta, (width, height)) == pytest.approx(at, abs=1e-9)


def test_a_quarter_turn_in_pixels():
    theta = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert move(torch.tensor([[[10.0, 3.0]]]), theta, (10, 10)).tolist() == [[[7.0, 10.0]]]


def test_fresh_localisation_answers_with_the_identity_and_can_leave_it():
    torch.manual_seed(0)
    net = Localisation(nn.Conv2d(3, 8, 3, stride=2), 8)
    images = torch.randn(4, 3, 20, 16)
    assert torch.equal(net(images), identity(images).expand(4, 2, 3))
    net(images).square().sum().backward()
    assert net.regressor.weight.grad.abs().sum() > 0


def test_the_way_back_exists_for_any_weights():
    net = Localisation(nn.Identity(), 3)
    nn.init.normal_(net.regressor.weight, std=1000)
    theta = net(torch.randn(2000, 3, 4, 4))
    determinant = torch.linalg.det(theta[:, :, :2])
    assert determinant.min() > 0.037
    assert determinant.max() < 1.6**2 + 0.35**2 + 1e-3
    assert math.isfinite(invert(theta).abs().max().item())
