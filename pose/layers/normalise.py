"""From bytes to the numbers networks are trained on; the same module in training and inside exported graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean colour, RGB in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation, RGB in [0, 1]."""


class Normalise(nn.Module):
    """[B, 3, H, W] RGB, uint8 or float in 0..255 -> float32 with ImageNet's mean 0 and deviation 1 per channel."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("inverse_std", 1 / (255 * torch.tensor(STD).view(1, 3, 1, 1)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The class's one job; see there."""
        return (images.float() - self.mean) * self.inverse_std

    @property
    def black(self) -> Tensor:
        """[1, 3, 1, 1], what 0 becomes."""
        return -self.mean * self.inverse_std

    @property
    def white(self) -> Tensor:
        """[1, 3, 1, 1], what 255 becomes."""
        return (255 - self.mean) * self.inverse_std
