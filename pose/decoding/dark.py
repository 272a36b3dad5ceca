"""DARK: the peak of a Gaussian to a fraction of a cell, from a Newton step on the logarithm of the smoothed map.

Zhang et al., Distribution-Aware Coordinate Representation, CVPR 2020, section 3.2. The usual implementation smooths
whole maps on the host; the step only ever looks at the 5 x 5 cells about the highest one, so only they are smoothed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pose.decoding.peaks import highest, patches

BLUR = 11
"""Cells of the smoothing kernel along a side, the authors' choice for targets of sigma 2."""
FLOOR = 1e-10
"""Smallest value whose logarithm is taken, as a share of the map's highest."""
LONGEST = 1.0
"""Cells that one step may go along x and along y: further away the expansion about the highest cell says nothing."""


def dark(maps: Tensor, blur: int = BLUR) -> tuple[Tensor, Tensor]:
    """Positions [B, K, 2] on the map (continuous, cell centres at +0.5) and values [B, K] of the highest cells.

    maps: [B, K, h, w], Gaussian-like peaks on about zero. blur: odd side of the smoothing kernel, in cells.
    The highest cell is moved where two cells lie around it on every side and the smoothed map has a maximum near it.
    """
    cells, values = highest(maps)
    radius = blur // 2
    kernel = _band(blur, maps.device)
    near = patches(maps, cells, radius + 2).float() / values.float().clamp(min=FLOOR)[..., None, None]
    smooth = kernel @ near @ kernel.T  # [B, K, 5, 5]
    height, width = maps.shape[-2:]
    size = torch.tensor([width, height], device=maps.device)
    inner = ((cells > 1) & (cells < size - 2)).all(dim=2) & (values > 0)
    step = torch.where(inner[..., None], _newton(smooth.clamp(min=FLOOR).log()), 0.0)
    return cells + 0.5 + step, values


def _newton(log: Tensor) -> Tensor:
    """[..., 2] step from the centre of [..., 5, 5] to the maximum of its second-order expansion; 0 if it has none."""
    centre = log[..., 2, 2]
    dx = 0.5 * (log[..., 2, 3] - log[..., 2, 1])
    dy = 0.5 * (log[..., 3, 2] - log[..., 1, 2])
    dxx = 0.25 * (log[..., 2, 4] - 2 * centre + log[..., 2, 0])
    dyy = 0.25 * (log[..., 4, 2] - 2 * centre + log[..., 0, 2])
    dxy = 0.25 * (log[..., 3, 3] - log[..., 1, 3] - log[..., 3, 1] + log[..., 1, 1])
    determinant = dxx * dyy - dxy.square()
    peaked = (dxx < 0) & (determinant > 0)
    divisor = torch.where(peaked, determinant, 1.0)
    step = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=-1) / divisor[..., None]
    return torch.where(peaked[..., None], step, 0.0).clamp(-LONGEST, LONGEST)


def _band(blur: int, device: torch.device) -> Tensor:
    """[5, blur + 4]: smooths five neighbours in a row of blur + 4 values. Sigma follows the side: 2 cells for 11."""
    sigma = 0.3 * ((blur - 1) / 2 - 1) + 0.8
    steps = torch.arange(blur + 4, device=device) - torch.arange(5, device=device)[:, None] - blur // 2
    weights = torch.exp(steps.float().square() * (-0.5 / sigma**2)) * (steps.abs() <= blur // 2)
    return weights / weights[:1].sum()
