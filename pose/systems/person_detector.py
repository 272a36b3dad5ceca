"""Faster R-CNN with one class: where the people are. Finds no joints; its boxes are what top-down systems crop.

ResNet - feature pyramid P2..P6 - proposals - RoIAlign 7x7 - fc - fc - {background, person}, box offsets

Source: Ren et al., NeurIPS 2015, with the feature pyramid of Lin et al., CVPR 2017, as torchvision builds it. The input
is a fixed canvas instead of torchvision's shorter side of 800 px. Regions without annotations (crowds) give no
background samples here; torchvision's recipe takes them for background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pose.config import Count, Fraction, InputSize, SystemParams
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.layers.resnet import load_imagenet_resnet
from pose.layers.weights import COUNTED, load_strictly
from pose.systems.base import Card
from pose.systems.scene_system import SceneSystem

if TYPE_CHECKING:
    # torchvision, on which these stand, takes six seconds to import; only who builds an R-CNN waits for it.
    from pose.layers.rcnn import Detected, Rcnn
    from pose.layers.regions import Target

STRIDE = 32
"""Sides of an input are multiples of this, so that the cells of every level cover it exactly."""


class RcnnParams(SystemParams):
    """Sizes of an R-CNN."""

    test_time = frozenset({"proposals_test", "detections", "score_floor", "overlap"})

    depth: Literal[18, 34, 50, 101] = Field(description="of the ResNet")
    norm: Literal["batch", "group"] = Field(description="normalisation in the ResNet; group for few images per worker")
    pyramid_channels: Count
    box_hidden: Count
    anchors: tuple[Count, Count, Count, Count, Count] = Field(description="px, one side per level P2..P6")
    proposals_train: Count
    proposals_test: Count
    sampled_anchors: Count
    sampled_proposals: Count
    detections: Count = Field(description="most people in one image")
    score_floor: Fraction = Field(description="detections below are dropped")
    overlap: Fraction = Field(description="IoU above which the worse of two detections is dropped")

    @field_validator("input_size")
    @classmethod
    def _divisible(cls, size: InputSize) -> InputSize:
        if any(side % STRIDE for side in size):
            raise ValueError(f"is {size[0]}x{size[1]} px; expected sides that are multiples of {STRIDE}")
        return size


class PersonDetector(SceneSystem):
    """Boxes and their scores; keypoints are zeros with scores 0. Also the base of Keypoint R-CNN."""

    finds_joints = False
    Params: ClassVar[type[SystemParams]] = RcnnParams
    loss_terms: ClassVar[tuple[str, ...]] = ("objectness", "rpn_box", "classifier", "box")
    card: ClassVar[Card] = Card(
        title="Faster R-CNN person detector",
        source="Ren et al., NeurIPS 2015; Lin et al., CVPR 2017; torchvision's fasterrcnn_resnet50_fpn",
        published="COCO val2017 box AP 37.0 over 80 classes (torchvision's release)",
        licence="our own code under this project's licence on torchvision's modules (BSD-3); data sets have their own",
    )

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the outputs of Rcnn."""
        from pose.layers.rcnn import Heads, Limits, Rcnn, pyramid

        p = self.params
        names = Limits.__dataclass_fields__
        limits = Limits(**{name: getattr(p, name) for name in names})
        backbone = pyramid(p.depth, p.norm, p.pyramid_channels)
        heads = Heads(p.pyramid_channels, p.box_hidden, self.keypoint_channels, self.skeleton.size)
        return Rcnn(backbone, heads, p.anchors, limits, self.skeleton.size)

    @property
    def rcnn(self) -> Rcnn:
        """The network under its own type."""
        return cast("Rcnn", self.network)

    @property
    def keypoint_channels(self) -> Sequence[int]:
        """Of the convolutions of the keypoint head; none without one."""
        return ()

    @property
    def score_floor(self) -> float:
        """People are reported from this score on."""
        return self.params.score_floor

    @property
    def suppression(self) -> str:
        """Of people, by their boxes."""
        return f"box IoU {self.params.overlap:g}"

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: ResNet and pyramid; proposals: the head on every cell; heads: those on boxes."""
        network = self.rcnn
        return {"trunk": [network.backbone], "proposals": [network.rpn], "heads": [network.roi_heads]}

    def forward(self, network: nn.Module, batch: Any) -> Any:
        """With gradients the losses are computed within the (perhaps wrapped) network, as DDP wants it.

        Without, only what is dense: losses and detections are then computed by who asks for them.
        """
        return network(batch.images, targets_of(batch)) if torch.is_grad_enabled() else network(batch.images)

    def loss(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Cross-entropies and smooth L1 losses over anchors and proposals sampled with torch's own generator."""
        if "losses" in outputs:
            return outputs["losses"]
        network = self.rcnn
        return network.losses(outputs, targets_of(batch), network.limits.proposals_test)

    def people(self, outputs: Any) -> Detected:
        """Decoding in pure tensor code, so that an exported graph can hold it."""
        network = self.rcnn
        return network.detect(outputs)

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes torchvision's ResNet of the same depth; needs norm: batch. Raises TrainingError where it misfits."""
        load_imagenet_resnet(self.rcnn.backbone.body, state)

    def load_official(self, state: Mapping[str, Tensor], eps: float = 0.0) -> None:
        """Takes a state_dict of torchvision's fasterrcnn_resnet50_fpn or keypointrcnn_resnet50_fpn; needs norm: batch.

        Of several classes background and person (0 and 1) are kept. eps: what that model adds to its variances:
        0 in torchvision's COCO_V1 releases, 1e-5 in what its code trains anew. Raises TrainingError where it misfits.
        """
        ours = self.network.state_dict()
        taken = {}
        for key, tensor in state.items():
            # Releases of before torchvision 0.12 name the proposal head's convolution so.
            key = key.replace("rpn.head.conv.weight", "rpn.head.conv.0.0.weight")
            key = key.replace("rpn.head.conv.bias", "rpn.head.conv.0.0.bias")
            if ".box_predictor." in key and key in ours:
                tensor = tensor[: len(ours[key])]
            if key.endswith("running_var"):
                tensor = tensor + (eps - nn.BatchNorm2d(1).eps)
            taken[key] = tensor
        if not any(key.endswith(COUNTED) for key in state):
            taken |= {key: tensor for key, tensor in ours.items() if key.endswith(COUNTED)}
        load_strictly(self.network, taken, "the release's state_dict")


def targets_of(batch: SceneBatch) -> list[Target]:
    """The people of each image that have an area to be found in."""
    from pose.layers.regions import Target

    wide = (batch.boxes[..., 2:] > batch.boxes[..., :2]).all(dim=2)
    return [
        Target(batch.boxes[i, rows], batch.keypoints[i, rows], batch.labelled[i, rows], batch.ignored[i], IGNORE_STRIDE)
        for i, rows in enumerate(batch.people & wide)
    ]
