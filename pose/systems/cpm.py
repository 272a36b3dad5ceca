"""Convolutional Pose Machines: stages of wide convolutions that refine each other's maps; intermediate supervision.

stage 1:  [conv9 128 - pool] x 3 - conv5 32 - conv9 512 - conv1 512 - conv1 maps
stage 2:  [conv9 128 - pool] x 3 - conv5 32 -+
          maps of stage 1 -------------------+- [conv11 128] x 3 - conv1 128 - conv1 maps
          centre map ------------------------+
stage 3…: as stage 2, on its third pooling: conv5 32 and what follows are each stage's own.

Source: Wei, Ramakrishna, Kanade & Sheikh, CVPR 2016, in the layers and their order of the authors' release (poolings
3x3 with stride 2 that round up, as Caffe's do). The maps are one per joint and, under the paper's loss, one of the
background, one minus the highest of the others. The centre map is a Gaussian at the crop's centre, where the person
is; it is made inside the network. What differs from the release: RGB normalised as everywhere in this project, He's
first weights, one learning rate for all stages (the release trains stage 1 five times as fast), and one scale at test
time instead of seven.

Recipe `paper` is the paper's; `modern` normalises batches and has another loss: cross-entropy over a map's cells, which
learns from the first step where the squared error first has to leave the all-zero answer. Its maps are
log-probabilities, and the next stage sees the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pose.config import Count, Positive, RecipeParams, SystemParams
from pose.data.batch import Batch
from pose.decoding import dark, peaks
from pose.errors import ConfigError
from pose.layers import heatmaps
from pose.layers.convolution import conv_relu
from pose.layers.weights import initialise
from pose.systems.base import Card, Joints, System
from pose.systems.two_headed import Dropout

STRIDE = 8
"""Pixels of the input per cell, after three poolings."""
CENTRE_KERNEL = 9
"""Side of the average pooling that brings the centre map to the cells."""
OUTPUT_STD = 0.01
"""Of the weights that make maps; the release has it in all layers."""
CONFIDENT_RADIUS = 2.0
"""Standard deviations of a target around the highest cell within which a probability counts as confidence."""

Kernel = Literal[1, 3, 5, 7, 9, 11]


class CpmRecipe(RecipeParams):
    """How the machine is trained and read."""

    loss: Literal["squared_error", "cross_entropy"] = Field(description="squared_error: the paper's, with a background")
    decode: Literal["quarter", "dark"] = Field(description="from the highest cell on, in pose.decoding")
    batch_norm: bool = Field(description="after every convolution but those that make maps; not in the paper")


class CpmParams(SystemParams):
    """Sizes of the machine."""

    test_time = frozenset({"flip_test"})

    recipes: dict[str, CpmRecipe]  # type: ignore[assignment]
    stages: Count
    trunk_channels: tuple[Count, Count, Count]
    trunk_kernel: Kernel
    feature_channels: Count = Field(description="of the image features that each stage takes from the trunk")
    feature_kernel: Kernel
    first_channels: Count = Field(description="of stage 1 after its features")
    first_kernel: Kernel
    stage_channels: Count = Field(description="of every further stage after its features")
    stage_kernel: Kernel
    dropout: Dropout = Field(description="in stage 1, after both layers of first_channels")
    sigma: Positive = Field(description="of the target Gaussians, in cells of 8 px")
    centre_sigma: Positive = Field(description="of the centre map, in px")
    flip_test: bool = Field(description="average over the mirrored image when evaluating")

    @property
    def chosen(self) -> CpmRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @model_validator(mode="after")
    def _whole_cells(self) -> CpmParams:
        if any(side % STRIDE for side in self.input_size):
            raise ConfigError(
                f"systems.cpm.input_size is {self.input_size}; three poolings make cells of {STRIDE} px, so both "
                f"sides have to be multiples of {STRIDE}"
            )
        return self


class Cpm(System):
    """Convolutional Pose Machines. Outputs {"maps": [B, S, M, h, w]}: stages S, maps M, cells of 8 px."""

    Params = CpmParams
    loss_terms: ClassVar[tuple[str, ...]] = ("maps",)
    card: ClassVar[Card] = Card(
        title="Convolutional Pose Machines",
        source="Wei, Ramakrishna, Kanade & Sheikh, CVPR 2016; layers of the authors' release",
        published="PCK@0.2 of 90.5 % on LSP (trained on MPII and LSP), PCKh@0.5 of 87.9 % on MPII, seven test scales",
        licence="our own code under this project's licence; nothing of the release, which is for non-commercial use",
    )

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the maps of all stages."""
        background = self.params.chosen.loss == "squared_error"
        return Machine(self.params, self.skeleton.size, background, self.skeleton.mirror.tolist())

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """One: the stages train together."""
        return {"network": [self.network]}

    @property
    def map_size(self) -> tuple[int, int]:
        """Width and height in cells."""
        width, height = self.params.input_size
        return width // STRIDE, height // STRIDE

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """maps: the sum over the stages of squared errors over all cells and maps, halved, or of cross-entropies."""
        p, stages = self.params, outputs["maps"].unbind(dim=1)
        if p.chosen.loss == "cross_entropy":
            entropies = [
                heatmaps.cross_entropy(maps, batch.keypoints, batch.labelled, p.sigma, p.input_size) for maps in stages
            ]
            return {"maps": torch.stack(entropies).sum()}
        target, weight = self.targets(batch)
        errors = [((maps - target).square().sum(dim=(2, 3)) * weight).sum(dim=1).mean() / 2 for maps in stages]
        return {"maps": torch.stack(errors).sum()}

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps [B, K + 1, h, w], the last of the background, and weights [B, K + 1]; a joint not labelled weighs 0."""
        p = self.params
        maps, weight = heatmaps.targets(batch.keypoints, batch.labelled, self.map_size, p.sigma, p.input_size)
        background = 1 - maps.amax(dim=1, keepdim=True)
        return torch.cat([maps, background], dim=1), torch.cat([weight, torch.ones_like(weight[:, :1])], dim=1)

    def targets_preview(self, batch: Batch) -> Tensor:
        """[B, h, w] in [0, 1], the highest of the joints' target maps."""
        p = self.params
        maps, _ = heatmaps.targets(batch.keypoints, batch.labelled, self.map_size, p.sigma, p.input_size)
        return maps.amax(dim=1)

    def belief_maps(self, outputs: Any) -> Tensor:
        """[B, K, h, w], about a Gaussian of height 1 where a joint is sure: the last stage's, for people to look at."""
        network = self.network
        assert isinstance(network, Machine)
        return network.beliefs(outputs["maps"][:, -1].float())[:, : self.skeleton.size]

    def joints(self, outputs: Any) -> Joints:
        """The last stage's peaks in input pixels. A joint's score and presence are the height of its Gaussian or, of a
        probability, how much of it lies about the highest cell.
        """
        p, maps = self.params, self.belief_maps(outputs)
        if p.chosen.decode == "dark":
            # As wide in Gaussians as the authors of DARK smooth those of 2 cells.
            positions, scores = dark.dark(maps, 2 * round(dark.BLUR // 2 * p.sigma / 2) + 1)
        else:
            positions, scores = peaks.quarter(maps)
        if p.chosen.loss == "cross_entropy":
            radius = math.ceil(CONFIDENT_RADIUS * p.sigma)
            scores = peaks.mass(maps, peaks.highest(maps)[0], radius) / (2 * math.pi * p.sigma**2)
        scores = scores.clamp(0, 1)
        return Joints(heatmaps.to_pixels(positions, self.map_size, p.input_size, official=False), scores, scores)


class Machine(nn.Module):
    """[B, 3, H, W] to {"maps": [B, S, M, H / 8, W / 8]}."""

    centre: Tensor

    def __init__(self, params: CpmParams, joints: int, background: bool, mirror: Sequence[int]) -> None:
        super().__init__()
        self.params, self.joints = params, joints
        self.channels = joints + background
        self.flipped = [*mirror, *range(joints, self.channels)]
        self.register_buffer("centre", centre_map(params.input_size, params.centre_sigma), persistent=False)
        self.stage1 = nn.Sequential(trunk(params), features(params), first_head(params, self.channels))
        self.trunk, self.features, self.heads = nn.Module(), nn.ModuleList(), nn.ModuleList()
        if params.stages > 1:
            self.trunk = trunk(params)
        for _ in range(params.stages - 1):
            self.features.append(features(params))
            self.heads.append(stage_head(params, self.channels))
        initialise(self, overlapping_pools=True)
        for head in (self.stage1[-1], *self.heads):
            _make_small(head[-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The class's one job; see there."""
        maps = self.maps(images)
        if self.params.flip_test and not self.training:
            mirrored = self.maps(images.flip(3)).flip(4)
            maps = (maps + mirrored[:, :, self.flipped]) / 2
        return {"maps": maps}

    def maps(self, images: Tensor) -> Tensor:
        """[B, S, M, h, w] of the images as they are."""
        stages = [self.stage1(images)]
        if len(self.heads):
            shared = self.trunk(images)
            centre = self.centre.to(shared.dtype).expand(images.shape[0], -1, -1, -1)
            for features, head in zip(self.features, self.heads, strict=True):
                stages.append(head(torch.cat([features(shared), self.beliefs(stages[-1]), centre], dim=1)))
        return torch.stack(stages, dim=1)

    def beliefs(self, maps: Tensor) -> Tensor:
        """What maps [B, M, h, w] say as the paper's kind of map, where a sure joint is a Gaussian of height about 1."""
        if self.params.chosen.loss == "squared_error":
            return maps
        probability = maps.float().flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])
        # A Gaussian of height 1 sums to this over the cells.
        return (probability * (2 * math.pi * self.params.sigma**2)).to(maps.dtype)


def trunk(params: CpmParams) -> nn.Sequential:
    """[B, 3, H, W] to [B, trunk_channels[2], H / 8, W / 8]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([3, *params.trunk_channels]):
        layers += conv_relu(inputs, outputs, params.trunk_kernel, batch_norm=params.chosen.batch_norm)
        layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    return nn.Sequential(*layers)


def features(params: CpmParams) -> nn.Sequential:
    """A stage's own image features, from the third pooling."""
    inputs = params.trunk_channels[-1]
    return nn.Sequential(
        *conv_relu(inputs, params.feature_channels, params.feature_kernel, batch_norm=params.chosen.batch_norm)
    )


def first_head(params: CpmParams, channels: int) -> nn.Sequential:
    """Stage 1 from its features to its maps."""
    p, width = params, params.first_channels
    return nn.Sequential(
        *conv_relu(p.feature_channels, width, p.first_kernel, batch_norm=p.chosen.batch_norm),
        nn.Dropout(p.dropout),
        *conv_relu(width, width, 1, batch_norm=p.chosen.batch_norm),
        nn.Dropout(p.dropout),
        nn.Conv2d(width, channels, 1),
    )


def stage_head(params: CpmParams, channels: int) -> nn.Sequential:
    """A further stage from features, maps and centre map to its maps."""
    p, width = params, params.stage_channels
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([p.feature_channels + channels + 1, width, width, width]):
        layers += conv_relu(inputs, outputs, p.stage_kernel, batch_norm=p.chosen.batch_norm)
    return nn.Sequential(
        *layers, *conv_relu(width, width, 1, batch_norm=p.chosen.batch_norm), nn.Conv2d(width, channels, 1)
    )


def centre_map(input_size: tuple[int, int], sigma: float) -> Tensor:
    """[1, 1, H / 8, W / 8]: a Gaussian of height 1 about the input's centre, averaged over 9 x 9 px every 8 px.

    The windows begin at the cells' corners, and the last ones end with the image.
    """
    width, height = input_size
    across, down = (
        torch.exp((torch.arange(side, dtype=torch.float32) + 0.5 - side / 2).square() * (-0.5 / sigma**2))
        for side in (width, height)
    )
    return F.avg_pool2d((down[:, None] * across)[None, None], CENTRE_KERNEL, STRIDE, ceil_mode=True)


def _make_small(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=OUTPUT_STD)
