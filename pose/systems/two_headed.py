"""What the four LSP regressors have in common: parameter groups, losses, decoding. Their trunks are their own.

Source: a UC San Diego course report on LSP-extended ("the report" in the four files), which trains a presence
classifier first and then appends a coordinate regressor at the first fully-connected layer's output. It says both
"two" and "three fully connected layers" for that head; `coordinate_hidden` decides, and three is what we take. It
also leaves open whether the branch lies before that layer's ReLU (we branch after it), the dropout (0.5, as in
AlexNet and VGG), every width, and all of SGD's rates: those are ours, in params.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pose.config import Count, PhaseParams, SystemParams
from pose.data.batch import Batch
from pose.layers.presence_coordinates import PresenceCoordinates, coordinates_loss, last, presence_loss
from pose.systems.base import Joints, System

Dropout = Annotated[float, Field(ge=0, lt=1)]

REPORT = "course report on LSP-extended, UC San Diego"
PROTOCOL = "presence accuracy over the 14 joints on LSP-extended; always answering 'visible' scores 88.01 %"
LICENCE = "our own code under this project's licence; LSP-extended, which it is trained on, is for research use only"


class TwoHeadedParams(SystemParams):
    """Sizes that the four share."""

    hidden: list[Count] = Field(min_length=1, description="fc1, where the heads branch, then the presence head")
    coordinate_hidden: list[Count] = Field(description="hidden layers of the coordinate head")
    dropout: Dropout
    batch_norm: bool = Field(description="after every convolution; not in the sources")


class TwoHeaded(System):
    """A trunk with a presence head and a coordinate head. Outputs as PresenceCoordinates says."""

    loss_terms: ClassVar[tuple[str, ...]] = ("presence", "coordinates")

    def heads(self, features: nn.Sequential, flat: int) -> PresenceCoordinates:
        """The whole network on top of a trunk whose last map has `flat` numbers."""
        p = self.params
        return PresenceCoordinates(features, flat, p.hidden, p.coordinate_hidden, self.skeleton.size, p.dropout)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: features and first fully-connected layer; presence, coordinates: the heads."""
        network = self.network
        assert isinstance(network, PresenceCoordinates)
        return {
            "trunk": [network.features, network.fc1],
            "presence": [network.presence],
            "coordinates": [network.coordinates],
        }

    @torch.no_grad()
    def begin_phase(self, phase: PhaseParams, batches: Callable[[], Iterator[Batch]] | None) -> None:
        """Where presence is first learnt, its answer starts at how often each joint is visible in training.

        So the first steps go into what tells images apart and not into nine of ten joints being visible. Odds are
        bounded for joints that are always or never visible.
        """
        first = next((p for p in self.params.chosen.phases if "presence" in p.losses), None)
        if batches is None or phase != first:
            return
        people, visible = 0, torch.zeros(self.skeleton.size, dtype=torch.float64)
        for batch in batches():
            people += len(batch.presence)
            visible += batch.presence.sum(dim=0, dtype=torch.float64).cpu()
        network = self.network
        assert isinstance(network, PresenceCoordinates)
        bias = last(network.presence).bias
        bias.copy_(torch.logit((visible + 0.5) / (people + 1)))

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Presence: mean sigmoid cross-entropy. Coordinates: masked mean squared error in shares of the side."""
        return {
            "presence": presence_loss(outputs["presence"], batch),
            "coordinates": coordinates_loss(outputs["coordinates"], batch),
        }

    def joints(self, outputs: Any) -> Joints:
        """Shares of the side to input pixels. Nothing here measures confidence in a position, so scores = presence."""
        presence = torch.sigmoid(outputs["presence"].float())
        return Joints(outputs["coordinates"].float() * torch.tensor(self.params.input_size), presence, presence)
