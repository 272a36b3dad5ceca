"""Non-separated AlexNet with an extra pooling, and the two heads.

conv11/4 96 - pool - conv5 256 - pool - conv3 384 - conv3 384 - POOL - conv3 256 - pool
- fc 4096 - presence 4096 - K
          - coordinates 4096 - 4096 - 2K

Source: Krizhevsky, Sutskever & Hinton 2012, in the report of pose.systems.two_headed: one stream instead of two (no
grouped convolutions), and a pooling after the fourth convolution, which cuts the first fully-connected layer ninefold.
All poolings are 3x3 with stride 2. The report does not mention local response normalisation; there is none here. The
stride of the first convolution is a parameter, 4 in the source: with it the poolings need 127 px of input, with 2
they make do with 67.
"""

from __future__ import annotations

from itertools import count
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import nn

from pose.config import Count
from pose.errors import ConfigError
from pose.layers.convolution import conv_relu
from pose.layers.weights import initialise
from pose.systems.base import Card
from pose.systems.two_headed import LICENCE, PROTOCOL, REPORT, TwoHeaded, TwoHeadedParams


class AlexNetParams(TwoHeadedParams):
    """Sizes of AlexNet."""

    channels: tuple[Count, Count, Count, Count, Count]
    stride: Literal[1, 2, 4]

    @model_validator(mode="after")
    def _survives_poolings(self) -> AlexNetParams:
        shorter = min(self.input_size)
        if last_side(shorter, self.stride) < 1:
            least = next(size for size in count(shorter) if last_side(size, self.stride) >= 1)
            raise ConfigError(
                f"systems.alexnet.input_size is {self.input_size}, but with systems.alexnet.stride {self.stride} "
                f"the four poolings need at least {least} px; enlarge the one or lower the other"
            )
        return self


class AlexNet(TwoHeaded):
    """AlexNet in one stream."""

    Params = AlexNetParams
    card: ClassVar[Card] = Card(
        title="AlexNet, non-separated, extra pooling",
        source=f"Krizhevsky, Sutskever & Hinton, NIPS 2012, in a {REPORT}",
        published=f"88.82 % {PROTOCOL}",
        licence=LICENCE,
    )

    def build(self) -> nn.Module:
        """[B, 3, S, S] to the outputs of PresenceCoordinates."""
        p = self.params
        width, height = (last_side(side, p.stride) for side in p.input_size)
        features = alexnet_features(p.channels, p.stride, batch_norm=p.batch_norm)
        return self.heads(features, p.channels[-1] * width * height)


def alexnet_features(channels: tuple[int, ...], stride: int, *, batch_norm: bool) -> nn.Sequential:
    """[B, 3, S, S] to [B, channels[4], s, s] with s = last_side(S, stride)."""
    c1, c2, c3, c4, c5 = channels
    features = nn.Sequential(
        *conv_relu(3, c1, 11, stride=stride, padding=2, batch_norm=batch_norm),
        nn.MaxPool2d(3, 2),
        *conv_relu(c1, c2, 5, batch_norm=batch_norm),
        nn.MaxPool2d(3, 2),
        *conv_relu(c2, c3, 3, batch_norm=batch_norm),
        *conv_relu(c3, c4, 3, batch_norm=batch_norm),
        nn.MaxPool2d(3, 2),
        *conv_relu(c4, c5, 3, batch_norm=batch_norm),
        nn.MaxPool2d(3, 2),
    )
    initialise(features, overlapping_pools=True)
    return features


def last_side(input_size: int, stride: int) -> int:
    """Cells along the last map's side: one strided convolution, then four poolings. Below 1: the input is too small."""
    side = (input_size + 2 * 2 - 11) // stride + 1
    for _ in range(4):
        side = (side - 3) // 2 + 1
    return side
