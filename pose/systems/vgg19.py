"""VGG-19 and the two heads.

[conv3 64]x2 - pool - [conv3 128]x2 - pool - [conv3 256]x4 - pool - [conv3 512]x4 - pool - [conv3 512]x4 - pool
- fc 4096 - presence 4096 - K
          - coordinates 4096 - 4096 - 2K

Source: Simonyan & Zisserman 2015, configuration E, in the report of pose.systems.two_headed. The coordinate head's
widths are ours: those of VGG's own fully-connected layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor, nn

from pose.config import Count
from pose.layers.presence_coordinates import PresenceCoordinates
from pose.layers.vgg import VGG19_BLOCKS, cells, load_imagenet_features, survives_poolings, vgg_features
from pose.systems.base import Card
from pose.systems.two_headed import LICENCE, PROTOCOL, REPORT, TwoHeaded, TwoHeadedParams


class Vgg19Params(TwoHeadedParams):
    """Sizes of VGG-19."""

    channels: tuple[Count, Count, Count, Count, Count]

    @model_validator(mode="after")
    def _survives_poolings(self) -> Vgg19Params:
        survives_poolings(self.input_size, "systems.vgg19.input_size")
        return self


class Vgg19(TwoHeaded):
    """VGG-19, from scratch or from ImageNet features."""

    Params = Vgg19Params
    card: ClassVar[Card] = Card(
        title="VGG-19",
        source=f"Simonyan & Zisserman, ICLR 2015, in a {REPORT}",
        published=f"84.44 % {PROTOCOL}",
        licence=f"{LICENCE}; torchvision's ImageNet weights, if loaded, are BSD-3 and ImageNet non-commercial",
    )

    def build(self) -> nn.Module:
        """[B, 3, S, S] to the outputs of PresenceCoordinates."""
        p = self.params
        features = vgg_features(VGG19_BLOCKS, p.channels, batch_norm=p.batch_norm)
        return self.heads(features, p.channels[-1] * cells(p.input_size))

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes the trunk of torchvision's vgg19 (with batch_norm: vgg19_bn). Raises TrainingError where it misfits."""
        assert isinstance(self.network, PresenceCoordinates)
        load_imagenet_features(self.network.features, state)
