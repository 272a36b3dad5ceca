"""OpenPose: confidence maps of the joints and part affinity fields of the limbs, from which people are assembled.

two_branch  VGG-19's first ten convolutions, two more; then six stages of two branches (CVPR 2017). With COCO's joints
            and a neck: 19 maps, 38 field channels, 52,311,446 parameters.
shared      the same, but stages from the second on use the same weights, branch by branch: convolutions at the same
            place of stages t >= 2 are one.
paf_first   four stages for the fields alone, then two for the maps, of dense 3x3 blocks (the journal version, 2019):
            26,050,878 parameters.

Source: Cao, Simon, Wei & Sheikh, CVPR 2017; Cao, Hidalgo, Simon, Wei & Sheikh, TPAMI 2021; layers of the public
PyTorch code. Not taken over from public code: training on the validation split, limbs trained towards the eye and read
as towards the ear, losses where people are not labelled, fields drawn half a cell off, a score of 1 for everyone.

Recipe `paper` is the plain squared error over all cells. `modern` has batch normalisation and weighs cells on joints
and limbs more, without which a network from scratch spends its first epochs on the empty ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pose.config import Count, NonNegative, Positive, RecipeParams, Strict, SystemParams
from pose.data.batch import SceneBatch
from pose.decoding import grouping, grouping_graph
from pose.decoding.grouping import GroupingParams
from pose.errors import ConfigError, PoseError, TrainingError
from pose.found import Found, boxes_around, to_people
from pose.layers.openpose_stages import FieldsFirst, TwoBranch
from pose.layers.paf import Layout, confidence_targets, field_targets
from pose.layers.vgg import load_imagenet_features
from pose.layers.weights import load_strictly
from pose.people import People
from pose.progress import say
from pose.skeleton import Skeleton
from pose.systems.base import Card
from pose.systems.scene_system import SceneSystem

PREFIXES = ("module.", "model.")
"""That wrappers put before the names of weights: DataParallel and the public trainer."""


class TwoBranchParams(Strict):
    """Sizes of the stages of `two_branch` and `shared`."""

    stages: Count
    first: tuple[Count, Count] = Field(description="channels of stage 1's 3x3 and 1x1 convolutions")
    later: Count = Field(description="channels of all further convolutions")
    kernel: Literal[3, 5, 7, 9, 11] = Field(description="of the further stages")


class FieldsFirstParams(Strict):
    """Sizes of the stages of `paf_first`."""

    field_stages: Count
    heat_stages: Count
    first: tuple[Count, Count] = Field(description="channels of each kind's first stage: 3x3 and 1x1 convolutions")
    later: tuple[Count, Count] = Field(description="the same of the others")


class OpenPoseRecipe(RecipeParams):
    """How maps are trained."""

    batch_norm: bool = Field(description="after the convolutions; not in the paper")
    foreground: NonNegative = Field(description="cells weigh 1 plus this times the target's height; 0: the paper's")


class OpenPoseParams(SystemParams):
    """Sizes of OpenPose."""

    test_time = frozenset({"flip_test", "scales", "grouping"})

    recipes: dict[str, OpenPoseRecipe]  # type: ignore[assignment]
    variant: Literal["two_branch", "shared", "paf_first"]
    trunk: list[Count] = Field(min_length=2, max_length=4, description="channels of VGG-19's blocks; n: stride 2^(n-1)")
    features: tuple[Count, Count] = Field(description="channels of the two convolutions after the trunk")
    two_branch: TwoBranchParams
    paf_first: FieldsFirstParams
    sigma: Positive = Field(description="of the target Gaussians, in cells")
    field_width: Positive = Field(description="of a limb's field to each side, in cells")
    flip_test: bool = Field(description="average over the mirrored image when evaluating")
    scales: list[Positive] = Field(
        min_length=1,
        description="average over the input resized by these when evaluating; above 1 adds no detail, "
        "for the releases resize the original picture, which is not at hand",
    )
    grouping: GroupingParams

    @property
    def chosen(self) -> OpenPoseRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @property
    def stride(self) -> int:
        """Input pixels per cell."""
        return 2 ** (len(self.trunk) - 1)

    @property
    def map_size(self) -> tuple[int, int]:
        """Width and height in cells."""
        width, height = self.input_size
        return width // self.stride, height // self.stride

    @model_validator(mode="after")
    def _whole_cells(self) -> OpenPoseParams:
        if any(side % self.stride for side in self.input_size):
            raise ConfigError(
                f"systems.openpose.input_size is {self.input_size}; a trunk of {len(self.trunk)} blocks makes cells of "
                f"{self.stride} px, so both sides have to be multiples of {self.stride}"
            )
        return self


class OpenPose(SceneSystem):
    """Outputs {"fields": [B, S, 2L, h, w], "heats": [B, T, K + 1, h, w]}: stages, of which the last is decoded."""

    Params = OpenPoseParams
    loss_terms: ClassVar[tuple[str, ...]] = ("fields", "heats")
    card: ClassVar[Card] = Card(
        title="OpenPose",
        source="Cao, Simon, Wei & Sheikh, CVPR 2017; Cao et al., TPAMI 2021; layers of the public PyTorch code",
        published=(
            "COCO test-dev AP 61.8 (AP50 84.9, AP75 67.5) with several scales and refinement; MPII multi-person mAP "
            "75.6; val2017 AP of the public PyTorch code 65.3 with flips, 57.7 without"
        ),
        licence="our own code under this project's licence; nothing of the releases, which are for non-commercial use",
    )

    def __init__(self, params: Any, skeleton: Skeleton) -> None:
        self._warned = False
        self.layout = Layout.of(skeleton)
        if params.grouping.min_joints > self.layout.joints.size:
            raise ConfigError(
                f"systems.openpose.grouping.min_joints is {params.grouping.min_joints}, skeleton {skeleton.name} has "
                f"{self.layout.joints.size} joints: nobody would have enough; expected at most that many"
            )
        super().__init__(params, skeleton)

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the maps of all stages."""
        p = self.params
        scales = {"batch_norm": p.chosen.batch_norm, "scales": p.scales, "flip_test": p.flip_test}
        if p.variant == "paf_first":
            s = p.paf_first
            sizes = (s.first, s.later, s.field_stages, s.heat_stages)
            return FieldsFirst(self.layout, p.trunk, p.features, *sizes, **scales)
        t = p.two_branch
        sizes = (t.first, t.later, t.kernel, t.stages)
        return TwoBranch(self.layout, p.trunk, p.features, *sizes, shared=p.variant == "shared", **scales)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: what VGG-19 has too; stages: the rest."""
        network = cast(Any, self.network)
        return {"trunk": [network.trunk], "stages": network.heads}

    # ------------------------------------------------------------ targets and loss

    def targets(self, batch: SceneBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Fields [B, 2L, h, w], heats [B, K + 1, h, w], and weights [B, 1, h, w]: the share of a cell not ignored."""
        p = self.params
        keypoints, labelled = self.layout.to_maps(batch.keypoints.float(), batch.labelled)
        labelled = labelled & batch.people[..., None]
        places = keypoints / p.stride
        fields = field_targets(places, labelled, self.layout.limbs, p.map_size, p.field_width)
        heats = confidence_targets(places, labelled, p.map_size, p.sigma)
        weight = 1 - F.interpolate(batch.ignored[:, None].float(), size=(p.map_size[1], p.map_size[0]), mode="area")
        return fields, heats, weight

    def targets_preview(self, batch: SceneBatch) -> Tensor:
        """[B, h, w] in [0, 1], the highest of the joints' target maps and the lengths of the limbs' vectors."""
        fields, heats, _ = self.targets(batch)
        return torch.cat([heats[:, :-1], _lengths(fields)], dim=1).amax(dim=1).clamp(max=1)

    def loss(self, outputs: Any, batch: SceneBatch) -> dict[str, Tensor]:
        """Squared errors, mean over cells, channels and images, summed over the stages; 0 where nothing is known."""
        fields, heats, weight = self.targets(batch)
        gain = self.params.chosen.foreground
        on_limb = _lengths(fields).repeat_interleave(2, dim=1)
        on_joint = torch.cat([heats[:, :-1], 1 - heats[:, -1:]], dim=1)
        return {
            "fields": _squared_error(outputs["fields"], fields, weight * (1 + gain * on_limb)),
            "heats": _squared_error(outputs["heats"], heats, weight * (1 + gain * on_joint)),
        }

    # ------------------------------------------------------------ decoding

    suppression = "grouping"
    """A candidate belongs to one person at most."""

    @property
    def score_floor(self) -> float:
        """People are reported from this score on."""
        return self.params.grouping.min_score

    def last_maps(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Heats [B, K, h, w] of the layout's joints, without background, and fields [B, 2L, h, w], float32."""
        return outputs["heats"][:, -1, :-1].float(), outputs["fields"][:, -1].float()

    def people(self, outputs: Any) -> Found:
        """Decoding in pure tensor code, so that an exported graph can hold it; `decode` is the quicker way."""
        p, limbs = self.params, self.layout.limbs.tolist()
        heats, fields = self.last_maps(outputs)
        each = [
            grouping_graph.group(heat, field, limbs, self.layout.assembly, p.sigma, p.grouping)
            for heat, field in zip(heats.unbind(), fields.unbind(), strict=True)
        ]
        image = torch.cat([torch.full_like(found.scores, n, dtype=torch.int64) for n, found in enumerate(each)])
        parts = [(found.keypoints, found.confidences, found.scores) for found in each]
        return self._found(image, *(torch.cat(column) for column in zip(*parts, strict=True)))

    crowds = True

    def left_away(self, outputs: Any) -> Tensor:
        """[] int64: candidates of one image beyond the highest `grouping.candidates` of each joint."""
        heats, _ = self.last_maps(outputs)
        return grouping_graph.left_away(heats[0], self.params.grouping)

    def grouped(self, outputs: Any) -> list[grouping.Grouping]:
        """Every image's decoding step by step. Raises PoseError for maps that are not numbers."""
        p, order = self.params, self.layout.assembly
        heats, fields = (maps.detach().cpu().numpy() for maps in self.last_maps(outputs))
        if not (np.isfinite(heats).all() and np.isfinite(fields).all()):
            bad = [n for n in range(len(heats)) if not (np.isfinite(heats[n]).all() and np.isfinite(fields[n]).all())]
            raise PoseError(
                f"OpenPose's maps of image {bad[0]} of {len(heats)} in this batch hold values that are not numbers, so "
                "nobody can be found in them; the weights are broken or precision is too low. Evaluate an earlier "
                "checkpoint, or train again with a lower learning rate or clip_norm set"
            )
        limbs = self.layout.limbs
        return [grouping.group(h, f, limbs, order, p.sigma, p.grouping) for h, f in zip(heats, fields, strict=True)]

    def decode(self, outputs: Any, batch: SceneBatch) -> People:
        """One row per person found, in pixels of the original images, image after image; presence is the confidence.

        Warns where a joint had more candidates than params allow.
        """
        each = self.grouped(outputs)
        self._warn(each, batch.image_ids.tolist())
        return self.placed(each, batch)

    def _warn(self, each: list[grouping.Grouping], image_ids: list[int]) -> None:
        """Once: a video would have a line for every frame."""
        most = self.params.grouping.candidates
        counts = [found.candidates.peaks for found in each]
        crowded = [n for n, peaks in enumerate(counts) if peaks.max() > most]
        if not crowded or self._warned:
            return
        self._warned = True
        first, peaks = image_ids[crowded[0]], counts[crowded[0]]
        say(
            f"warning: {len(crowded)} of {len(each)} images have more than {most} candidates of one joint (image id "
            f"{first} has {peaks.max()} of {self.layout.joints.joints[peaks.argmax()]}); the highest {most} of each "
            "are kept. If people are missing, raise systems.openpose.grouping.candidates, or its peak. Later images "
            "like it are not named"
        )

    def placed(self, each: list[grouping.Grouping], batch: SceneBatch) -> People:
        """The people of `grouped` as `decode` returns them."""
        device = batch.to_original.device
        image = np.concatenate([np.full(len(found.groups.scores), n, np.int64) for n, found in enumerate(each)])
        columns = (np.concatenate([getattr(found, name) for found in each]) for name in ("keypoints", "confidences"))
        scores = np.concatenate([found.groups.scores for found in each])
        rows = (torch.from_numpy(column).to(device) for column in (image, *columns, scores))
        return to_people(self._found(*rows), batch)

    def _found(self, image: Tensor, keypoints: Tensor, confidences: Tensor, scores: Tensor) -> Found:
        """From cells and the maps' joints [R, K, ...] to pixels of the input and people's joints."""
        order = torch.from_numpy(self.layout.from_maps).to(keypoints.device)
        points = keypoints * self.params.stride
        # Joints that were not found lie in the middle of the others and change no box.
        return Found(image, boxes_around(points), scores, points[:, order], confidences[:, order])

    # ------------------------------------------------------------ weights from elsewhere

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes what torchvision's vgg19 (with batch_norm: vgg19_bn) begins with. TrainingError where it misfits."""
        trunk = cast(Any, self.network).trunk
        own = {f"features.{key}": tensor for key, tensor in trunk.state_dict().items()}
        # Of `paf_first` the last slope is learned, which a VGG does not have.
        slope = f"features.{len(trunk) - 1}.weight"
        begins = {key: tensor for key, tensor in state.items() if key in own}
        load_imagenet_features(trunk, ({slope: own[slope]} if slope in own else {}) | begins)

    def load_official(self, state: Mapping[str, Any]) -> None:
        """Takes a state_dict of the public PyTorch code for this variant, which needs batch_norm: false.

        Names may begin with DataParallel's `module.` or the trainer's `model.`, and the state_dict may lie under
        `state_dict`. The network was trained on RGB normalised as here, and its cells lie as ours do.
        Raises TrainingError naming missing, unexpected and wrongly shaped tensors.
        """
        load_strictly(self.network, official_weights(state), "an official OpenPose checkpoint")


def official_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a public checkpoint under their bare names. Raises TrainingError where it holds something else."""
    inner = state.get("state_dict", state)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        raise TrainingError(
            "an official OpenPose checkpoint was expected: a state_dict, or a dictionary with one under 'state_dict'; "
            f"this one has {', '.join(sorted(map(str, state))[:5])} and no tensors there"
        )
    weights = dict(inner)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _lengths(fields: Tensor) -> Tensor:
    """[B, 2L, h, w] to [B, L, h, w], of the limbs' vectors."""
    return torch.linalg.vector_norm(fields.unflatten(1, (-1, 2)), dim=2)


def _squared_error(maps: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """[B, S, C, h, w] against [B, C, h, w], weighted; mean over all but the stages, which are added up."""
    return ((maps.float() - target[:, None]).square() * weight[:, None]).mean(dim=(0, 2, 3, 4)).sum()
