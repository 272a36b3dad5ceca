"""VGG-16 with batch normalisation, regressing coordinates through one hidden layer.

[conv3 64]x2 - pool - [conv3 128]x2 - pool - [conv3 256]x3 - pool - [conv3 512]x3 - pool - [conv3 512]x3 - pool
- dropout - fc 512 - 2K

Source: a University of Guelph course report on LSP-extended, whose table of 48 layers this is: 27,583,068 parameters
at 224 px with 14 joints. It trains with MSE and SGD. It leaves open the dropout (0.5 here), the order of the 28 outputs
(joint by joint, x before y), the normalisation of its targets (shares of the input side here) and what it did about
joints without a position (left out of the loss here).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pose.config import Count, SystemParams
from pose.data.batch import Batch
from pose.layers.presence_coordinates import coordinates_loss
from pose.layers.vgg import VGG16_BLOCKS, cells, load_imagenet_features, survives_poolings, vgg_features
from pose.layers.weights import initialise, initialise_output
from pose.systems.base import Card, Joints, System
from pose.systems.two_headed import Dropout


class Vgg16RegressorParams(SystemParams):
    """Sizes of the VGG-16 regressor."""

    channels: tuple[Count, Count, Count, Count, Count]
    hidden: Count
    dropout: Dropout

    @model_validator(mode="after")
    def _survives_poolings(self) -> Vgg16RegressorParams:
        survives_poolings(self.input_size, "systems.vgg16_regressor.input_size")
        return self


class Vgg16Regressor(System):
    """Coordinates alone; it has no say on presence and answers 1 for every joint's presence and score."""

    Params = Vgg16RegressorParams
    loss_terms: ClassVar[tuple[str, ...]] = ("coordinates",)
    card: ClassVar[Card] = Card(
        title="VGG-16 coordinate regressor",
        source="Simonyan & Zisserman, ICLR 2015, in a course report on LSP-extended, University of Guelph",
        published=(
            "test MSE 0.0878 after 25 or 30 epochs (it says both), normalisation not given; "
            "for comparison, a constant mean pose has 0.0285 per coordinate in shares of the image, 0.1141 in [-1, 1]"
        ),
        licence=(
            "our own code under this project's licence; LSP-extended, which it is trained on, is for research use "
            "only; torchvision's ImageNet weights, if loaded, are BSD-3 and ImageNet non-commercial"
        ),
    )

    def build(self) -> nn.Module:
        """[B, 3, S, S] to {"coordinates": [B, K, 2]}."""
        p = self.params
        features = vgg_features(VGG16_BLOCKS, p.channels, batch_norm=True)
        flat = p.channels[-1] * cells(p.input_size)
        return Regressor(features, flat, p.hidden, self.skeleton.size, p.dropout)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """network: all of it."""
        return {"network": [self.network]}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Masked mean squared error in shares of the side."""
        return {"coordinates": coordinates_loss(outputs["coordinates"], batch)}

    def joints(self, outputs: Any) -> Joints:
        """Shares of the side to input pixels; presence and scores are 1 throughout."""
        keypoints = outputs["coordinates"].float() * torch.tensor(self.params.input_size)
        certain = torch.ones_like(keypoints[..., 0])
        return Joints(keypoints, certain, certain)

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes the trunk of torchvision's vgg16_bn. Raises TrainingError where it misfits."""
        assert isinstance(self.network, Regressor)
        load_imagenet_features(self.network.features, state)


class Regressor(nn.Module):
    """[B, 3, S, S] to {"coordinates": [B, K, 2] x and y as shares of the input side}."""

    def __init__(self, features: nn.Sequential, flat: int, hidden: int, joints: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(flat, hidden)
        self.fc2 = nn.Linear(hidden, 2 * joints)
        initialise(self.fc1)
        initialise_output(self.fc2, std=0.001, bias=0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        hidden = torch.relu(self.fc1(self.dropout(self.features(images).flatten(1))))
        return {"coordinates": self.fc2(hidden).unflatten(1, (-1, 2))}
