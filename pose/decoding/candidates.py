"""Candidate joints in a part detector's maps: cells that are the highest around, and where they expect the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from pose.layers.pair_terms import PairTerms
from pose.layers.part_detector import REFINEMENT, centres

NEVER = -1e9
"""A logit that no cell has."""


@dataclass(frozen=True)
class Candidates:
    """N candidates of one image, the likeliest first."""

    part: Tensor
    """[N] int64, kind of joint."""
    cell: Tensor
    """[N] int64, row * width + column."""
    probability: Tensor
    """[N]."""
    position: Tensor
    """[N, 2] input px."""
    offsets: Tensor
    """[N, K, 2] px: from the position to where each joint of the same person is expected; 0 where nothing says so."""
    valid: Tensor
    """[N] bool: at least the floor. The number of rows is fixed, so that an exported graph can have it."""
    above: Tensor
    """[] int64: cells of the image that were candidates, also those that found no room."""

    def chosen(self, rows: Tensor) -> Candidates:
        """These rows alone."""
        part, cell, probability, position = (c[rows] for c in (self.part, self.cell, self.probability, self.position))
        return Candidates(part, cell, probability, position, self.offsets[rows], self.valid[rows], self.above)


def find(
    maps: dict[str, Tensor], terms: PairTerms, most: int, floor: float, radius: int, *, places: bool = False
) -> Candidates:
    """The `most` likeliest cells of at least `floor` that are the highest within `radius` cells.

    maps: one image's scores [K, h, w], refinement [K, 2, h, w] and offsets [P, 2, h, w] of a PartDetector. places: of
    all kinds together, each cell as its likeliest kind; else kind by kind.
    """
    logits = maps["scores"].float()
    height, width = logits.shape[1:]
    # Not of probabilities, which are 1 for many a logit.
    seen, kind = logits.max(dim=0, keepdim=True) if places else (logits, None)
    best = (seen >= highest_around(seen, radius)) & (seen.sigmoid() >= floor)
    values = torch.where(best, seen, NEVER).flatten()
    top, index = values.topk(min(most, values.numel()))
    cell = index % (height * width)
    part = kind.flatten()[cell] if kind is not None else index // (height * width)
    return describe(maps, terms, part, cell, top.sigmoid(), top > NEVER, best.sum())


def describe(
    maps: dict[str, Tensor],
    terms: PairTerms,
    part: Tensor,
    cell: Tensor,
    probability: Tensor,
    valid: Tensor,
    above: Tensor,
) -> Candidates:
    """Positions and expectations of these cells as these kinds of joints."""
    _, height, width = maps["scores"].shape
    refinement = maps["refinement"].float().flatten(2)[part, :, cell] * REFINEMENT
    centre = centres(height, width, cell.device).flatten(0, 1)[cell]
    pair = terms.ordered[part]
    index = pair.clamp(min=0)
    offsets = maps["offsets"].float().flatten(2)[index, :, cell[:, None]] * terms.deviation[index] + terms.mean[index]
    # They were learnt from the cell's centre on.
    offsets = torch.where((pair >= 0)[..., None], offsets - refinement[:, None], 0.0)
    return Candidates(part, cell, probability, centre + refinement, offsets, valid, above)


def highest_around(maps: Tensor, radius: int) -> Tensor:
    """[K, h, w]: the largest value within a disc of so many cells."""
    _, height, _ = maps.shape
    result = maps
    for step in range(-radius, radius + 1):
        half = isqrt(radius**2 - step**2)
        row = F.max_pool2d(maps[None], (1, 2 * half + 1), 1, (0, half))[0]
        row = F.pad(row, (0, 0, radius, radius), value=NEVER)
        result = torch.maximum(result, row[:, radius + step : radius + step + height])
    return result
