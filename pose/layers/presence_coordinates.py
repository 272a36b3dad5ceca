"""The two-headed regressor of the LSP systems: which joints are visible, and where they are.

features -> flatten -> first fully-connected layer -> presence head
                                                   -> coordinate head
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pose.data.batch import Batch
from pose.layers.weights import initialise, initialise_output


class PresenceCoordinates(nn.Module):
    """[B, 3, S, S] to {"presence": [B, K] logits, "coordinates": [B, K, 2] x and y as shares of the input side}.

    Both heads branch after the ReLU of the first fully-connected layer, and each drops out its own inputs, as every
    fully-connected layer of AlexNet and VGG after the first does. `hidden[0]` is that first layer's width, the rest
    are the presence head's; `coordinate_hidden` are the coordinate head's. `features` come with their first weights.
    """

    def __init__(
        self,
        features: nn.Sequential,
        flat: int,
        hidden: Sequence[int],
        coordinate_hidden: Sequence[int],
        joints: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = features
        self.fc1 = nn.Linear(flat, hidden[0])
        self.presence = head(hidden, joints, dropout)
        self.coordinates = head([hidden[0], *coordinate_hidden], 2 * joints, dropout)
        for part in (self.fc1, self.presence, self.coordinates):
            initialise(part)
        initialise_output(last(self.presence), std=0.01, bias=0.0)
        initialise_output(last(self.coordinates), std=0.001, bias=0.5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        shared = F.relu(self.fc1(self.features(images).flatten(1)))
        coordinates = self.coordinates(shared).unflatten(1, (-1, 2))
        return {"presence": self.presence(shared), "coordinates": coordinates}


def head(widths: Sequence[int], outputs: int, dropout: float) -> nn.Sequential:
    """[B, widths[0]] to [B, outputs]: (dropout, linear, ReLU) per further width, then dropout and linear."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Dropout(dropout), nn.Linear(wide, narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], outputs))


def presence_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Sigmoid cross-entropy of [B, K] logits, mean over all joints of all people (the report's Eq. 5).

    The report's flags are -1 and 1 (Eq. 2), which Eq. 5 cannot take; they are 0 and 1 here.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), batch.presence)


def coordinates_loss(coordinates: Tensor, batch: Batch) -> Tensor:
    """Squared error of [B, K, 2] shares of the input side, mean over the coordinates that are labelled.

    Joints without a position count nowhere, whatever their keypoints hold, NaN included. Zero, with zero gradients,
    where no joint of the batch is labelled.
    """
    height, width = batch.images.shape[-2:]
    side = batch.keypoints.new_tensor([width, height])
    mask = batch.labelled[..., None]
    error = torch.where(mask, coordinates.float() - batch.keypoints / side, 0.0)
    return error.square().sum() / (2 * mask.sum()).clamp(min=1)


def last(layers: nn.Sequential) -> nn.Linear:
    """The output layer of a head."""
    layer = layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer
