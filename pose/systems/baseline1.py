"""Baseline-1: two convolutions with a pooling each, then the two heads.

conv5 32 - pool - conv5 64 - pool - fc 1024 - presence 512 - K
                                            - coordinates 1024 - 512 - 2K

Source: see pose.systems.two_headed. The report gives the sequence of layers; kernel, channels, widths and the input
of 128 px are ours (at 224 px the first fully-connected layer alone would have 205 million weights).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from pose.config import Count
from pose.layers.convolution import conv_pool_features
from pose.systems.base import Card
from pose.systems.two_headed import LICENCE, PROTOCOL, REPORT, TwoHeaded, TwoHeadedParams


class Baseline1Params(TwoHeadedParams):
    """Sizes of Baseline-1."""

    channels: tuple[Count, Count]
    kernel: Literal[3, 5, 7]


class Baseline1(TwoHeaded):
    """The report's smallest network."""

    Params = Baseline1Params
    card: ClassVar[Card] = Card(
        title="Baseline-1",
        source=f"{REPORT}: two convolutions, each with a pooling",
        published=f"82.53 % {PROTOCOL}",
        licence=LICENCE,
    )

    def build(self) -> nn.Module:
        """[B, 3, S, S] to the outputs of PresenceCoordinates."""
        p = self.params
        width, height = p.input_size
        features = conv_pool_features(p.channels, p.kernel, batch_norm=p.batch_norm)
        return self.heads(features, p.channels[-1] * (width // 4) * (height // 4))
