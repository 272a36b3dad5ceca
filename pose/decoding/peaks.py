"""From maps to the one position of each joint: the highest cell, and a quarter of a cell towards its neighbours.

Positions are continuous: cell (i, j) of a map is centred at x = j + 0.5, y = i + 0.5. Pure tensor code that exports.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROWS = 2
"""Rows of a map that are searched together, or what divides its height with that."""


def highest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The highest cell of [B, K, h, w] maps: [B, K, 2] int64, column and row, and its values [B, K].

    Of equal cells the first in reading order. The maxima of a few rows at a time are taken by vector instructions,
    which an index search over all cells is not; only the rows that hold the maximum are searched.
    """
    people, joints, height, width = maps.shape
    rows = math.gcd(height, ROWS)
    strips = maps.reshape(people * joints, height // rows, rows * width)
    strip = strips.amax(dim=2).argmax(dim=1)
    first = torch.arange(people * joints, device=maps.device) * (height // rows)
    values, place = strips.flatten(0, 1).index_select(0, first + strip).max(dim=1)
    index = (strip * (rows * width) + place).view(people, joints)
    column = index % width
    return torch.stack([column, (index - column) // width], dim=2), values.view(people, joints)


def quarter(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, K, 2] on the map and values [B, K] of the highest cells, as the SimpleBaseline release reads them.

    A quarter of a cell towards the higher neighbour along x and along y, unless the cell is within one of the map's
    upper and left or on its lower and right edge; a map that is nowhere positive says its first cell.
    """
    cells, values = highest(maps)
    height, width = maps.shape[-2:]
    cells = torch.where((values > 0)[..., None], cells, 0)
    column, row = cells[..., 0], cells[..., 1]
    inner = (column > 1) & (column < width - 1) & (row > 1) & (row < height - 1)
    # Edge cells read anything here: they are not moved.
    index = torch.where(inner, row * width + column, width + 1)
    near = torch.stack([index + 1, index - 1, index + width, index - width], dim=2).clamp(0, height * width - 1)
    right, left, below, above = maps.flatten(2).gather(2, near).unbind(dim=2)
    offset = torch.stack([(right - left).sign(), (below - above).sign()], dim=2) * inner[..., None]
    return cells + 0.5 + 0.25 * offset, values


def mass(maps: Tensor, cells: Tensor, radius: int) -> Tensor:
    """[B, K], the sum of [B, K, h, w] over the square of cells at most `radius` from `cells` [B, K, 2].

    Of a probability over all cells this is the probability that the joint is there, however wide the peak is.
    """
    return patches(maps, cells, radius).sum(dim=(2, 3))


def patches(maps: Tensor, cells: Tensor, radius: int) -> Tensor:
    """[B, K, 2r+1, 2r+1], the squares of [B, K, h, w] about `cells` [B, K, 2] (column, row); 0 outside the map."""
    height, width = maps.shape[-2:]
    steps = torch.arange(-radius, radius + 1, device=maps.device)
    columns, rows = cells[..., 0, None] + steps, cells[..., 1, None] + steps
    index = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    values = maps.flatten(2).gather(2, index.flatten(2)).unflatten(2, (2 * radius + 1, 2 * radius + 1))
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return values * (inside_rows[..., :, None] & inside_columns[..., None, :])
