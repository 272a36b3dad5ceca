"""KAPAO: people and single joints as objects of one detector, joined into poses. For any skeleton.

Yolo (pose.layers.yolo) - objects: 5 numbers, 1 + K classes, K joints - suppression - fusion (pose.decoding.fusion)

Source: McNally, Vats, Wong and McPhee, ECCV 2022. The released program is under the GPL; this is written from the
paper and from descriptions of what that program does, none of it is used here. Beside pose.decoding.fusion it differs:

- Keypoint objects are square on any canvas, crowds (`ignored`) give no background, and of two objects at one output
  the better overlap is its objectness rather than the last one written.
- Anchors are stated for an input of `anchor_side` px and scaled to this one, so that a small canvas behaves as the
  large one does on a smaller picture.
- Around the picture is the mean colour, not grey 114; the other pictures of a mosaic are the same batch's.
- SGD's weight decay holds for biases and gains too, and momentum and biases have no warm-up of their own.
- Pictures are scaled by factors of up to 1.9 either way, there by 0.1 to 1.9.
- `colour` changes contrast and channels, where the release has gains of hue, saturation and value (0.015, 0.7, 0.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from pose.config import Count, Fraction, InputSize, Positive, RecipeParams, Strict, SystemParams
from pose.data.batch import SceneBatch
from pose.data.mosaic import compose_mosaics
from pose.errors import ConfigError, PoseError
from pose.found import Found
from pose.layers.kapao_loss import Objects, fitted_shape, kapao_losses, objects_of
from pose.layers.weights import COUNTED, load_strictly
from pose.layers.yolo import STRIDES, Yolo
from pose.people import People
from pose.progress import say
from pose.systems.base import Card
from pose.systems.scene_system import SceneSystem

Extent = tuple[Positive, Positive]
HEADS = f"model.{1 + Yolo.HEADS[-1]}."
"""What the last layer's weights begin with."""
PREVIEW_CELL = 4
"""px: of what a person looks at."""
PREVIEW_PERSON = 0.3
"""How dark pose objects are on it; keypoint objects are 1."""


class KapaoRecipe(RecipeParams):
    """With what KAPAO augments beside the common changes."""

    mosaic: Fraction = Field(description="probability of a picture put together from four of the batch")


class FusionParams(Strict):
    """Which objects are looked at and kept; see pose.decoding.fusion."""

    people: Count = Field(description="most in one image")
    candidates: Count = Field(description="objects of each class that suppression looks at")
    person_floor: Fraction = Field(description="people below are dropped")
    person_overlap: Fraction = Field(description="IoU above which the worse of two people is dropped")
    keypoint_floor: Fraction
    keypoint_overlap: Fraction
    fusion_floor: Fraction = Field(description="only people above get their joints from keypoint objects")
    reach: Positive = Field(description="of a keypoint object, times the square root of the person's box")
    rescore: bool = Field(False, description="rank people by their keypoint objects too; the source does not")


class KapaoParams(SystemParams):
    """Sizes of KAPAO."""

    test_time = frozenset({"fusion", "test_scales", "test_flips"})

    recipes: dict[str, KapaoRecipe]  # type: ignore[assignment]
    depth: Positive = Field(description="blocks, as a multiple of the large network's; S 0.33, M 0.67, L 1")
    width: Positive = Field(description="channels, as a multiple of the large network's; S 0.5, M 0.75, L 1")
    anchors: list[list[Extent]] = Field(description="width and height in px, three per level")
    anchor_side: Positive = Field(description="longer side of the input that the anchors are stated for, px")
    match_ratio: Annotated[float, Field(gt=1)] = Field(description="anchors fit objects whose sides differ by less")
    keypoint_side: Fraction = Field(gt=0, description="of keypoint objects, as a share of the input's longer side")
    fusion: FusionParams
    test_scales: list[Positive] = Field(min_length=1, description="of the input, whose objects are taken together")
    test_flips: list[bool] = Field(description="whether it is mirrored at each of these scales")

    @property
    def chosen(self) -> KapaoRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @property
    def flip_test(self) -> bool:
        """Whether a mirrored image is looked at too."""
        return any(self.test_flips)

    @field_validator("input_size")
    @classmethod
    def _divisible(cls, size: InputSize) -> InputSize:
        if any(side % STRIDES[-1] for side in size):
            raise ValueError(f"is {size[0]}x{size[1]} px; expected sides that are multiples of {STRIDES[-1]}")
        return size

    @model_validator(mode="after")
    def _consistent(self) -> KapaoParams:
        if not fitted_shape(self.anchors):
            raise ValueError(f"anchors are {[len(level) for level in self.anchors]}, expected four levels of three")
        if len(self.test_flips) != len(self.test_scales):
            raise ValueError(f"{len(self.test_scales)} test_scales have {len(self.test_flips)} test_flips, one is each")
        return self


class Kapao(SceneSystem):
    """Everyone in a scene and their joints. A joint's score is its keypoint object's, or the person's without one."""

    Params: ClassVar[type[SystemParams]] = KapaoParams
    loss_terms: ClassVar[tuple[str, ...]] = ("box", "objectness", "classes", "keypoints")
    constants: ClassVar[tuple[str, ...]] = (f"{HEADS}anchors", f"{HEADS}anchor_grid")
    card: ClassVar[Card] = Card(
        title="KAPAO",
        source="McNally, Vats, Wong and McPhee, ECCV 2022",
        published="COCO val2017 keypoint AP 63.0 / 68.5 / 70.6 (S / M / L at 1280 px), 64.3 / 69.6 / 71.6 with "
        "scales 0.8, 1, 1.2 and a flip",
        licence="our own code under this project's licence, none of the GPL release's; data sets have their own",
    )

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the outputs of Yolo."""
        p = self.params
        anchors = torch.tensor(p.anchors, dtype=torch.float32) * (max(p.input_size) / p.anchor_side)
        return Yolo(p.depth, p.width, self.skeleton.mirror.tolist(), anchors, p.test_scales, p.test_flips)

    @property
    def yolo(self) -> Yolo:
        """The network under its own type."""
        return cast(Yolo, self.network)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: down to stride 64; neck: what mixes the levels; heads: the last convolutions."""
        layers = list(self.yolo.model)
        return {"trunk": layers[: Yolo.NECK], "neck": layers[Yolo.NECK : -1], "heads": layers[-1:]}

    @property
    def score_floor(self) -> float:
        """People are reported from this score on."""
        return self.params.fusion.person_floor

    @property
    def suppression(self) -> str:
        """Of people, by their boxes."""
        return f"box IoU {self.params.fusion.person_overlap:g}"

    def prepare(self, batch: Any) -> Any:
        """As any scene; in training with mosaics."""
        share = self.params.chosen.mosaic
        if batch.augment is None or not share:
            return super().prepare(batch)
        return compose_mosaics(batch, self.params.input_size, self.skeleton, share)

    def objects(self, batch: SceneBatch) -> Objects:
        """What is to be found; keypoint objects are squares of keypoint_side."""
        return objects_of(batch, self.params.keypoint_side * max(self.params.input_size))

    def targets_preview(self, batch: SceneBatch) -> Tensor:
        """[B, h, w] in [0, 1], the objects: pose objects faint, keypoint objects full. Cells that they reach into."""
        width, height = self.params.input_size
        maps = torch.zeros(len(batch), height // PREVIEW_CELL, width // PREVIEW_CELL)
        objects = self.objects(batch)
        centre, half = objects.boxes[:, :2], objects.boxes[:, 2:] / 2
        low = ((centre - half) / PREVIEW_CELL).floor().clamp(min=0).int()
        high = ((centre + half) / PREVIEW_CELL).ceil().clamp(min=0).int()
        rows = torch.cat([objects.image[:, None], objects.kind[:, None], low, high], dim=1)
        for image, kind, left, top, right, bottom in rows.tolist():
            maps[image, top:bottom, left:right].clamp_(min=1.0 if kind else PREVIEW_PERSON)
        return maps

    def loss(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """See kapao_losses."""
        anchors = self.yolo.detect.anchors
        return kapao_losses(outputs["levels"], self.objects(batch), anchors, batch.ignored, self.params.match_ratio)

    def people(self, outputs: Any) -> Found:
        """Decoding in pure tensor code, so that an exported graph can hold it."""
        # torchvision, on whose suppression this stands, takes six seconds to import.
        from pose.decoding.fusion import Limits, find

        return find(outputs["objects"], self.params.input_size, Limits(**self.params.fusion.model_dump()))

    def decode(self, outputs: Any, batch: SceneBatch) -> People:
        """One row per person found, in pixels of the original images, image after image.

        Raises PoseError naming the images for which the network's outputs are not numbers.
        """
        broken = ~outputs["objects"].isfinite().flatten(1).all(dim=1)
        if broken.any():
            ids = batch.image_ids[broken].tolist()
            raise PoseError(
                f"KAPAO's outputs for image ids {', '.join(map(str, ids))} are not all finite numbers, so nobody "
                "can be found in them; the weights are damaged or the training diverged. Restore an earlier "
                "checkpoint, or train with a lower learning rate or a clip_norm."
            )
        return super().decode(outputs, batch)

    def load_official(self, state: Mapping[str, Any]) -> None:
        """Takes the state_dict of a release (pose.layers.pickled_tensors reads it), or a dictionary around it.

        The release's own anchors come with it; those are for inputs of 1280 px and are not scaled to this one. Raises
        TrainingError where it misfits.
        """
        taken = {key: value.float() if value.is_floating_point() else value for key, value in _unwrapped(state).items()}
        if not any(key.endswith(COUNTED) for key in taken):
            taken |= {key: tensor for key, tensor in self.network.state_dict().items() if key.endswith(COUNTED)}
        load_strictly(self.network, taken, "the release's state_dict")

    def begin_with(self, state: Mapping[str, Any]) -> None:
        """A release's weights; of one whose heads have other outputs trunk and neck alone, with these anchors.

        So the paper begins with YOLOv5-P6's of the same size, trained to detect COCO's 80 classes. Raises TrainingError
        where the rest misfits, ConfigError where heads that begin anew would not be trained.
        """
        state, own = _unwrapped(state), self.network.state_dict()
        if any(key in state and state[key].shape != own[key].shape for key in own if key.startswith(HEADS)):
            if self.params.chosen.idle:
                raise ConfigError("its heads have other outputs, new ones would stay untrained; give a phase epochs")
            say("kapao: trunk and neck are taken; the heads, which have other outputs there, begin anew")
            state = {key: value for key, value in state.items() if not key.startswith(HEADS)}
            state |= {key: value for key, value in own.items() if key.startswith(HEADS)}
        self.load_official(state)


def _unwrapped(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state_dict itself, where a checkpoint has it under a name."""
    entries = (state.get(name) for name in ("ema", "model", "state_dict"))
    return next((entry for entry in entries if isinstance(entry, Mapping)), state)
