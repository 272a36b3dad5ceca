"""The symmetric spatial transformer of RMPE: an affine view of a person, and the way back for what is found in it.

Coordinates are shares of a view: -1 and 1 are its outer edges, x right, y down, whatever its size in pixels. theta
[B, 2, 3] sends a place in the transformed view to the place in the input that it shows (RMPE, equation 1); the inverse
sends maps of the transformed view back (equation 2: linear part inverted, shift minus that times theta's).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRETCH, TURN, SHIFT = 0.6, 0.35, 0.8
"""How far theta's diagonal, its other linear entries and its shift may leave the identity. The determinant is at least
(1 - STRETCH)^2 - TURN^2 = 0.0375, so that the way back always exists; the paper leaves theta free."""


GAIN = 0.1
"""Of the regressor. Under Adam each of its weights moves by the learning rate, all channels add up, and a view that
jumps in its first steps undoes what the pose network has learnt."""


class Localisation(nn.Module):
    """[B, 3, H, W] to theta [B, 2, 3] float32. Fresh weights answer with the identity, exactly.

    trunk: [B, 3, H, W] to [B, channels, h, w].
    """

    bound: Tensor

    def __init__(self, trunk: nn.Module, channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.regressor = nn.Linear(channels, 6)
        nn.init.zeros_(self.regressor.weight)
        nn.init.zeros_(self.regressor.bias)
        bound = torch.tensor([STRETCH, TURN, SHIFT, TURN, STRETCH, SHIFT])
        self.register_buffer("bound", bound, persistent=False)

    @property
    def fresh(self) -> bool:
        """Whether it answers with the identity whatever it sees."""
        return not (self.regressor.weight.any() or self.regressor.bias.any())

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        pooled = self.trunk(images).mean(dim=(2, 3))
        change = self.bound * torch.tanh(GAIN * self.regressor(pooled).float())
        return identity(change) + change.view(-1, 2, 3)


def identity(like: Tensor) -> Tensor:
    """[1, 2, 3], the view as it is, on the device and in the precision of `like`."""
    return torch.eye(2, 3, dtype=like.dtype, device=like.device)[None]


def invert(theta: Tensor) -> Tensor:
    """[B, 2, 3], the maps back."""
    a, b, c, d = theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1]
    adjugate = torch.stack([torch.stack([d, -b], dim=1), torch.stack([-c, a], dim=1)], dim=1)
    linear = adjugate / (a * d - b * c)[:, None, None]
    return torch.cat([linear, -(linear @ theta[:, :, 2:])], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """[B, 2, 3], the map that applies `inner` first."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    return torch.cat([linear, outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]], dim=2)


def warp(maps: Tensor, theta: Tensor) -> Tensor:
    """[B, C, H, W] float32 of the same size, each cell read bilinearly where theta sends its centre; 0 outside."""
    height, width = maps.shape[-2:]
    x = (2 * torch.arange(width, dtype=theta.dtype, device=theta.device) + 1) / width - 1
    y = (2 * torch.arange(height, dtype=theta.dtype, device=theta.device) + 1) / height - 1
    along = theta[:, None, None, :, 0] * x[:, None]  # [B, 1, W, 2]
    across = theta[:, None, None, :, 1] * y[:, None, None] + theta[:, None, None, :, 2]  # [B, H, 1, 2]
    return _read(maps.to(theta.dtype), along + across)


def _read(maps: Tensor, grid: Tensor) -> Tensor:
    """[B, C, h, w], bilinearly, 0 outside. torch's own kernel has no deterministic gradient on a GPU."""
    if maps.is_cuda and torch.are_deterministic_algorithms_enabled():
        return read_by_gathering(maps, grid)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def read_by_gathering(maps: Tensor, grid: Tensor) -> Tensor:
    """[B, C, h, w]: `maps` [B, C, H, W] at the shares `grid` [B, h, w, 2], as grid_sample reads them."""
    height, width = maps.shape[-2:]
    x, y = (grid[..., 0] + 1) * width / 2 - 0.5, (grid[..., 1] + 1) * height / 2 - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    flat, total = maps.flatten(2), torch.zeros((), dtype=maps.dtype, device=maps.device)
    for column in (left, left + 1):
        for row in (top, top + 1):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(1)
            values = flat.gather(2, index[:, None].expand(-1, maps.shape[1], -1)).unflatten(2, grid.shape[1:3])
            total = total + values * weight[:, None]
    return total


def move(points: Tensor, theta: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, P, 2] pixels of a view of width and height `size`, sent through theta, in pixels of such a view."""
    half = points.new_tensor(size) / 2
    shares = points / half - 1
    return (shares @ theta[:, :, :2].transpose(1, 2) + theta[:, None, :, 2] + 1) * half
