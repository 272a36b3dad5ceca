"""A pose network like the released FastPose: squeeze-and-excitation ResNet, pixel shuffle, dense upsampling.

conv7/2 - pool/2 - ResNet's four layers - shuffle 2 - [conv3 4c - shuffle 2 -> c] per upsampling - conv3 K

Squeeze and excitation (Hu et al., CVPR 2018) scales what the first block of each of the four layers adds. Dense
upsampling is a convolution to four times the channels, batch normalisation, ReLU and a shuffle of 2 x 2 cells. First
weights, and the REDUCTION inside squeeze and excitation, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pose.layers.deconvolution import draw
from pose.layers.resnet import Basic, Bottleneck, Depth, ResNet
from pose.layers.weights import initialise

REDUCTION = 16
"""Channels per hidden unit, as in the paper on squeeze and excitation."""
LEAST_HIDDEN = 4
"""Hidden units, at the least."""


class Excitation(nn.Module):
    """[B, C, H, W] to the same shape: each channel by a factor in (0, 1) that depends on all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(LEAST_HIDDEN, channels // REDUCTION)
        self.factors = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )
        initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return features * self.factors(features.mean(dim=(2, 3)))[:, :, None, None]


def squeeze_and_excitation_resnet(depth: Depth, width: int) -> ResNet:
    """The ResNet whose layers begin with an excited block."""
    trunk = ResNet(depth, width)
    for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        first = layer[0]
        if isinstance(first, Bottleneck):
            first.bn3 = nn.Sequential(first.bn3, Excitation(first.bn3.num_features))  # type: ignore[assignment]
        else:
            assert isinstance(first, Basic)
            first.bn2 = nn.Sequential(first.bn2, Excitation(first.bn2.num_features))  # type: ignore[assignment]
    return trunk


class FastPose(nn.Module):
    """[B, 3, H, W], sides multiples of 32, to one map per joint [B, K, h, w]; cells are 16 px / 2^len(upsampling)."""

    def __init__(self, depth: Depth, width: int, upsampling: Sequence[int], joints: int) -> None:
        super().__init__()
        self.trunk = squeeze_and_excitation_resnet(depth, width)
        layers: list[nn.Module] = [nn.PixelShuffle(2)]
        for before, after in pairwise([self.trunk.channels // 4, *upsampling]):
            layers += [
                nn.Conv2d(before, 4 * after, 3, padding=1, bias=False),
                nn.BatchNorm2d(4 * after),
                nn.ReLU(inplace=True),
                nn.PixelShuffle(2),
            ]
        self.upsampling = nn.Sequential(*layers)
        initialise(self.upsampling)
        self.maps = nn.Conv2d(upsampling[-1], joints, 3, padding=1)
        draw(self.maps)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.maps(self.upsampling(self.trunk(images)))
