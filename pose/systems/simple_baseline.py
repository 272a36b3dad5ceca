"""SimpleBaseline: a ResNet, three deconvolutions, one map per joint.

conv7/2 64 - pool/2 - ResNet's four layers - [deconv4/2 256] x 3 - conv1 K

Source: Xiao, Wu & Wei, Simple Baselines for Human Pose Estimation and Tracking, ECCV 2018, and the behaviour of the
authors' release. Recipe `paper` is theirs: squared error towards Gaussians about the nearest cell, read back with a
quarter of a cell's offset, pixels numbered as in the release (`convention: official`, see pose.layers.heatmaps) and
people scored and suppressed as there (see pose.decoding.settling). Where they start from ImageNet weights, first
weights here are He's unless `initial` names those. Scale and rotation are uniform in the recipe's ranges and always
applied; theirs are clipped normal numbers, and a rotation comes with probability 0.6.

Recipe `modern` differs where it matters: a softmax over each map's cells and the cross-entropy to an exactly centred
Gaussian, which has no all-zero answer to leave first (whether that pays: docs/results.md); DARK reads the
probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pose.config import Count, Positive, RecipeParams, SystemParams
from pose.data.batch import Batch
from pose.decoding.dark import BLUR, dark
from pose.decoding.peaks import highest, mass, quarter
from pose.decoding.settling import BY_OKS, Settling, by_released_oks
from pose.errors import ConfigError, TrainingError
from pose.layers.deconvolution import deconvolutions, to_maps
from pose.layers.heatmaps import cross_entropy, mean_squared_error, targets, to_pixels
from pose.layers.normalise import MEAN, STD
from pose.layers.resnet import STRIDE, Depth, ResNet, load_imagenet_resnet
from pose.layers.weights import load_strictly
from pose.systems.base import Card, Joints, System

CONFIDENT_RADIUS = 2.0
"""Standard deviations of a target around the highest cell within which a probability counts as confidence."""


class HeatmapRecipe(RecipeParams):
    """How maps are trained and read."""

    loss: Literal["squared_error", "cross_entropy"] = Field(description="squared_error: the paper's")
    decode: Literal["quarter", "dark"] = Field(description="from the highest cell on, in pose.decoding")
    convention: Literal["centres", "official"] = Field(
        description="centres: map and input cover the same area; official: the release's numbering, rounded targets "
        "and way of scoring and suppressing people"
    )


class SimpleBaselineParams(SystemParams):
    """Sizes of SimpleBaseline."""

    test_time = frozenset({"flip_test"})

    recipes: dict[str, HeatmapRecipe]  # type: ignore[assignment]
    depth: Depth
    deconvolutions: list[Count] = Field(min_length=1, max_length=5, description="channels of each, stride 2")
    sigma: Positive = Field(description="of the target Gaussians, in cells; the paper's: 2 at 192x256, 3 at 288x384")
    flip_test: bool = Field(description="average over the mirrored image when evaluating")

    @property
    def chosen(self) -> HeatmapRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @property
    def map_size(self) -> tuple[int, int]:
        """Width and height of the maps in cells."""
        width, height = self.input_size
        factor = 2 ** len(self.deconvolutions)
        return width // STRIDE * factor, height // STRIDE * factor

    @model_validator(mode="after")
    def _whole_cells(self) -> SimpleBaselineParams:
        if any(side % STRIDE for side in self.input_size):
            raise ConfigError(
                f"systems.simple_baseline.input_size is {self.input_size}; the trunk halves it five times, so both "
                f"sides have to be multiples of {STRIDE}"
            )
        return self


class SimpleBaseline(System):
    """SimpleBaseline on any ResNet. Outputs {"maps": [B, K, h, w]}: Gaussians or, with cross-entropy, logits."""

    Params = SimpleBaselineParams
    loss_terms: ClassVar[tuple[str, ...]] = ("maps",)
    card: ClassVar[Card] = Card(
        title="SimpleBaseline",
        source="Xiao, Wu & Wei, ECCV 2018, and the behaviour of the authors' release",
        published=(
            "COCO val2017 AP, detector of AP 56.4, flip test: ResNet-50 70.4 (256x192) and 72.2 (384x288), "
            "ResNet-101 71.4 and 73.6, ResNet-152 72.0 and 74.3; MPII val PCKh@0.5 of ResNet-50 (256x256) 88.5"
        ),
        licence="our own code under this project's licence; the release, whose weights it can load, is under MIT",
    )

    def build(self) -> nn.Module:
        """[B, 3, H, W] to {"maps": [B, K, h, w]}."""
        p = self.params
        network = PoseResNet(p.depth, p.deconvolutions, self.skeleton.mirror.tolist(), p.flip_test)
        network.official_flip = p.chosen.convention == "official"
        return network

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: the ResNet; head: deconvolutions and the layer that makes maps."""
        network = self.network
        assert isinstance(network, PoseResNet)
        return {"trunk": network.trunk, "head": [network.deconv_layers, network.final_layer]}

    @property
    def settling(self) -> Settling:
        """By OKS, scored and compared as in the release where the recipe is of its convention."""
        p = self.params
        return by_released_oks(p.input_size, p.padding) if p.chosen.convention == "official" else BY_OKS

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """maps: the recipe's loss over the labelled joints."""
        p, maps = self.params, outputs["maps"]
        if p.chosen.loss == "cross_entropy":
            official = p.chosen.convention == "official"
            entropy = cross_entropy(maps, batch.keypoints, batch.labelled, p.sigma, p.input_size, official)
            return {"maps": entropy}
        return {"maps": mean_squared_error(maps, *self.targets(batch))}

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Maps [B, K, h, w] with a Gaussian of height 1 per labelled joint, and weights [B, K]."""
        p = self.params
        official = p.chosen.convention == "official"
        return targets(batch.keypoints, batch.labelled, p.map_size, p.sigma, p.input_size, official)

    def targets_preview(self, batch: Batch) -> Tensor:
        """[B, h, w] in [0, 1], the highest of the joints' target maps."""
        return self.targets(batch)[0].amax(dim=1)

    def joints(self, outputs: Any) -> Joints:
        """Peaks in input pixels. A joint's score and presence are the height of its Gaussian or, of a probability,
        how much of it lies about the highest cell.
        """
        p = self.params
        maps = self._read(outputs)
        positions, scores = dark(maps, blur_side(p.sigma)) if p.chosen.decode == "dark" else quarter(maps)
        if p.chosen.loss == "cross_entropy":
            scores = mass(maps, highest(maps)[0], math.ceil(CONFIDENT_RADIUS * p.sigma))
        pixels = to_pixels(positions, p.map_size, p.input_size, p.chosen.convention == "official")
        scores = scores.clamp(0, 1)
        return Joints(pixels, scores, scores)

    def belief_maps(self, outputs: Any) -> Tensor:
        """[B, K, h, w], about a Gaussian of height 1 where a joint is sure: for people to look at."""
        maps = self._read(outputs)
        # A Gaussian of height 1 sums to this over the cells.
        return maps * (2 * math.pi * self.params.sigma**2) if self.params.chosen.loss == "cross_entropy" else maps

    def _read(self, outputs: Any) -> Tensor:
        """[B, K, h, w] float32, Gaussians or probabilities over the cells."""
        maps = outputs["maps"].float()
        if self.params.chosen.loss == "squared_error":
            return maps
        return maps.flatten(2).softmax(dim=2).unflatten(2, maps.shape[2:])

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes torchvision's ResNet of the same depth. Raises TrainingError where it misfits."""
        load_imagenet_resnet(self.network, state)

    def load_official(self, state: Mapping[str, Any]) -> None:
        """Takes a state_dict of the authors' release and from then on answers in its convention.

        Training files with their `state_dict` inside, names under `module.`, and files of before torch counted batches
        are taken too. The release was trained on BGR in [0, 1] normalised with ImageNet's mean and deviation in the
        order of RGB; this network keeps taking RGB, and the difference goes into its first layer and input scaling.
        The recipe in use reads maps of any loss as the squared error's from here on, with the quarter offset, and
        people are scored and suppressed as in the release. Raises TrainingError naming missing, unexpected and wrongly
        shaped tensors.
        """
        network = self.network
        assert isinstance(network, PoseResNet)
        weights = official_weights(state)
        first = weights.get("conv1.weight")
        if first is not None and first.ndim == 4 and first.shape[1] == 3:
            weights["conv1.weight"] = first.flip(1)
        weights["input_gain"], weights["input_shift"] = bgr_under_rgb_statistics()
        load_strictly(network, weights, "an official SimpleBaseline checkpoint")
        network.official_flip = True
        self.params = answering_officially(self.params)


class PoseResNet(ResNet):
    """[B, 3, H, W] RGB to {"maps": [B, K, h, w]}. Names of weights are those of the release."""

    input_gain: Tensor
    input_shift: Tensor
    mirror: Tensor

    def __init__(self, depth: Depth, channels: Sequence[int], mirror: Sequence[int], flip_test: bool) -> None:
        super().__init__(depth)
        self.flip_test = flip_test
        self.official_flip = False
        """Move mirrored maps by one cell to the right before averaging, as the release does: cell p and its mirror
        image lie 1/4 to 3/4 of a cell apart where cells are counted at the upper left."""
        self.deconv_layers = deconvolutions(self.channels, channels)
        self.final_layer = to_maps(channels[-1], len(mirror))
        self.register_buffer("input_gain", torch.ones(3))
        self.register_buffer("input_shift", torch.zeros(3))
        self.register_buffer("mirror", torch.tensor(mirror), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """See the class. The mirrored image has its say in evaluation alone."""
        maps = self.maps(images)
        if self.flip_test and not self._trains:
            mirrored = self.maps(images.flip(3)).flip(3)[:, self.mirror]
            if self.official_flip:
                mirrored = torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3)
            maps = (maps + mirrored) / 2
        return {"maps": maps}

    def maps(self, images: Tensor) -> Tensor:
        """[B, K, h, w] of the images as they are."""
        images = images * self.input_gain.view(1, 3, 1, 1) + self.input_shift.view(1, 3, 1, 1)
        return self.final_layer(self.deconv_layers(self.features(images)))

    @property
    def _trains(self) -> bool:
        """Phases put the groups they train into training mode, not the whole."""
        return self.training or any(part.training for part in self.children())


def blur_side(sigma: float) -> int:
    """Side of DARK's smoothing kernel in cells: 11 for sigma 2, odd, and in proportion."""
    return 2 * round(BLUR // 2 * sigma / 2) + 1


def official_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a release file under their bare names. Raises TrainingError where it holds something else."""
    inner = state.get("state_dict", state)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise TrainingError(
            "an official SimpleBaseline checkpoint was expected: a state_dict, or a dictionary with one under "
            f"'state_dict'; this one has {', '.join(sorted(map(str, state))[:5])} and no tensors there"
        )
    return {name.removeprefix("module."): value for name, value in inner.items()}


def bgr_under_rgb_statistics() -> tuple[Tensor, Tensor]:
    """Gain and shift [3] of RGB channels normalised by their own statistics that give what the release feeds in:
    blue under red's mean and deviation, and red under blue's.
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return std / std.flip(0), (mean - mean.flip(0)) / std.flip(0)


def answering_officially(params: SimpleBaselineParams) -> SimpleBaselineParams:
    """The same parameters with the chosen recipe reading maps and settling people as the release does."""
    recipe = params.chosen.model_copy(update={"loss": "squared_error", "decode": "quarter", "convention": "official"})
    return params.model_copy(update={"recipes": params.recipes | {params.recipe: recipe}})
