"""DeepPose: a regressor of the whole pose, then stages that look at a crop around each joint and correct it.

each stage: conv11/4 96 - norm - pool - conv5 256 - norm - pool - conv3 384 - conv3 384 - conv3 256 - pool
            - fc 4096 - fc 4096 - 2K

Source: Toshev & Szegedy, CVPR 2014; equation numbers are theirs. The input of this system is a canvas: stage 1 sees
all of it, resized to `stage_size`; a later stage sees, for each joint, a square about where the stage before has it,
cut from the canvas by bilinear sampling, and only the output for that joint counts. The square's side is `box_scale`
times the diameter of the pose (section 3.2: the distance of opposite shoulder and hip).

Stages train one after the other, each in a phase of its own, named by the groups stage1, stage2, ... What a later
stage meets in training is simulated (section 3.2.1, equations 9 and 10): squares about the true joint moved by a draw
from the normal distribution that was fitted to the errors of the stages before on the training split. A stage that
has not been trained moves nothing, so that a network is of use after every phase.

What the paper leaves open: rates after the first, epochs, where the diameter is unknown or degenerate (see
`diameters`), the constants of local response normalisation (those of Krizhevsky et al. 2012). Recipe `paper` draws 8
crops of a person in each step (`crops`), where the paper has 40 displacements of each joint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pose.config import Count, PhaseParams, Positive, RecipeParams, SystemParams
from pose.data.batch import Batch
from pose.errors import ConfigError
from pose.layers.convolution import conv_relu
from pose.layers.weights import initialise, initialise_output
from pose.systems.base import Card, Joints, System
from pose.systems.two_headed import Dropout

EXTENT_SHARE = 0.25
"""A pose's diameter is at least this share of its extent, the longer side of the box around its joints."""
CANVAS_SHARE = 0.05
"""... and at least this share of the canvas's shorter side."""
OUTPUT_STD = 0.001
"""Of stage 1's last weights: its first answer is about the middle of the canvas."""


class DeepPoseRecipe(RecipeParams):
    """How the cascade is trained."""

    batch_norm: bool = Field(
        description="after every convolution, in place of the paper's local response normalisation"
    )


class DeepPoseParams(SystemParams):
    """Sizes of the cascade. `input_size` is the canvas."""

    recipes: dict[str, DeepPoseRecipe]  # type: ignore[assignment]
    stages: Count
    stage_size: Count = Field(description="side of what each stage's network sees, px")
    box_scale: Positive = Field(description="side of a crop in diameters of the pose; sigma in the paper")
    crops: Count = Field(description="simulated crops per person and step in the later stages' training")
    channels: tuple[Count, Count, Count, Count, Count]
    stride: Literal[1, 2, 4]
    hidden: list[Count] = Field(min_length=1)
    dropout: Dropout

    @property
    def chosen(self) -> DeepPoseRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @model_validator(mode="after")
    def _survives_poolings(self) -> DeepPoseParams:
        if last_side(self.stage_size, self.stride) < 1:
            least = next(size for size in count(self.stage_size) if last_side(size, self.stride) >= 1)
            raise ConfigError(
                f"systems.deeppose.stage_size is {self.stage_size}, but with systems.deeppose.stride {self.stride} "
                f"the three poolings need at least {least} px; enlarge the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _stage_by_stage(self) -> DeepPoseParams:
        for name, recipe in self.recipes.items():
            trained = [phase.train for phase in recipe.phases if phase.epochs]
            if trained != [[f"stage{number}"] for number in range(1, len(trained) + 1)]:
                raise ConfigError(
                    f"systems.deeppose.recipes.{name}.phases train {trained}; each phase trains one stage, in order: "
                    "[stage1], [stage2], ..."
                )
        return self


class DeepPose(System):
    """The cascade. Outputs {"stages": [B, S, K, 2]}, canvas pixels, the poses after each stage.

    In a later stage's training they are {"offsets", "targets": [B, M, 2], "weights": [B, M]} of M simulated crops
    instead: what the stage says and what is true, in shares of the crop's side, and whether there is a truth.
    """

    Params = DeepPoseParams
    loss_terms: ClassVar[tuple[str, ...]] = ("coordinates",)
    preview = "crops of later stages"
    card: ClassVar[Card] = Card(
        title="DeepPose",
        source="Toshev & Szegedy, CVPR 2014",
        published="PCP of 0.61 on LSP over upper and lower arms and legs after three stages, 0.54 after the first",
        licence="our own code under this project's licence",
    )

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the poses after each stage."""
        torso = tuple(self.skeleton.index(joint) for joint in self.skeleton.torso)
        return Cascade(self.params, self.skeleton.size, cast(tuple[int, int], torso))

    @property
    def cascade(self) -> Cascade:
        """The network, by its own type."""
        return cast(Cascade, self.network)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """stage1, stage2, ...: each a whole network."""
        return {f"stage{number}": [stage] for number, stage in enumerate(self.cascade.stages, start=1)}

    def begin_phase(self, phase: PhaseParams, batches: Callable[[], Iterator[Batch]] | None) -> None:
        """Runs the cascade up to the phase's stage, and before a later stage fits the errors of those before it."""
        stage = list(self.groups).index(phase.train[0]) + 1
        self.cascade.running = stage - 1
        if stage > 1 and batches is not None:
            mean, covariance = self.errors(batches())
            self.cascade.error_mean[stage - 2] = mean
            self.cascade.error_covariance[stage - 2] = covariance
        self.cascade.running = stage

    @torch.no_grad()
    def errors(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """Mean [K, 2] and covariance [K, 2, 2] of predicted minus true position, canvas pixels, over labelled joints.

        A joint without a label has mean and covariance 0.
        """
        total = torch.zeros(self.skeleton.size, 6, dtype=torch.float64)
        for batch in batches:
            batch = self.prepare(batch)
            found = self.joints(self.network(batch.images)).keypoints
            labelled = batch.labelled[..., None]
            error = torch.where(labelled, found - batch.keypoints, 0.0).double()
            x, y = error[..., 0], error[..., 1]
            total += torch.stack([batch.labelled.double(), x, y, x * x, x * y, y * y], dim=2).sum(dim=0).cpu()
        n, moments = total[:, :1].clamp(min=1), total[:, 1:]
        mean = moments[:, :2] / n
        second = moments[:, [2, 3, 3, 4]].unflatten(1, (2, 2)) / n[..., None]
        return mean.float(), (second - mean[:, :, None] * mean[:, None, :]).float()

    def forward(self, network: nn.Module, batch: Batch) -> Any:
        """The cascade on the canvases, or a later stage in training on simulated crops."""
        stage = self.cascade.running
        if stage == 1 or not self.cascade.stages[stage - 1].training:
            return network(batch.images)
        centres, sides, chosen, weights = self.simulate(batch, stage)
        offsets = network(batch.images, centres, sides, chosen)
        true = torch.where(batch.labelled[..., None], batch.keypoints, 0.0)
        there = true.gather(1, chosen[..., None].expand(-1, -1, 2))
        return {"offsets": offsets, "targets": (there - centres) / sides[..., None], "weights": weights}

    def simulate(self, batch: Batch, stage: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Crops as the stage will meet them (equation 9): centres [B, M, 2] px, sides [B, M] px, joints [B, M] int64,
        weights [B, M], 0 for people without a label. Each is of a labelled joint, drawn evenly from torch's generator.
        """
        network, crops = self.cascade, self.params.crops
        some = batch.labelled.any(dim=1, keepdim=True)
        chances = torch.where(some, batch.labelled.float(), 1.0)
        chosen = torch.multinomial(chances, crops, replacement=True)
        known = torch.where(batch.labelled[..., None], batch.keypoints, 0.0)
        true = known.gather(1, chosen[..., None].expand(-1, -1, 2))
        spread = cholesky(network.error_covariance[stage - 2])[chosen]  # [B, M, 2, 2]
        drawn = torch.randn(true.shape, device=true.device)
        moved = network.error_mean[stage - 2][chosen] + (spread @ drawn[..., None])[..., 0]
        sides = self.params.box_scale * network.diameters(known, batch.labelled)
        weights = some.float().expand(-1, crops)
        return true + moved, sides[:, None].expand(-1, crops), chosen, weights

    def targets_preview(self, batch: Batch) -> Tensor:
        """[B, H, W] in [0, 1]: the share of a person's labelled joints whose squares reach a pixel of the canvas, as a
        later stage sees them when the stages before made no error; 0 where there is no later stage.
        """
        if self.params.stages == 1:
            return torch.zeros_like(batch.images[:, 0])
        known = torch.where(batch.labelled[..., None], batch.keypoints, 0.0)
        half = self.params.box_scale * self.cascade.diameters(known, batch.labelled)[:, None, None] / 2
        height, width = batch.images.shape[-2:]
        across = (torch.arange(width, device=known.device) + 0.5 - known[..., :1]).abs() <= half  # [B, K, W]
        down = (torch.arange(height, device=known.device) + 0.5 - known[..., 1:]).abs() <= half  # [B, K, H]
        reached = torch.einsum("bk,bkh,bkw->bhw", batch.labelled.float(), down.float(), across.float())
        return reached / batch.labelled.sum(dim=1).clamp(min=1)[:, None, None]

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """coordinates: squared distance in shares of the box, summed over a person's labelled joints (equation 4), or
        the mean over simulated crops times their number of joints; mean over people. Of the last stage that runs.
        """
        if "offsets" in outputs:
            squares = (outputs["offsets"] - outputs["targets"]).square().sum(dim=2) * outputs["weights"]
            return {"coordinates": squares.mean(dim=1).mean() * self.skeleton.size}
        poses = outputs["stages"]
        error = torch.where(batch.labelled[..., None], poses[:, -1] - batch.keypoints, 0.0)
        if poses.shape[1] == 1:
            shares = error / error.new_tensor(self.params.input_size)
        else:
            sides = self.params.box_scale * self.cascade.diameters(poses[:, -2])
            shares = error / sides[:, None, None]
        return {"coordinates": shares.square().sum(dim=(1, 2)).mean()}

    def joints(self, outputs: Any) -> Joints:
        """The last stage's pose. Nothing here measures confidence or presence, so both are 1."""
        keypoints = outputs["stages"][:, -1].float()
        certain = torch.ones_like(keypoints[..., 0])
        return Joints(keypoints, certain, certain)


class Cascade(nn.Module):
    """[B, 3, H, W] to {"stages": [B, S, K, 2]} canvas pixels, or one stage on given crops to [B, M, 2]."""

    error_mean: Tensor
    """[S - 1, K, 2] canvas px: what stages 2, ... train against; see DeepPose.fit."""
    error_covariance: Tensor
    """[S - 1, K, 2, 2] canvas px squared."""

    def __init__(self, params: DeepPoseParams, joints: int, torso: tuple[int, int]) -> None:
        super().__init__()
        self.params, self.joints, self.torso = params, joints, torso
        self.stages = nn.ModuleList(stage_network(params, joints) for _ in range(params.stages))
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.Sequential)
            initialise(stage, overlapping_pools=True)
            # A later stage begins by leaving every joint where it is.
            initialise_output(cast(nn.Linear, stage[-1]), std=0.0 if number else OUTPUT_STD, bias=0.0)
        self.register_buffer("error_mean", torch.zeros(params.stages - 1, joints, 2))
        self.register_buffer("error_covariance", torch.zeros(params.stages - 1, joints, 2, 2))
        self.running = params.stages
        """Stages that run; those after it are not trained yet and would move nothing."""

    def forward(
        self, images: Tensor, centres: Tensor | None = None, sides: Tensor | None = None, joints: Tensor | None = None
    ) -> Any:
        """The poses after each stage; with crops, what the last running stage says of one joint in each of them."""
        if centres is not None and sides is not None and joints is not None:
            return self.offsets(self.running, images, centres, sides, joints)
        poses = [self.first(images)]
        everything = torch.arange(self.joints, device=images.device).expand(images.shape[0], -1)
        for number in range(2, self.running + 1):
            centres = poses[-1]
            sides = (self.params.box_scale * self.diameters(centres))[:, None].expand(-1, self.joints)
            shares = self.offsets(number, images, centres, sides, everything)
            poses.append(centres + sides[..., None] * shares.float())
        return {"stages": torch.stack(poses, dim=1)}

    def first(self, images: Tensor) -> Tensor:
        """[B, K, 2] canvas px, stage 1's pose (equation 6): the inverse of N for the box of the whole canvas."""
        size = self.params.stage_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        canvas = torch.tensor(self.params.input_size, dtype=torch.float32, device=images.device)
        shares = self.stages[0](images).unflatten(1, (self.joints, 2)).float()
        return canvas * (shares + 0.5)

    def offsets(self, stage: int, images: Tensor, centres: Tensor, sides: Tensor, joints: Tensor) -> Tensor:
        """[B, M, 2], where stage `stage` sees joint `joints` [B, M] from a crop's centre, in shares of its side."""
        seen = crop(images, centres, sides, self.params.stage_size)
        every = self.stages[stage - 1](seen).unflatten(0, (-1, joints.shape[1])).unflatten(2, (self.joints, 2))
        return every.gather(2, joints[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]

    def diameters(self, pose: Tensor, labelled: Tensor | None = None) -> Tensor:
        """[B] px of poses [B, K, 2]: the distance of opposite shoulder and hip, but no less than a share of the
        labelled joints' extent, which also stands in where either is not labelled, and than a share of the canvas.
        """
        a, b = self.torso
        torso = (pose[:, a] - pose[:, b]).square().sum(dim=1).sqrt()
        low, high = pose, pose
        if labelled is not None:
            torso = torch.where(labelled[:, a] & labelled[:, b], torso, 0.0)
            low = torch.where(labelled[..., None], pose, torch.inf)
            high = torch.where(labelled[..., None], pose, -torch.inf)
        extent = (high.amax(dim=1) - low.amin(dim=1)).amax(dim=1)
        least = CANVAS_SHARE * min(self.params.input_size)
        return torch.maximum(torso, EXTENT_SHARE * extent).clamp(min=least)


def stage_network(params: DeepPoseParams, joints: int) -> nn.Sequential:
    """[B, 3, s, s] with s = stage_size to [B, 2K], shares of the box's sides from its centre."""
    c1, c2, c3, c4, c5 = params.channels
    norm = params.chosen.batch_norm

    def response() -> list[nn.Module]:
        return [] if norm else [nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)]

    layers: list[nn.Module] = [
        *conv_relu(3, c1, 11, stride=params.stride, padding=PADDING, batch_norm=norm),
        *response(),
        nn.MaxPool2d(3, 2),
        *conv_relu(c1, c2, 5, batch_norm=norm),
        *response(),
        nn.MaxPool2d(3, 2),
        *conv_relu(c2, c3, 3, batch_norm=norm),
        *conv_relu(c3, c4, 3, batch_norm=norm),
        *conv_relu(c4, c5, 3, batch_norm=norm),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
    ]
    width = c5 * last_side(params.stage_size, params.stride) ** 2
    for hidden in params.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(params.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, 2 * joints))


PADDING = 4
"""Of the first convolution: with it 220 px become 55 cells."""


def last_side(stage_size: int, stride: int) -> int:
    """Cells along the last map's side: one strided convolution, then three poolings. Below 1: too small."""
    side = (stage_size + 2 * PADDING - 11) // stride + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def crop(images: Tensor, centres: Tensor, sides: Tensor, size: int) -> Tensor:
    """[B * M, 3, size, size]: squares about `centres` [B, M, 2] with `sides` [B, M], px of `images` [B, 3, H, W].

    Read bilinearly at the crops' pixel centres; what lies outside is 0, the mean colour. All crops of an image are
    one tall picture to grid_sample, so that the image is not copied for each.
    """
    height, width = images.shape[-2:]
    steps = (torch.arange(size, dtype=torch.float32, device=images.device) + 0.5) / size - 0.5
    places = centres[..., None, :] + sides[..., None, None] * steps[:, None]  # [B, M, size, 2]: x and y along a side
    unit = 2 * places / places.new_tensor([width, height]) - 1
    across = unit[..., 0][:, :, None, :].expand(-1, -1, size, -1)
    down = unit[..., 1][:, :, :, None].expand(-1, -1, -1, size)
    grid = torch.stack([across, down], dim=4).flatten(1, 2)  # [B, M * size, size, 2]
    seen = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    return seen.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)


def cholesky(covariance: Tensor) -> Tensor:
    """[..., 2, 2] lower triangles whose squares are these covariances, which may be singular."""
    a = covariance[..., 0, 0].clamp(min=0).sqrt()
    b = torch.where(a > 0, covariance[..., 0, 1] / torch.where(a > 0, a, 1.0), 0.0)
    c = (covariance[..., 1, 1] - b.square()).clamp(min=0).sqrt()
    return torch.stack([torch.stack([a, torch.zeros_like(a)], dim=-1), torch.stack([b, c], dim=-1)], dim=-2)
