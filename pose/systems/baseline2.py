"""Baseline-2: three convolutions with a pooling each, then the two heads.

conv5 32 - pool - conv5 64 - pool - conv5 128 - pool - fc 1024 - presence 512 - K
                                                              - coordinates 1024 - 512 - 2K

Source: see pose.systems.two_headed. The report gives the sequence of layers (its paragraph on the coordinate head
says "Baseline-1", which we read as a slip); kernel, channels, widths and the input of 128 px are ours.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from pose.config import Count
from pose.layers.convolution import conv_pool_features
from pose.systems.base import Card
from pose.systems.two_headed import LICENCE, PROTOCOL, REPORT, TwoHeaded, TwoHeadedParams


class Baseline2Params(TwoHeadedParams):
    """Sizes of Baseline-2."""

    channels: tuple[Count, Count, Count]
    kernel: Literal[3, 5, 7]


class Baseline2(TwoHeaded):
    """Baseline-1 with a third convolution."""

    Params = Baseline2Params
    card: ClassVar[Card] = Card(
        title="Baseline-2",
        source=f"{REPORT}: three convolutions, each with a pooling",
        published=f"83.21 % {PROTOCOL}",
        licence=LICENCE,
    )

    def build(self) -> nn.Module:
        """[B, 3, S, S] to the outputs of PresenceCoordinates."""
        p = self.params
        width, height = p.input_size
        features = conv_pool_features(p.channels, p.kernel, batch_norm=p.batch_norm)
        return self.heads(features, p.channels[-1] * (width // 8) * (height // 8))
