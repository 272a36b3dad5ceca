"""The deconvolution head: from a trunk's small maps to heatmaps, twice the side with every layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

STD = 0.001
"""Of all first weights here, as the SimpleBaseline release draws them."""


def deconvolutions(inputs: int, channels: Sequence[int]) -> nn.Sequential:
    """[B, inputs, h, w] to [B, channels[-1], h * 2^n, w * 2^n]: per layer a 4x4 deconvolution of stride 2, batch
    normalisation, ReLU. Draws from torch's global generator.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *channels]):
        deconvolution = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
        draw(deconvolution)
        layers += [deconvolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def to_maps(inputs: int, joints: int) -> nn.Conv2d:
    """[B, inputs, h, w] to [B, joints, h, w], about zero before training."""
    layer = nn.Conv2d(inputs, joints, 1)
    draw(layer)
    return layer


def draw(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Small weights and no bias; a layer on the meta device is left alone."""
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
