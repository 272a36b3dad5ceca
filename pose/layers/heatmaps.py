"""Gaussian target maps, the losses that train towards them, and how map cells and input pixels correspond.

Positions on a map are continuous like everything else: cell (i, j) covers [j, j+1) x [i, i+1), its centre is at +0.5,
and the map covers the whole input. The official SimpleBaseline release (Xiao, Wu & Wei, ECCV 2018) numbers pixels and
cells by their upper left ones instead and rounds joints to whole cells; `official` stands for that wherever it is
offered: cell p sits on pixel stride * p, both counted at their centres.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW = 3
"""Standard deviations from its centre at which an official Gaussian is cut off."""


def to_cells(keypoints: Tensor, map_size: tuple[int, int], input_size: tuple[int, int], official: bool) -> Tensor:
    """Input pixels [..., 2] to positions on the map; sizes are (width, height)."""
    shares = keypoints.new_tensor([cells / pixels for cells, pixels in zip(map_size, input_size, strict=True)])
    return (keypoints - 0.5) * shares + 0.5 if official else keypoints * shares


def to_pixels(positions: Tensor, map_size: tuple[int, int], input_size: tuple[int, int], official: bool) -> Tensor:
    """Positions on the map [..., 2] to input pixels: inverse of to_cells."""
    strides = positions.new_tensor([pixels / cells for cells, pixels in zip(map_size, input_size, strict=True)])
    return (positions - 0.5) * strides + 0.5 if official else positions * strides


def targets(
    keypoints: Tensor,
    labelled: Tensor,
    map_size: tuple[int, int],
    sigma: float,
    input_size: tuple[int, int],
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """Maps [B, K, h, w] with a Gaussian of height 1 and `sigma` cells about each joint, and their weights [B, K].

    keypoints: [B, K, 2] input pixels, anything where not `labelled` [B, K], NaN included. Sizes are (width, height).
    Weights are 1 where the joint is labelled, else 0, and the map of weight 0 is empty. Without `official` the centre
    is exact and a joint outside the map keeps what reaches into it. With it the centre is the nearest cell, the
    Gaussian ends after 3 sigma, and a joint whose window misses the map has weight 0. (The release's own test for
    that leaves weight 1 and an empty map to a window that ends right before the first cell; so does this.)
    """
    across, down, weight = _axes(keypoints, labelled, map_size, sigma, input_size, official)
    down = down * weight[..., None]
    return down[..., :, None] * across[..., None, :], weight


def mean_squared_error(maps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Half the squared error of [B, K, h, w], mean over all maps; maps of weight 0 count as right (the paper's loss).

    Missing joints dilute the mean and change no other joint's gradient.
    """
    return 0.5 * ((maps.float() - target).square().mean(dim=(2, 3)) * weight).mean()


def cross_entropy(
    maps: Tensor,
    keypoints: Tensor,
    labelled: Tensor,
    sigma: float,
    input_size: tuple[int, int],
    official: bool = False,
) -> Tensor:
    """Divergence in nats of softmax over all cells of [B, K, h, w] from the Gaussian normalised over the cells.

    Mean over the labelled joints; zero, with zero gradients, where there is none. It is the cross-entropy less the
    target's own entropy, so that 0 is perfect, with the same gradients. Unlike a squared error, whose gradient is
    spread thin over all the empty cells, its pull does not depend on how few cells the joint covers.
    The two-dimensional target is never made: it is a product of its axes.
    """
    map_size = (maps.shape[-1], maps.shape[-2])
    across, down, weight = _axes(keypoints, labelled, map_size, sigma, input_size, official)
    logits = maps.float()
    across, down = _normalised(across), _normalised(down)
    expected = (torch.matmul(logits, across[..., None])[..., 0] * down).sum(dim=2)
    entropy = -(torch.xlogy(across, across).sum(dim=2) + torch.xlogy(down, down).sum(dim=2))
    divergence = logits.flatten(2).logsumexp(dim=2) - expected - entropy
    return (divergence * weight).sum() / weight.sum().clamp(min=1)


def _axes(
    keypoints: Tensor,
    labelled: Tensor,
    map_size: tuple[int, int],
    sigma: float,
    input_size: tuple[int, int],
    official: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The Gaussian along x [B, K, w] and along y [B, K, h], and the weight [B, K]."""
    known = torch.where(labelled[..., None], keypoints.float(), 0.0)
    positions = to_cells(known, map_size, input_size, official)
    seen = labelled
    if official:
        # Adding a half and cutting towards zero rounds, except just left of and above the map.
        positions = positions.trunc()
        size = positions.new_tensor(map_size)
        reach = int(WINDOW * sigma)
        seen = labelled & ((positions - reach < size) & (positions + reach + 1 >= 0)).all(dim=2)
        positions = positions + 0.5
    axes: list[Any] = []
    for axis, cells in enumerate(map_size):
        centres = torch.arange(cells, dtype=torch.float32, device=keypoints.device) + 0.5
        distance = centres - positions[..., axis, None]
        curve = torch.exp(distance.square() * (-0.5 / sigma**2))
        axes.append(torch.where(distance.abs() <= reach, curve, 0.0) if official else curve)
    return axes[0], axes[1], seen.float()


def _normalised(curve: Tensor) -> Tensor:
    """[..., n] with sum 1, or all zero where nothing of the curve is on the map."""
    return curve / curve.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
